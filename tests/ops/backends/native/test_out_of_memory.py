"""When the native CPU kernel cannot allocate its buffers, the call raises an exception, and the process survives."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from support.native_layers import layer_of

from acmix_zoo.ops.backends.native.library import library

if library() is None or sys.platform != "linux":
    pytest.skip("needs the native library and Linux", allow_module_level=True)


@contextmanager
def address_space_for(more: int) -> Iterator[None]:
    """Limit the address space of this process to its present size plus `more` bytes."""
    import resource

    gc.collect()  # or objects of earlier tests are freed later, and leave more space than `more`
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_failed_call_raises_and_the_next_one_succeeds(direction: str, threads: int):
    """The library needs 80 times the memory of its input, more than earlier tests have left in the heap."""
    width = 400_000 if direction == "forward" else 40_000  # before the backward pass, a forward pass has to succeed
    layer, wide, narrow = layer_of(1, 1, heads=1), torch.randn(2, 1, 12, width), torch.randn(2, 1, 12, 40)
    before, expected = torch.get_num_threads(), layer(narrow)
    try:
        torch.set_num_threads(threads)
        layer(narrow)  # starts the threads, which need address space as well
        if direction == "forward":
            with (
                address_space_for(200 << 20),
                pytest.raises(torch.OutOfMemoryError, match=r"shape \(2, 1, 12, 400000\)"),
            ):
                layer(wide)
        else:
            layer.requires_grad_()
            loss = layer(wide).sum()
            with address_space_for(100 << 20), pytest.raises(torch.OutOfMemoryError, match=r"Use a smaller batch"):
                loss.backward()
        assert torch.equal(layer(narrow), expected)
    finally:
        torch.set_num_threads(before)
