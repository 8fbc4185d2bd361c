"""Fit pretrained weights to an ACmix-Swin: other windows and patches, and the weights of a plain Swin."""

from __future__ import annotations

from timm.layers import resample_patch_embed
from torch import Tensor, nn

from acmix_zoo.models.plain_swin import from_plain_swin, is_plain_swin


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Resample the position tables and patch embedding of weights with a different window or patch size."""
    out, known = {}, model.state_dict().keys()
    for key, value in state_dict.items():
        if key not in known:
            pass  # an unknown key, which loading will report
        elif key.endswith("relative_position_bias_table"):
            attention = model.get_submodule(key.rpartition(".")[0])
            value = attention.resized_table(value)  # type: ignore[operator]
        elif key == "patch_embed.proj.weight":
            patch = model.get_parameter(key).shape[-2:]
            if value.shape[-2:] != patch:
                value = resample_patch_embed(value, list(patch))
        out[key] = value
    return out


def pretrained_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Like `checkpoint_filter_fn`, but also convert plain Swin weights (tag swin_in1k)."""
    if is_plain_swin(state_dict):
        state_dict = from_plain_swin(state_dict, model)
    return checkpoint_filter_fn(state_dict, model)
