"""Turn a plain PVT (version 1) into an ACmix-PVT that gives exactly the same logits. `swin.py` explains its
training."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from acmix_zoo.models.acmix_pvt import DEPTHS, EMBED_DIMS
from acmix_zoo.weights.from_plain.shared import (
    count_keys,
    create_with_state,
    first_keys,
    outer_arguments,
    plain_state,
    recorded_arguments,
)
from acmix_zoo.weights.read import Source

_NAMES = {depths: f"acmix_pvt_{size[0]}" for size, depths in DEPTHS.items()}


def from_pvt(source: nn.Module | Source, **kwargs: Any) -> nn.Module:
    """Return an ACmix-PVT that gives the logits of a plain PVT (version 1), ready to be fine-tuned.

    Args:
        source: a PVT of this package. Or the weights of any published one (tiny to large) under the names of PVT's
            released code: a state dict, a weight folder, a safetensors file or a torch file.
        kwargs: arguments of the network to change: img_size (positions are interpolated), num_classes, ….

    Returns:
        A `PVT` in training mode, on the CPU.

    Raises:
        ValueError: the source is not a PVT of the published widths, or it was made for images that are not square, does
            not state their size, and no img_size was given.
    """
    state = plain_state(source)
    widths = tuple(state[f"pos_embed{i}"].shape[2] for i in range(1, 5) if f"pos_embed{i}" in state)
    if widths != EMBED_DIMS:  # for which the number of heads is known, if the source does not state it
        found = f"stages of {widths}" if widths else f"keys like {first_keys(state)}"
        raise ValueError(
            f"from_pvt: the source has {found}. Expected a PVT (version 1) with stages of 64, 128, 320 and 512 channels"
        )
    depths = tuple(count_keys(state, rf"block{i}\.(\d+)\.norm1\.weight$") for i in range(1, 5))
    arguments: dict[str, Any] = outer_arguments(state, "patch_embed1.proj.weight", "head.weight")
    arguments |= {} if depths in _NAMES else {"depths": depths}
    arguments |= recorded_arguments(source, "img_size", "num_heads", "mlp_ratios", "reductions", "global_pool")
    positions = state["pos_embed1"].shape[1]
    side = math.isqrt(positions)
    if side**2 != positions and "img_size" not in {**arguments, **kwargs}:
        raise ValueError(
            f"from_pvt: the position table has {positions} entries, which is not a square. Expected a square image. "
            "Pass img_size=(height, width)"
        )
    patch = state["patch_embed1.proj.weight"].shape[2]
    arguments |= {} if patch == 4 else {"patch_size": patch}
    arguments = arguments if side * patch == 224 else {"img_size": side * patch, **arguments}
    return create_with_state(source, _NAMES.get(depths, "acmix_pvt_s"), state, arguments, kwargs)
