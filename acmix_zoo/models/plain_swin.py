"""A plain Swin's weights as those of an ACmix-Swin that gives the very same logits (alpha 1, beta 0)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from acmix_zoo.layers import WindowACmix
from acmix_zoo.layers.window_acmix import rows_by_channel
from acmix_zoo.models.silent_convolution import silent_convolution

State = dict[str, Tensor]
# Buffers that follow from the geometry; we rebuild them.
_REBUILT = ("relative_position_index", "attn_mask")
_TORCHVISION = (
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
)


def is_plain_swin(state: Mapping[str, Tensor]) -> bool:
    """Whether these are a plain Swin's weights under timm's, Microsoft's or torchvision's names."""
    return any(key.endswith("attn.relative_position_bias_table") for key in state) and not any(
        ".shift_conv." in key or ".dep_conv." in key for key in state
    )


def timm_names(state: Mapping[str, Tensor]) -> State:
    """A plain Swin's weights under timm's names: a stage's merging stands at its head, the classifier is head.fc.

    Raises:
        ValueError: Swin V2, whose attention is another function.
    """
    if any(key.endswith("attn.logit_scale") for key in state):
        raise ValueError(
            "from_swin: these are weights of Swin V2, whose attention ACmix does not have; give a Swin (V1)"
        )
    out = {}
    at_the_end = any(key.startswith("layers.0.downsample.") for key in state)  # as Microsoft's code has it
    for key, value in state.items():
        if key.endswith(_REBUILT):
            continue
        for pattern, name in _TORCHVISION:
            key = re.sub(pattern, name, key)
        if match := re.match(r"features\.(\d+)\.(.*)", key):  # odd: a stage's blocks; even: the merging behind it
            i = int(match[1])
            key = f"layers.{i // 2}.{'blocks' if i % 2 else 'downsample'}.{match[2]}"
        elif at_the_end and (match := re.match(r"layers\.(\d+)\.downsample\.(.*)", key)):
            key = f"layers.{int(match[1]) + 1}.downsample.{match[2]}"
        out[re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", key)] = value
    return out


def configuration(state: State) -> dict[str, Any]:
    """What the shapes of a plain Swin's weights (under timm's names) say: arguments of `ACmixSwin`.

    Raises:
        ValueError: they are not a Swin's, or have what ACmixSwin does not have.
    """
    tables = {key: value for key, value in state.items() if key.endswith("relative_position_bias_table")}
    found = [match for match in (re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", key) for key in tables) if match]
    needed = {"patch_embed.proj.weight", "layers.0.blocks.0.mlp.fc1.weight", "layers.0.blocks.0.attn.qkv.bias"}
    if not found or needed - state.keys():
        missing = ", ".join(sorted(needed - state.keys()))
        raise ValueError(f"from_swin: not the weights of a Swin with biases in qkv; missing: {missing}")
    stages = 1 + max(int(match[1]) for match in found)
    depths = [sum(int(match[1]) == i for match in found) for i in range(stages)]
    heads = [state[f"layers.{i}.blocks.0.attn.relative_position_bias_table"].shape[1] for i in range(stages)]
    side = math.isqrt(max(len(table) for table in tables.values()))  # 2·window − 1, where no map was smaller
    patch = state["patch_embed.proj.weight"]  # (embed_dim, in_chans, side, side)
    hidden, dim = state["layers.0.blocks.0.mlp.fc1.weight"].shape
    classifier = state.get("head.fc.weight")
    return {
        "patch_size": patch.shape[2],
        "embed_dim": patch.shape[0],
        "depths": tuple(depths),
        "num_heads": tuple(heads),
        "window_size": (side + 1) // 2,
        "mlp_ratio": hidden / dim,
        "in_chans": patch.shape[1],
        "num_classes": 0 if classifier is None else len(classifier),
    }


@torch.no_grad()
def from_plain_swin(state: Mapping[str, Tensor], model: nn.Module) -> State:
    """The state dict of `model` (an ACmixSwin) that makes it the plain Swin: its weights, alpha 1, beta 0."""
    out = timm_names(state)
    for name, layer in model.named_modules():
        if isinstance(layer, WindowACmix) and layer.paths != "convolution":
            for kind in ("weight", "bias"):
                key = f"{name}.qkv.{kind}"
                if key in out:
                    out[key] = rows_by_channel(out[key], layer.heads)
    return silent_convolution(out, model)
