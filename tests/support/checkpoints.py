"""Networks and state dicts for the tests of load_weights."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn


def pico(seed: int = 1, **kwargs: Any) -> nn.Module:
    """Return a new acmix_resnet_pico whose weights depend on the seed."""
    torch.manual_seed(seed)
    return timm.create_model("acmix_resnet_pico", **kwargs)


def add_prefix(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict with a prefix before every key."""
    return {prefix + key: value for key, value in state.items()}


def authors_layer(seed: int, channels: int = 8, heads: int = 4) -> dict[str, Tensor]:
    """Return the state dict of a single layer, with the names that the authors' code uses."""
    generator = torch.Generator().manual_seed(seed)
    d = channels // heads
    shapes = {
        **{f"conv{i}.weight": (channels, channels, 1, 1) for i in (1, 2, 3)},
        **{f"conv{i}.bias": (channels,) for i in (1, 2, 3)},
        "conv_p.weight": (d, 2, 1, 1),
        "conv_p.bias": (d,),
        "fc.weight": (9, 3 * heads, 1, 1),
        "dep_conv.weight": (channels, 9, 3, 3),
        "rate1": (1,),
        "rate2": (1,),
    }
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
