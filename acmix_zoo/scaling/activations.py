"""Count the bytes that a network keeps for its backward pass: some of them per image, some for any batch size.

`count_saved_bytes` counts what autograd saves in a real forward pass. `count_on_gpu` counts the same for a GPU, without
needing one. It runs the pass on torch's fake tensors, which have shapes, dtypes and a device but no storage. The layers
then choose the backends that they choose on CUDA, and autocast follows its rules for CUDA.
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
    """Bytes that are kept for the backward pass.

    Attributes:
        fixed: bytes for any batch, such as 16-bit copies of the weights.
        per_image: bytes for each image of the batch.
    """

    fixed: int
    per_image: int

    def total(self, batch: int) -> int:
        """Return the bytes for a batch of images."""
        return self.fixed + batch * self.per_image


class _SavedTensor:
    """A tensor that autograd has saved. It exists as long as the graph that needs it."""

    def __init__(self, t: Tensor) -> None:
        self.tensor = t.detach()  # the tensor itself would refer to the graph that refers to this object


class _SavedStorages:
    """The storages that autograd still holds, each counted once, without the model's own tensors."""

    def __init__(self, model: nn.Module) -> None:
        self.own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        self.saved: WeakSet[_SavedTensor] = WeakSet()

    def pack(self, t: Tensor) -> _SavedTensor:
        packed = _SavedTensor(t)
        self.saved.add(packed)
        return packed

    def hooks(self) -> saved_tensors_hooks:
        return saved_tensors_hooks(self.pack, lambda packed: packed.tensor)

    def sizes(self) -> dict[int, int]:
        """Return the bytes of each storage."""
        storages = [packed.tensor.untyped_storage() for packed in self.saved]
        return {s._cdata: s.nbytes() for s in storages if s._cdata not in self.own}


def count_saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Return the bytes that autograd keeps of one forward pass with its loss, without parameters and buffers.

    With gradient checkpointing, this includes what the largest checkpointed part recomputes. During the backward pass,
    that part needs memory in addition to everything that was kept.

    Args:
        model: a classifier.
        x: images, (B, C, H, W).
    """
    kept, largest = _SavedStorages(model), 0
    inputs: list[_SavedTensor] = []

    def checkpoint(function: Callable[..., Any], *args: Any, use_reentrant: bool = False, **kwargs: Any) -> Any:
        nonlocal largest
        inputs.extend(kept.pack(t) for t in args if isinstance(t, Tensor))
        recomputed = _SavedStorages(model)
        with recomputed.hooks():
            out = function(*args, **kwargs)
        before = kept.sizes()
        largest = max(largest, sum(size for key, size in recomputed.sizes().items() if key not in before))
        return out.detach().requires_grad_(out.requires_grad)  # frees the graph of this part

    with patch("torch.utils.checkpoint.checkpoint", checkpoint), kept.hooks():
        loss = F.cross_entropy(model(x).float(), torch.zeros(len(x), dtype=torch.long, device=x.device))
    total = sum(kept.sizes().values()) + largest
    del loss  # it has held the graph until here, as it does in training
    return total


def count_on_gpu(model: nn.Module, input_size: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> Activations:
    """Return what training keeps on a CUDA device, computed from two batch sizes.

    Args:
        model: a network built under `torch.device("meta")`. It cannot be used afterwards.
        input_size: (C, H, W).
        dtype: float32, or the dtype of autocast.
    """
    with FakeTensorMode():
        _move_to_fake_gpu(model.train())
        counts = []
        for batch in (2, 4):
            x = torch.empty(batch, *input_size, device="cuda").contiguous(memory_format=torch.channels_last)
            with _cuda_autocast(dtype), _EfficientAttention(dtype):
                counts.append(count_saved_bytes(model, x))
    per_image = (counts[1] - counts[0]) // 2
    return Activations(counts[0] - 2 * per_image, per_image)


def _move_to_fake_gpu(model: nn.Module) -> None:
    """Replace parameters and buffers one by one. `Module.to` would mix tensors of two devices."""

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
def _cuda_autocast(dtype: torch.dtype) -> Iterator[None]:
    """Use autocast for CUDA. `torch.autocast("cuda")` would turn itself off without a GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", dtype != torch.float32)
    torch.set_autocast_dtype("cuda", dtype if dtype != torch.float32 else before[1])
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


class _EfficientAttention(TorchFunctionMode):
    """Run attention with CUDA's memory-efficient kernel. Without a GPU, PyTorch cannot choose a kernel itself."""

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
            if keys % 8:  # the kernel needs rows of a multiple of 8, so PyTorch copies the mask
                attn_mask = F.pad(attn_mask, (0, 8 - keys % 8))[..., :keys]
            attn_mask = attn_mask.expand(*q.shape[:-1], keys)
        scale = kwargs.get("scale")
        out = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, attn_mask, True, scale=scale)
        return out[0]  # type: ignore[no-any-return]
