"""Reading the authors' checkpoints: the one place that knows their key names.

Their ResNet form holds q, k and v as three 1×1 convolutions with rows ordered (heads, d); their Swin form holds one
qkv matrix with rows ordered (q/k/v, heads, d). Ours orders the rows (d, q/k/v, heads). All else is a new name or shape.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from acmix_zoo.layers import ACmix2d, WindowACmix

_MARKS = ("dep_conv.weight", "rate1", "rate2")
# Buffers that follow from the geometry; we rebuild them.
_REBUILT = ("relative_position_index", "attn_mask")
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
    left = {key: value for key, value in state_dict.items() if not key.endswith(_REBUILT)}
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
                out[f"{prefix}qkv.{kind}"] = _reorder(torch.cat([left.pop(part) for part in parts]), layer.heads)
            elif isinstance(layer, WindowACmix) and f"{prefix}qkv.{kind}" in left:
                out[f"{prefix}qkv.{kind}"] = _reorder(left.pop(f"{prefix}qkv.{kind}"), layer.heads)
    out.update({_network_name(key): value for key, value in left.items()})
    return out


def _reorder(rows: Tensor, heads: int) -> Tensor:
    """(3·heads·d, …), rows ordered (q/k/v, heads, d) → (3·C, …) or (3·C,), rows ordered (d, q/k/v, heads)."""
    rows = rows.flatten(1) if rows.dim() > 1 else rows
    if rows.shape[0] % (3 * heads):  # not of this layer: left as it is for the strict load to report
        return rows
    return rows.unflatten(0, (3, heads, -1)).movedim(2, 0).flatten(0, 2).contiguous()  # type: ignore[no-any-return]


def _network_name(key: str) -> str:
    """Swin: a stage's downsampling stands at the head of the next stage here, and the classifier is `head.fc`."""
    key = re.sub(r"^layers\.(\d+)\.downsample\.", lambda match: f"layers.{int(match[1]) + 1}.downsample.", key)
    return re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", key)
