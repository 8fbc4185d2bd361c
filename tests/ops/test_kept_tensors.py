"""The memory that a layer keeps for its backward pass: with checkpointing, and with hooks for saved tensors."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from acmix_zoo import ACmix2d


def assert_close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operators have allocated and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = [t.untyped_storage() for t in tree_leaves(args) if isinstance(t, Tensor)]
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and all(t.untyped_storage() is not storage for storage in inputs):  # no view
                self.storages[t.untyped_storage()] = t.untyped_storage().nbytes()
        return out

    def total(self) -> int:
        return sum(self.storages.values())


class TestKeptTensors:
    @pytest.fixture(autouse=True)
    def _collect_quickly(self) -> Iterator[None]:
        """Keep `gc.collect` from visiting the objects of all other tests."""
        gc.freeze()
        yield
        gc.unfreeze()

    @pytest.mark.parametrize("size", [8, 20])
    @pytest.mark.parametrize("use_reentrant", [False, True])
    def test_checkpointing_keeps_only_the_output(self, size: int, use_reentrant: bool, python_backend: None) -> None:
        layer, x = ACmix2d(16, 16), torch.randn(2, 16, size, size, requires_grad=True)
        layer(x)  # fills the cache of masks and indices
        gc.collect()
        with LiveBytes() as plain:
            out = layer(x)
        assert plain.total() >= 5 * out.untyped_storage().nbytes()
        tensors = [x, *layer.parameters()]
        expected = torch.autograd.grad(out.square().sum(), tensors)
        del out
        gc.collect()
        assert plain.total() <= 4096, "a graph outlives its backward pass"
        with LiveBytes() as checkpointed:
            out = checkpoint(layer, x, use_reentrant=use_reentrant)
        assert checkpointed.total() <= out.untyped_storage().nbytes() + 4096
        out.square().sum().backward()
        assert_close([t.grad for t in tensors], list(expected))

    def test_hooks_see_all_kept_tensors(self) -> None:
        """If hooks move all saved tensors elsewhere, nothing else is kept alive."""
        layer, x = ACmix2d(16, 16), torch.randn(2, 16, 20, 20, requires_grad=True)
        expected = torch.autograd.grad(layer(x).square().sum(), x)
        gc.collect()
        with (
            LiveBytes() as mode,
            torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().numpy().copy(), torch.from_numpy),
        ):
            out = layer(x)
        assert mode.total() <= out.untyped_storage().nbytes() + 4096
        assert_close(torch.autograd.grad(out.square().sum(), x), expected)
