"""Reading the authors' checkpoints: the one place that knows their key names.

Their ResNet form holds q, k and v as three 1×1 convolutions with rows ordered (heads, d); their Swin form holds one
qkv matrix with rows ordered (q/k/v, heads, d). Ours orders the rows (d, q/k/v, heads). All else is a new name or shape.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from acmix_zoo.layers import ACmix2d, WindowACmix
from acmix_zoo.layers.window_acmix import rows_by_channel
from acmix_zoo.models.plain_swin import to_timm_names

_MARKS = ("dep_conv.weight", "rate1", "rate2")
_LAYER_NAMES = {
    "conv_p.weight": "position_weight",
    "conv_p.bias": "position_bias",
    "fc.weight": "shift_conv.fc_weight",
    "fc.bias": "shift_conv.fc_bias",
    "dep_conv.weight": "shift_conv.shift_weight",
    "rate1": "alpha",
    "rate2": "beta",
}


def is_authors(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the keys are those of the authors' code, be it a network or a single layer."""
    return all(any(key == mark or key.endswith(f".{mark}") for key in state_dict) for mark in _MARKS)


def convert(state_dict: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The authors' state dict under the names and in the row order of `module` (a network or one layer of ours).

    Keys without a counterpart are handed through unchanged, so that a strict load can name them.
    """
    left = dict(state_dict)
    out: dict[str, Tensor] = {}
    for name, layer in module.named_modules():
        if not isinstance(layer, ACmix2d | WindowACmix):
            continue
        prefix = f"{name}." if name else ""
        for theirs, ours in _LAYER_NAMES.items():
            if prefix + theirs in left:
                value = left.pop(prefix + theirs)
                # 1×1 convolutions become matrices; the shift kernels stay as they are.
                out[prefix + ours] = value.flatten(1) if theirs in ("conv_p.weight", "fc.weight") else value
        for kind in ("weight", "bias"):
            parts = [f"{prefix}conv{i}.{kind}" for i in (1, 2, 3)]
            if isinstance(layer, ACmix2d) and all(part in left for part in parts):
                out[f"{prefix}qkv.{kind}"] = rows_by_channel(torch.cat([left.pop(part) for part in parts]), layer.heads)
            elif isinstance(layer, WindowACmix) and f"{prefix}qkv.{kind}" in left:
                out[f"{prefix}qkv.{kind}"] = rows_by_channel(left.pop(f"{prefix}qkv.{kind}"), layer.heads)
    out.update(to_timm_names(left))  # a stage's merging stands at the head of the next stage here, too
    return out
