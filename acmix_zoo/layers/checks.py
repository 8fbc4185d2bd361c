"""What the layers ask of their arguments alike, in one set of words."""

from __future__ import annotations

from typing import Literal, get_args

Paths = Literal["both", "attention", "convolution"]


def check_paths(layer: str, paths: str) -> None:
    """
    Raises:
        ValueError: no such paths.
    """
    if paths not in get_args(Paths):
        raise ValueError(f'{layer}: paths must be "both", "attention" or "convolution", got {paths!r}')


def check_heads(layer: str, name: str, width: int, heads: int) -> None:
    """
    Raises:
        ValueError: the heads do not divide the width; the message has the nearest that they do.
    """
    if width % heads:
        lower = width // heads * heads
        near = f"nearest widths are {lower} and {lower + heads}" if lower else f"the nearest width is {heads}"
        raise ValueError(f"{layer}: {name}={width} is not divisible by heads={heads}; {near}")
