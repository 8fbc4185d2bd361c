"""ACmix networks that begin exactly where a plain network of attention ended: `from_swin`, `from_pvt`, `from_san`.

alpha is 1 and beta 0, so the convolution paths are silent at first, with their start in place. They wake up by beta:
its gradient is the loss's gradient times what the convolution gives, which is not zero, and from its first step on the
kernels have gradients too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, cast

import timm
from torch import nn

from acmix_zoo.models import acmix_pvt, acmix_san, acmix_swin
from acmix_zoo.models.plain_swin import swin_arguments, to_timm_names
from acmix_zoo.weights.load import unwrapped, without_block_wrappers
from acmix_zoo.weights.read import Source, State, read_state_dict

# The registered networks by what the shapes of the weights tell.
_SWINS = {tuple(shape.values()): name for name, shape in acmix_swin.WIDTHS_AND_DEPTHS.items()}
_PVTS = {depths: f"acmix_pvt_{size[0]}" for size, depths in acmix_pvt.DEPTHS.items()}
_SANS = {layers: f"acmix_san{depth}" for depth, layers in acmix_san.LAYERS.items()}


def from_swin(source: nn.Module | Source, **kwargs: Any) -> nn.Module:
    """An ACmix-Swin that gives the logits of a plain Swin, ready to be fine-tuned.

    Args:
        source: a Swin of timm or torchvision, of any size, window and image size, or its weights: a state dict, a
            weight folder, a safetensors or torch file, under timm's, torchvision's or Microsoft's names. Weights alone
            do not say the image size: it is read off Microsoft's masks, else taken for 224.
        kwargs: arguments of the network that shall differ: img_size, window_size (position tables are interpolated),
            num_classes, in_chans, drop_path_rate, ...

    Returns:
        An `ACmixSwin` in training mode, on the CPU.

    Raises:
        ValueError: not a Swin; Swin V2; a Swin without biases in its qkv.
    """
    args: dict[str, Any] = {}
    if isinstance(source, nn.Module):
        network = unwrapped(source)
        stored = plain_state(network)
        size = getattr(getattr(network, "patch_embed", None), "img_size", None)
        windows: list[Any] = [m.window_size for m in network.modules() if hasattr(m, "relative_position_bias_table")]
        if windows and all(isinstance(window, Sequence) for window in windows):
            args["window_size"] = (max(w[0] for w in windows), max(w[1] for w in windows))
    else:
        stored = plain_state(source)
        size = _masked_size(stored)
    state = to_timm_names(stored)
    args = swin_arguments(state) | args
    if size is not None and tuple(_pair(size)) != (224, 224):
        args["img_size"] = tuple(_pair(size))
    key = (args["embed_dim"], args["depths"], args["num_heads"])
    if key in _SWINS:
        args = {name: value for name, value in args.items() if name not in ("embed_dim", "depths", "num_heads")}
    return create_with(_SWINS.get(key, "acmix_swin_t"), state, args, kwargs)


def from_pvt(source: nn.Module | Source, **kwargs: Any) -> nn.Module:
    """An ACmix-PVT that gives the logits of a plain PVT (version 1), ready to be fine-tuned.

    Args:
        source: a PVT of this package, or the weights of any published one (tiny to large): a state dict, a weight
            folder, a safetensors or torch file, under the names of PVT's released code.
        kwargs: arguments of the network that shall differ: img_size (positions are interpolated), num_classes, ...

    Returns:
        A `PVT` in training mode, on the CPU.

    Raises:
        ValueError: not a PVT of the published widths; made for images that are not square, and no img_size was given.
    """
    state = plain_state(source)
    widths = tuple(state[f"pos_embed{i}"].shape[2] for i in range(1, 5) if f"pos_embed{i}" in state)
    if widths != acmix_pvt.EMBED_DIMS:  # heads cannot be read off the weights, but go with these widths
        raise ValueError(
            "from_pvt: expected a PVT (version 1) with stages of 64, 128, 320 and 512 channels; found "
            f"{f'stages of {widths}' if widths else f'keys like {_first(state)}'}"
        )
    depths = tuple(_count(state, rf"block{i}\.(\d+)\.norm1\.weight$") for i in range(1, 5))
    args: dict[str, Any] = _ends(state, "patch_embed1.proj.weight", "head.weight")
    args |= {} if depths in _PVTS else {"depths": depths}
    positions = state["pos_embed1"].shape[1]
    side = math.isqrt(positions)
    if side**2 != positions and "img_size" not in kwargs:
        raise ValueError(
            f"from_pvt: {positions} positions are not those of a square image; pass img_size=(height, width)"
        )
    args |= {} if side == 56 else {"img_size": side * 4}
    return create_with(_PVTS.get(depths, "acmix_pvt_s"), state, args, kwargs)


def from_san(source: nn.Module | Source, **kwargs: Any) -> nn.Module:
    """An ACmix-SAN that gives the logits of a plain SAN, pairwise or patchwise, ready to be fine-tuned.

    Args:
        source: a SAN of this package, or the weights of a published one, as in `from_pvt`.
        kwargs: arguments of the network that shall differ: num_classes, in_chans, drop_path_rate, ...

    Returns:
        A `SAN` in training mode, on the CPU.

    Raises:
        ValueError: not a SAN.
    """
    state = plain_state(source)
    stages = range(_count(state, r"layer(\d+)\.0\.sam\.conv1\.weight$"))
    if not stages or "conv_in.weight" not in state:
        raise ValueError(f"from_san: expected the weights of a SAN, found keys like {_first(state)}")
    layers = tuple(_count(state, rf"layer{i}\.(\d+)\.bn1\.weight$") for i in stages)
    args: dict[str, Any] = _ends(state, "conv_in.weight", "fc.weight")
    args |= {} if layers in _SANS else {"layers": layers}
    widths = tuple(len(state[f"conv{i}.weight"]) for i in stages)
    args |= {} if widths == acmix_san.WIDTHS else {"widths": widths}
    if "layer0.0.sam.conv_p.weight" in state:
        args["form"] = "pairwise"  # whose weights have the same shapes for all kernels; these are the published ones
        args |= {} if len(layers) == 5 else {"kernels": (3, *(7,) * (len(layers) - 1))}
    else:  # its features are those of one position and of a k×k patch
        features = (len(state[f"layer{i}.0.sam.conv_w.0.weight"]) for i in stages)
        relations = (len(state[f"layer{i}.0.sam.conv1.weight"]) for i in stages)
        kernels = tuple(math.isqrt(f // r - 1) for f, r in zip(features, relations, strict=True))
        args |= {} if kernels == acmix_san.KERNELS else {"kernels": kernels}
    return create_with(_SANS.get(layers, "acmix_san10"), state, args, kwargs)


def _count(state: State, pattern: str) -> int:
    return sum(bool(re.match(pattern, key)) for key in state)


def _first(state: State) -> str:
    return ", ".join(list(state)[:3])


def _ends(state: State, first: str, last: str) -> dict[str, Any]:
    return {"in_chans": state[first].shape[1], "num_classes": len(state[last]) if last in state else 0}


def plain_state(source: nn.Module | Source) -> State:
    """Return the weights of a network or of stored weights, without the key prefixes that wrappers add."""
    state = dict(unwrapped(source).state_dict()) if isinstance(source, nn.Module) else read_state_dict(source)
    state = without_block_wrappers(state)
    for key in state:
        if match := re.match(r"(.*\.)?(patch_embed1?\.proj|features\.0\.0|conv1|conv_in)\.weight$", key):
            prefix = match[1] or ""
            return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return state


# What the networks are by default, and need not be told.
_PLAIN: dict[str, Any] = {"patch_size": 4, "window_size": 7, "mlp_ratio": 4.0, "in_chans": 3, "num_classes": 1000}


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


def _masked_size(state: State) -> tuple[int, int] | None:
    """The (square) image that Microsoft's stored masks of the first stage were made for."""
    mask, patch = state.get("layers.0.blocks.1.attn_mask"), state.get("patch_embed.proj.weight")
    if mask is None or patch is None:
        return None
    side = math.isqrt(len(mask)) * math.isqrt(mask.shape[1]) * patch.shape[2]  # windows · positions · pixels
    return side, side


def create_with(name: str, state: State, args: dict[str, Any], kwargs: dict[str, Any]) -> nn.Module:
    """A registered network with the weights `state` of a plain one of `args`, which `kwargs` may override.

    timm's builder does what it does for every pretrained network: another classifier, other input channels.
    """
    args = {key: value for key, value in args.items() if value not in (_PLAIN.get(key), _pair(_PLAIN.get(key)))}
    whole = {**args, **kwargs}
    source = {
        "state_dict": state, "url": None, "hf_hub_id": None, "file": None, "tag": None,
        "num_classes": args.get("num_classes", 1000),
        "input_size": (args.get("in_chans", 3), *_pair(whole.get("img_size", 224))),
    }  # fmt: skip
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source, **whole)
    cast(dict[str, Any], model.pretrained_cfg).pop("state_dict", None)  # else the weights would be kept twice
    return model
