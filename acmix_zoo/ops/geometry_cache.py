"""A cache of masks and indices that depend only on the geometry of a feature map.

Entries never become invalid, because the content of a tensor follows from its key and is never modified. However, a
tensor that was created in a FakeTensorMode, a functorch transform, inference mode or a graph that is being recorded
must not be used in a later call. Such tensors are either not cached, or created outside the caller's context.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from acmix_zoo.ops.tracing import is_recording

# Enough for training a large network at one image size. The least recently used tensors are evicted first, so a sweep
# over image sizes does not need more.
_BUDGET_BYTES = 64 << 20
_tensors: OrderedDict[object, Tensor] = OrderedDict()
_held_bytes = 0
_lock = Lock()


def cached(build: Callable[..., Tensor], *sizes: Hashable, **kind: Any) -> Tensor:
    """Return `build(*sizes, **kind)`, from the cache if it was built before.

    Args:
        build: a function that creates a tensor from its arguments alone.
        sizes: numbers, or named tuples of them.
        kind: the keyword argument `device`, and `dtype` if `build` has it.
    """
    if not _may_cache(kind["device"]):
        return build(*sizes, **kind)
    key = (build, sizes, *kind.values())
    with _lock:
        if key in _tensors:
            _tensors.move_to_end(key)
            return _tensors[key]
    # Build it in another thread. Modes and transforms belong to a thread, so the caller's are not active there.
    with ThreadPoolExecutor(1) as pool:
        tensor = pool.submit(_build, build, sizes, kind).result()
    _store(key, tensor)
    return tensor


def _may_cache(device: torch.device) -> bool:
    """Return whether tensors that are built now are ordinary ones that a later call may use."""
    if is_recording() or device.type == "meta":
        return False
    if type(torch.empty(0)) is not Tensor:  # FakeTensorMode and other modes that create special tensors
        return False
    # Memory allocated while a CUDA graph is captured is only filled when the graph is replayed.
    return device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


def _build(build: Callable[..., Tensor], sizes: tuple[Hashable, ...], kind: dict[str, Any]) -> Tensor:
    """Return `build(*sizes, **kind)`, complete before any stream of a GPU may read it."""
    tensor = build(*sizes, **kind)
    if tensor.device.type == "cuda":  # the caller may use a different stream
        torch.cuda.current_stream(tensor.device).synchronize()
    return tensor


def _store(key: object, tensor: Tensor) -> None:
    """Add a tensor to the cache, and evict others if it exceeds its budget."""
    global _held_bytes
    size = tensor.untyped_storage().nbytes()
    with _lock:
        if size > _BUDGET_BYTES or key in _tensors:  # another thread was faster
            return
        _tensors[key] = tensor
        _held_bytes += size
        while _held_bytes > _BUDGET_BYTES:
            _held_bytes -= _tensors.popitem(last=False)[1].untyped_storage().nbytes()
