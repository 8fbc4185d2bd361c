"""Collect objects from all processes."""

from __future__ import annotations

from typing import Any

from torch import distributed


def gather(own: list[Any]) -> list[Any]:
    """Return the objects of all processes. All processes have to call this."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return own
    parts: list[list[Any]] = [own] * distributed.get_world_size()
    distributed.all_gather_object(parts, own)
    return [each for part in parts for each in part]
