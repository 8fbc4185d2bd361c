"""Translate the authors' checkpoints. This is the only place that knows their key names.

Their layer for ResNets has q, k and v as three 1×1 convolutions with rows ordered (heads, d). Their layer for Swin has
one qkv matrix with rows ordered (q/k/v, heads, d). Ours orders the rows (d, q/k/v, heads). Otherwise, only names and
shapes differ.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from acmix_zoo.layers import ACmix2d, WindowACmix
from acmix_zoo.layers.qkv_rows import rows_by_channel
from acmix_zoo.models.plain_swin import to_timm_names

_CHARACTERISTIC_KEYS = ("dep_conv.weight", "rate1", "rate2")
_LAYER_NAMES = {
    "conv_p.weight": "position_weight",
    "conv_p.bias": "position_bias",
    "fc.weight": "shift_conv.fc_weight",
    "fc.bias": "shift_conv.fc_bias",
    "dep_conv.weight": "shift_conv.shift_weight",
    "rate1": "alpha",
    "rate2": "beta",
}


def is_from_authors(state_dict: Mapping[str, Tensor]) -> bool:
    """Return whether the keys are those of the authors' code, for a network or a single layer."""
    return all(any(key == name or key.endswith(f".{name}") for key in state_dict) for name in _CHARACTERISTIC_KEYS)


def translate_authors(state_dict: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Return the authors' state dict under the names and in the row order of `module`, one of our networks or layers.

    Keys without a counterpart are passed on unchanged, so that a strict load can name them.
    """
    remaining = dict(state_dict)
    out: dict[str, Tensor] = {}
    for name, layer in module.named_modules():
        if not isinstance(layer, ACmix2d | WindowACmix):
            continue
        prefix = f"{name}." if name else ""
        for authors_name, own_name in _LAYER_NAMES.items():
            if prefix + authors_name in remaining:
                value = remaining.pop(prefix + authors_name)
                # 1×1 convolutions become matrices. The shift kernels keep their shape.
                is_matrix = authors_name in ("conv_p.weight", "fc.weight")
                out[prefix + own_name] = value.flatten(1) if is_matrix else value
        for kind in ("weight", "bias"):
            key = f"{prefix}qkv.{kind}"
            parts = [f"{prefix}conv{i}.{kind}" for i in (1, 2, 3)]
            if isinstance(layer, ACmix2d) and all(part in remaining for part in parts):
                out[key] = rows_by_channel(torch.cat([remaining.pop(part) for part in parts]), layer.heads)
            elif isinstance(layer, WindowACmix) and key in remaining:
                out[key] = rows_by_channel(remaining.pop(key), layer.heads)
    out.update(to_timm_names(remaining))  # as in timm, a stage begins with its patch merging
    return out
