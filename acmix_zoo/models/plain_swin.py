"""Translate the weights of a plain Swin for an ACmix-Swin, which then computes the same logits (alpha 1, beta 0).

Used by `pretrained=` with the tag swin_in1k, by `from_swin`, and to read the authors' checkpoints.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from acmix_zoo.layers import WindowACmix
from acmix_zoo.layers.qkv_rows import rows_by_channel
from acmix_zoo.models.silent_convolution import add_silent_convolution

State = dict[str, Tensor]
# Buffers that follow from the sizes of the network. Ours are computed when it is built.
_COMPUTED_BUFFERS = ("relative_position_index", "attn_mask")
_TORCHVISION = (
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
)


def is_plain_swin(state: Mapping[str, Tensor]) -> bool:
    """Return whether these are the weights of a plain Swin, under the names of timm, Microsoft or torchvision."""
    return any(key.endswith("attn.relative_position_bias_table") for key in state) and not any(
        ".shift_conv." in key or ".dep_conv." in key for key in state
    )


def to_timm_names(state: Mapping[str, Tensor]) -> State:
    """Return the weights of a plain Swin under timm's names.

    In timm, a stage begins with the patch merging before its blocks, and the classifier is called head.fc.

    Raises:
        ValueError: the weights are those of Swin V2, which computes attention differently.
    """
    if any(key.endswith("attn.logit_scale") for key in state):
        raise ValueError(
            "from_swin: these are weights of Swin V2, whose attention ACmix does not have. Expected a Swin (version 1)"
        )
    out = {}
    merging_ends_stage = any(key.startswith("layers.0.downsample.") for key in state)  # as in Microsoft's code
    for key, value in state.items():
        if key.endswith(_COMPUTED_BUFFERS):
            continue
        for pattern, name in _TORCHVISION:
            key = re.sub(pattern, name, key)
        if match := re.match(r"features\.(\d+)\.(.*)", key):  # odd: the blocks of a stage; even: the merging after them
            i = int(match[1])
            key = f"layers.{i // 2}.{'blocks' if i % 2 else 'downsample'}.{match[2]}"
        elif merging_ends_stage and (match := re.match(r"layers\.(\d+)\.downsample\.(.*)", key)):
            key = f"layers.{int(match[1]) + 1}.downsample.{match[2]}"
        out[re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", key)] = value
    return out


def swin_arguments(state: State) -> dict[str, Any]:
    """Return the arguments of `ACmixSwin` that the shapes of a plain Swin's weights, under timm's names, imply.

    Raises:
        ValueError: the weights are not those of a Swin, lack the biases that ACmixSwin has, or have larger windows in a
            later stage than in an earlier one.
    """
    tables = {key: value for key, value in state.items() if key.endswith("relative_position_bias_table")}
    blocks = [match for match in (re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", key) for key in tables) if match]
    required = {"patch_embed.proj.weight", "layers.0.blocks.0.mlp.fc1.weight", "layers.0.blocks.0.attn.qkv.bias"}
    if not blocks or required - state.keys():
        missing = ", ".join(sorted(required - state.keys()))
        raise ValueError(f"from_swin: not the weights of a Swin with biases in qkv; missing: {missing}")
    stages = 1 + max(int(match[1]) for match in blocks)
    depths = [sum(int(match[1]) == i for match in blocks) for i in range(stages)]
    firsts = [state[f"layers.{i}.blocks.0.attn.relative_position_bias_table"] for i in range(stages)]
    heads = [table.shape[1] for table in firsts]
    lengths = [len(table) for table in firsts]
    if lengths != sorted(lengths, reverse=True):  # ours can only shrink, where a feature map is smaller than a window
        raise ValueError(
            f"from_swin: the stages have position tables of {', '.join(map(str, lengths))} entries, so their windows "
            "differ. Expected the same window in all stages, as ACmixSwin has"
        )
    side = math.isqrt(max(len(table) for table in tables.values()))  # 2·window − 1, if no feature map was smaller
    patch = state["patch_embed.proj.weight"]  # (embed_dim, in_chans, side, side)
    hidden, dim = state["layers.0.blocks.0.mlp.fc1.weight"].shape
    projected = state["layers.0.blocks.0.attn.qkv.bias"].numel()
    if projected != 3 * dim:
        raise ValueError(
            f"from_swin: qkv has {projected} outputs for {dim} channels, so the network was built with a custom "
            f"head_dim. Expected {3 * dim}, as in ACmixSwin. Pass a network built without head_dim"
        )
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
    """Return the state dict with which `model`, an ACmixSwin, computes what the plain Swin does."""
    out = to_timm_names(state)
    for name, layer in model.named_modules():
        if isinstance(layer, WindowACmix) and layer.paths != "convolution":
            for kind in ("weight", "bias"):
                key = f"{name}.qkv.{kind}"
                if key in out:
                    out[key] = rows_by_channel(out[key], layer.heads)
    return add_silent_convolution(out, model)
