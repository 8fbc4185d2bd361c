"""The one seam to timm's builder: how our networks are registered and where shipped weights are found."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from timm.models._features import feature_take_indices  # not public, but timm's own models import it from here
from torch import Tensor, nn

from acmix_zoo.models.feature_maps import feature_class

__all__ = [
    "FETCH",
    "IMAGENET",
    "SMALL",
    "build",
    "check_sha256",
    "checkpoints_root",
    "default_cfgs",
    "record_arguments",
    "feature_take_indices",
    "nearest_recipe",
    "recipes_root",
    "register_model",
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

# How to come by weights that neither ship nor lie on the Hub, by "architecture.tag": each gives the path of a file.
# `acmix_zoo.weights` fills it in.
FETCH: dict[str, Callable[[], Path]] = {}


@cache
def checkpoints_root() -> Path | None:
    """The folder of shipped weights: inside the package when it was installed from a wheel, beside it in a clone."""
    return _shipped("checkpoints")


def recipes_root() -> Path | None:
    """The folder of shipped recipes; it lies where that of the weights does."""
    return _shipped("recipes")


def nearest_recipe(path: str | Path) -> str | None:
    """Return the path of the recipe whose name is closest to that of a file that does not exist, or None.

    Candidates are the YAML files in the same folder and the shipped recipes.
    """
    root = recipes_root()
    found = [*Path(path).parent.glob("*.yaml"), *(sorted(root.rglob("*.yaml")) if root else [])]
    names = {recipe.stem: recipe for recipe in reversed(found)}
    near = difflib.get_close_matches(Path(path).name.removesuffix(".yaml"), names, n=1)
    if not near:
        return None
    recipe, here = names[near[0]].absolute(), Path.cwd()
    return str(recipe.relative_to(here) if recipe.is_relative_to(here) else recipe)


def _shipped(name: str) -> Path | None:
    package = Path(__file__).resolve().parent.parent
    return next((place for place in (package / name, package.parent / name) if place.is_dir()), None)


def default_cfgs(base: Mapping[str, Mapping[str, Any]]) -> Any:
    """timm's default_cfgs for `{architecture or architecture.tag: cfg}`, with an entry for every shipped weight.

    A shipped weight is a folder `checkpoints/<architecture>.<tag>`; what timm needs to know of it stands in its
    config.json. The first tag of an architecture, shipped ones first and by name, is what `pretrained=True` means.
    """
    cfgs: dict[str, Any] = {}
    root = checkpoints_root()
    for name, cfg in base.items():
        architecture = name.partition(".")[0]
        shipped = sorted(root.glob(f"{architecture}.*/config.json")) if root else []
        for config in shipped:
            folder = json.loads(config.read_text(encoding="utf-8"))
            stored = {k: tuple(v) if isinstance(v, list) else v for k, v in folder["pretrained_cfg"].items()}
            stored["label_names"] = folder.get("label_names")  # timm expects them at the top level
            cfgs[config.parent.name] = {**cfg, **stored, "file": str(config.parent / "model.safetensors")}
        if name != architecture or not shipped:  # beside weights timm lists an entry without a tag as one more weight
            cfgs[name] = dict(cfg)
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

    `feature_cfg` configures `features_only` (`out_indices`, `feature_cls`). `device` and `dtype` are timm's factory
    arguments: the device on which the network is built, and the dtype of its tensors.
    """
    device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
    if kwargs.get("features_only"):
        requested = feature_class(kwargs.pop("feature_cls", None), feature_cfg.get("feature_cls"))
        feature_cfg = {**feature_cfg, **({"feature_cls": requested} if requested else {})}
    if pretrained:
        cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
        fetch = FETCH.get(f"{variant}.{cfg.tag}")
        if fetch and not cfg.file and not cfg.hf_hub_id:
            kwargs["pretrained_cfg_overlay"] = {**(kwargs.get("pretrained_cfg_overlay") or {}), "file": str(fetch())}
        elif cfg.file:
            check_sha256(Path(cfg.file))
    with nullcontext() if device is None else torch.device(device):
        model = build_model_with_cfg(
            network, variant, pretrained, pretrained_filter_fn=filter_fn, feature_cfg=feature_cfg, **kwargs
        )
    return model if dtype is None else model.to(dtype=dtype)


def record_arguments(model: nn.Module, **arguments: Any) -> None:
    """Update the constructor arguments that timm keeps with the model, after a method has changed the network.

    `write_folder` and timm's `save_for_hf` then describe the network in its present form, so that it can be rebuilt.
    """
    model._model_args = {**getattr(model, "_model_args", {}), **arguments}  # type: ignore[assignment]
    if "img_size" in arguments:  # timm 1.0.31 stores the size twice
        model._traits = {**getattr(model, "_traits", {}), "img_size": arguments["img_size"]}  # type: ignore[assignment]


def check_sha256(weights: Path) -> None:
    """Refuse weights (a file of a weight folder, or the folder) that are not those that its config.json describes.

    Raises:
        ValueError: the hashes differ; nothing is changed. What has no record beside it passes.
    """
    if weights.is_dir():
        weights = weights / "model.safetensors"
    config = weights.parent / "config.json"
    if not config.is_file() or not weights.is_file():
        return
    try:
        expected = json.loads(config.read_text(encoding="utf-8"))["acmix_zoo"]["sha256"]
    except (ValueError, KeyError, TypeError):  # another project's, or the user's own
        return
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ValueError(
            f"{weights} is not what {config} describes: sha256 {found} was found, {expected} is recorded. "
            "It was changed or damaged, and is not used; fetch or write the weight folder again"
        )
