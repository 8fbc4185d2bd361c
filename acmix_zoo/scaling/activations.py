"""What a network keeps for its backward pass, counted: bytes an image, and bytes whatever the batch.

`saved` counts what autograd saves in a forward pass that really runs. `on_gpu` counts the same for a GPU without having
one: the pass runs on torch's fake tensors, which have shapes, types and a device but no numbers, so the operator takes
the forms it takes on CUDA, and autocast its CUDA rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode  # there is no public name yet
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode


class Activations(NamedTuple):
    """Bytes kept for the backward pass of a batch B: fixed + B · image."""

    fixed: int
    image: int

    def of(self, batch: int) -> int:
        return self.fixed + batch * self.image


class _Saved:
    """A tensor that autograd saved; it lives as long as the graph that needs it."""

    def __init__(self, t: Tensor) -> None:
        self.tensor = t.detach()  # the tensor itself would hold the graph that holds this, for ever


class _Kept:
    """Storages that autograd saved and still holds, each once, and none of the model's own."""

    def __init__(self, model: nn.Module) -> None:
        self.own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        self.saved: WeakSet[_Saved] = WeakSet()

    def pack(self, t: Tensor) -> _Saved:
        packed = _Saved(t)
        self.saved.add(packed)
        return packed

    def hooks(self) -> saved_tensors_hooks:
        return saved_tensors_hooks(self.pack, lambda packed: packed.tensor)

    def sizes(self) -> dict[int, int]:
        """Bytes of each storage."""
        storages = [packed.tensor.untyped_storage() for packed in self.saved]
        return {s._cdata: s.nbytes() for s in storages if s._cdata not in self.own}


def saved(model: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps of one forward pass over x (B, C, H, W), loss included; parameters and buffers are not
    counted. With gradient checkpointing, what the largest checkpointed part makes again is counted too: in the backward
    pass it stands beside what was kept."""
    kept, largest = _Kept(model), 0
    inputs: list[_Saved] = []

    def checkpointed(function: Callable[..., Any], *args: Any, use_reentrant: bool = False, **kwargs: Any) -> Any:
        nonlocal largest
        inputs.extend(kept.pack(t) for t in args if isinstance(t, Tensor))
        part = _Kept(model)
        with part.hooks():
            out = function(*args, **kwargs)
        before = kept.sizes()
        largest = max(largest, sum(size for key, size in part.sizes().items() if key not in before))
        return out.detach().requires_grad_(out.requires_grad)  # and lets go of the part's graph

    with patch("torch.utils.checkpoint.checkpoint", checkpointed), kept.hooks():
        loss = F.cross_entropy(model(x).float(), torch.zeros(len(x), dtype=torch.long, device=x.device))
    total = sum(kept.sizes().values()) + largest
    del loss  # until here it held the graph, as it does in training
    return total


def on_gpu(model: nn.Module, input_size: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> Activations:
    """What training keeps on CUDA, from two batch sizes.

    Args:
        model: built under `torch.device("meta")`; it is of no use afterwards.
        input_size: (C, H, W).
        dtype: float32, or the type of autocast.
    """
    with FakeTensorMode():
        _move(model.train())
        counts = []
        for batch in (2, 4):
            x = torch.empty(batch, *input_size, device="cuda").contiguous(memory_format=torch.channels_last)
            with _autocast(dtype), _FusedAttention(dtype):
                counts.append(saved(model, x))
    image = (counts[1] - counts[0]) // 2
    return Activations(counts[0] - 2 * image, image)


def _move(model: nn.Module) -> None:
    """Parameters and buffers to the (fake) GPU, one by one: a module's own methods would mix two devices' tensors."""

    def moved(t: Tensor) -> Tensor:
        return torch.empty(t.shape, dtype=t.dtype, device="cuda")

    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = nn.Parameter(moved(p), p.requires_grad)
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = moved(b)


@contextmanager
def _autocast(dtype: torch.dtype) -> Iterator[None]:
    """CUDA's autocast; `torch.autocast("cuda")` switches itself off where there is no GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", dtype != torch.float32)
    torch.set_autocast_dtype("cuda", dtype if dtype != torch.float32 else before[1])
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


class _FusedAttention(TorchFunctionMode):
    """CUDA's memory-efficient attention by name: which kernel serves is otherwise asked of the GPU."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self._attend(*args, **(kwargs or {}))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        if self.dtype != torch.float32:  # autocast runs it in the lower precision
            q, k, v = (t.to(self.dtype) for t in (q, k, v))
            attn_mask = None if attn_mask is None else attn_mask.to(self.dtype)
        if attn_mask is not None:
            keys = attn_mask.shape[-1]
            if keys % 8:  # the kernel wants rows of a multiple of 8; torch copies the mask for that
                attn_mask = F.pad(attn_mask, (0, 8 - keys % 8))[..., :keys]
            attn_mask = attn_mask.expand(*q.shape[:-1], keys)
        scale = kwargs.get("scale")
        out = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, attn_mask, True, scale=scale)
        return out[0]  # type: ignore[no-any-return]
