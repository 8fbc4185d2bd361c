"""The one seam to timm's builder: how our networks are registered and where shipped weights are found."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features_fx import register_notrace_module
from torch import Tensor, nn

from acmix_zoo.layers import ACmix2d, WindowACmix

__all__ = ["IMAGENET", "SMALL", "build", "checkpoints_root", "default_cfgs", "register_model"]

# FX cannot follow control flow that depends on a map's size; timm's feature extraction keeps these two whole.
for layer in (ACmix2d, WindowACmix):
    register_notrace_module(layer)

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


@cache
def checkpoints_root() -> Path | None:
    """The folder of shipped weights: inside the package when it was installed from a wheel, beside it in a clone."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "checkpoints", package.parent / "checkpoints"):
        if folder.is_dir():
            return folder
    return None


def default_cfgs(base: Mapping[str, Mapping[str, Any]]) -> Any:
    """timm's default_cfgs for `{architecture: cfg}`, with an entry for every shipped weight where there are any.

    A shipped weight is a folder `checkpoints/<architecture>.<tag>`; what timm needs to know of it stands in its
    config.json. The first tag of an architecture, by name, is what `pretrained=True` means.
    """
    cfgs: dict[str, Any] = {}
    root = checkpoints_root()
    for architecture, cfg in base.items():
        shipped = sorted(root.glob(f"{architecture}.*/config.json")) if root else []
        for config in shipped:
            stored = json.loads(config.read_text(encoding="utf-8"))["pretrained_cfg"]
            cfgs[config.parent.name] = {**cfg, **stored, "file": str(config.parent / "model.safetensors")}
        if not shipped:  # beside weights timm would list an entry without a tag as one more weight
            cfgs[architecture] = dict(cfg)
    return generate_default_cfgs(cfgs)


def build(
    network: type[nn.Module],
    variant: str,
    pretrained: bool,
    feature_cfg: dict[str, Any],
    filter_fn: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A registered network, by timm's builder: pretrained weights, `num_classes`, `in_chans`, `features_only`.

    `feature_cfg` says how `features_only` is built (`out_indices`, `feature_cls`).
    """
    return build_model_with_cfg(
        network, variant, pretrained, pretrained_filter_fn=filter_fn, feature_cfg=feature_cfg, **kwargs
    )
