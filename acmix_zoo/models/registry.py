"""The only seam to timm: registering networks and their weights, and building a registered network.

A network's file registers its entry points with `register_model`. What it does not need to know, such as which weights
exist and where they come from, is added by `register_weights`.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    model_entrypoint,
    register_model,
    resolve_pretrained_cfg,
)
from timm.models._features import feature_take_indices  # not public, but timm's own models import it from here
from torch import Tensor, nn

from acmix_zoo.checksum import check_sha256
from acmix_zoo.models.features_only import feature_class

__all__ = [
    "IMAGENET",
    "SMALL",
    "build",
    "feature_take_indices",
    "generate_default_cfgs",
    "record_arguments",
    "register_model",
    "register_weights",
]

IMAGENET: dict[str, Any] = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "fixed_input_size": False,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "license": "mit",
}
SMALL: dict[str, Any] = {**IMAGENET, "num_classes": 10, "input_size": (3, 32, 32), "pool_size": (4, 4), "crop_pct": 1.0}
MEDIUM: dict[str, Any] = {**SMALL, "num_classes": 200, "input_size": (3, 64, 64)}


def register_weights(weights: Mapping[str, Mapping[str, Any]]) -> None:
    """Register weights of networks that timm already knows, ahead of the tags that it has.

    timm has no function that adds a tag to a registered network, so the network is registered again with all of them.
    The first tag of an architecture is the default, which `pretrained=True` means.

    Args:
        weights: `architecture.tag` → fields of timm's pretrained_cfg. They override those of the same tag, or of the
            network's default if the tag is new. `file` may be any path-like object; it is only asked for its path when
            the weights are loaded, so it may download or create the file then.
    """
    by_architecture: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for name, fields in weights.items():
        architecture, _, tag = name.partition(".")
        by_architecture[architecture][tag] = fields
    for architecture, tags in by_architecture.items():
        entry_point = model_entrypoint(architecture)
        default_cfgs = sys.modules[entry_point.__module__].default_cfgs
        known = default_cfgs[architecture]
        cfgs: dict[str, Any] = {}
        for tag, fields in tags.items():
            base = asdict(known.cfgs[tag]) if tag in known.cfgs else known.default.to_dict(remove_source=True)
            cfgs[tag] = {**base, **fields}
        # An entry without a tag is left out, because timm would list it as additional weights.
        cfgs.update({tag: cfg for tag, cfg in known.cfgs.items() if tag and tag not in tags})
        default_cfgs.update(generate_default_cfgs({f"{architecture}.{tag}": cfg for tag, cfg in cfgs.items()}))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", f"Overwriting {architecture} in registry")
            register_model(entry_point)


def build(
    network: type[nn.Module],
    variant: str,
    pretrained: bool,
    feature_cfg: dict[str, Any],
    filter_fn: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a registered network with timm's builder. Every entry point calls this.

    Args:
        network: the class of the network.
        variant: the registered name.
        pretrained: whether to load weights, of the tag in `kwargs` or the default one.
        feature_cfg: out_indices and feature_cls for `features_only`.
        filter_fn: translates the state dict of pretrained weights for a network, as in timm.
        kwargs: arguments of the network and of timm's builder (num_classes, in_chans, features_only, ...), and device
            and dtype, for the parameters.
    """
    device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
    if kwargs.get("features_only"):
        requested = feature_class(kwargs.pop("feature_cls", None), feature_cfg.get("feature_cls"))
        feature_cfg = {**feature_cfg, **({"feature_cls": requested} if requested else {})}
    if pretrained:
        overlay = kwargs.get("pretrained_cfg_overlay") or {}
        cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), overlay)
        if cfg.file:
            # Ask a path-like object for its path here: timm would hide its errors behind a FileNotFoundError.
            file = os.fspath(cfg.file)
            check_sha256(file)
            kwargs["pretrained_cfg_overlay"] = {**overlay, "file": file}
    with nullcontext() if device is None else torch.device(device):
        model = build_model_with_cfg(
            network, variant, pretrained, pretrained_filter_fn=filter_fn, feature_cfg=feature_cfg, **kwargs
        )
    return model if dtype is None else model.to(dtype=dtype)


def record_arguments(model: nn.Module, **arguments: Any) -> None:
    """Update the constructor arguments that timm keeps with the model, after a method has changed the network.

    `write_folder` and timm's `save_for_hf` then describe the network as it is now, so that it can be built again.
    """
    model._model_args = {**getattr(model, "_model_args", {}), **arguments}  # type: ignore[assignment]
    if "img_size" in arguments:  # timm 1.0.31 stores the size twice
        model._traits = {**getattr(model, "_traits", {}), "img_size": arguments["img_size"]}  # type: ignore[assignment]
