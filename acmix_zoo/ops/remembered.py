"""Masks and indices that depend on a map's geometry alone, remembered from one call to the next.

They never become invalid: what a tensor holds follows from its key, and nobody writes into it. What has to be watched
is where it was made. A tensor of a FakeTensorMode, of a functorch transform, of inference mode or of a graph that is
being recorded must not serve a later call, so such a tensor is either not remembered or made elsewhere.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from acmix_zoo.ops.tracing import is_recording

# Enough for the training of a large network at one image size. The least recently used tensors make room for new ones,
# so a sweep over image sizes holds no more than this either.
_BUDGET_BYTES = 64 << 20
_tensors: OrderedDict[object, Tensor] = OrderedDict()
_held_bytes = 0
_lock = Lock()


def remembered(build: Callable[..., Tensor], *geometry: int, **kind: Any) -> Tensor:
    """Return `build(*geometry, **kind)`, from memory where it was built before.

    Args:
        build: makes a tensor out of nothing but its arguments.
        geometry: sizes.
        kind: `device`, and `dtype` where `build` takes one.
    """
    if not _may_remember(kind["device"]):
        return build(*geometry, **kind)
    key = (build, geometry, *kind.values())
    with _lock:
        if key in _tensors:
            _tensors.move_to_end(key)
            return _tensors[key]
    # In a thread of its own, where no mode or transform of the caller is active: they all belong to a thread.
    with ThreadPoolExecutor(1) as pool:
        tensor = pool.submit(_build, build, geometry, kind).result()
    _store(key, tensor)
    return tensor


def _may_remember(device: torch.device) -> bool:
    if is_recording() or device.type == "meta":
        return False
    if type(torch.empty(0)) is not Tensor:  # FakeTensorMode, and others that hand out tensors of their own
        return False
    # Memory that a CUDA graph's capture hands out is filled when the graph is replayed, and not before.
    return device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


def _build(build: Callable[..., Tensor], geometry: tuple[int, ...], kind: dict[str, Any]) -> Tensor:
    tensor = build(*geometry, **kind)
    if tensor.device.type == "cuda":  # the caller's stream may be another one than this thread's
        torch.cuda.current_stream(tensor.device).synchronize()
    return tensor


def _store(key: object, tensor: Tensor) -> None:
    global _held_bytes
    size = tensor.untyped_storage().nbytes()
    with _lock:
        if size > _BUDGET_BYTES or key in _tensors:  # another thread was faster
            return
        _tensors[key] = tensor
        _held_bytes += size
        while _held_bytes > _BUDGET_BYTES:
            _held_bytes -= _tensors.popitem(last=False)[1].untyped_storage().nbytes()
