"""Find models and weights by name or by path. timm builds them; this adds weight folders, files and helpful errors."""

import difflib
import os
from pathlib import Path
from typing import Any

import timm
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from torch import nn

from acmix_zoo.weights.build import build, read_config
from acmix_zoo.weights.checkpoint import build_file, build_path, check_architecture
from acmix_zoo.weights.hub import from_pretrained
from acmix_zoo.weights.locate import locate

_HUB = "hf-hub:"
_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


def list_models(filter: str = "", pretrained: bool = False) -> list[str]:
    """Names of this project's models, sorted.

    Args:
        filter: wildcard such as `"*swin*"`.
        pretrained: only those with weights, as `architecture.tag`.
    """
    names: list[str] = timm.list_models(filter, pretrained=pretrained)
    return [name for name in names if timm.models.model_entrypoint(name).__module__.startswith("acmix_zoo.")]


def create_model(name: str | Path, pretrained: bool | str | Path = False, **kwargs: Any) -> nn.Module:
    """Build a model, with or without weights.

    Args:
        name: a model (`acmix_resnet_pico`, or any name that timm knows), with a tag (`acmix_resnet_pico.fashion_mnist`)
            if there are several weights; or the path of a weight folder, a run folder or a checkpoint of
            `acmix-zoo fit`, or `hf-hub:org/name[@revision]`, whose weights are then loaded whatever `pretrained` says.
        pretrained: True for the default weights; a tag; or the path of a weight folder, a run folder or any checkpoint
            file.
        kwargs: num_classes, in_chans, drop_path_rate, features_only, ...: timm's and the model's own. With another
            num_classes than the weights have, the classifier is re-initialised. With different in_chans, the first
            convolution is adapted as in timm.

    Raises:
        ValueError: unknown model (the nearest names are told), no such weights, weights of another model.
        FileNotFoundError: the path does not exist. ConnectionError: weights on the Hub, which cannot be reached.
    """
    if isinstance(name, str) and name.startswith(_HUB):
        return from_pretrained(name.removeprefix(_HUB), **kwargs)
    if isinstance(name, Path) or _is_path(name):
        if isinstance(pretrained, str | Path):
            raise ValueError(f"create_model: {name} and {pretrained} both name weights; give a model and one path")
        return build_path(_existing(name), **kwargs)
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        raise ValueError(f"create_model: unknown model {name!r}; {_nearest(architecture)}")
    if isinstance(pretrained, str | Path) and _is_path(pretrained):
        return _from_path(architecture, _existing(pretrained), **kwargs)
    if isinstance(pretrained, str | Path):
        name, pretrained = f"{architecture}.{pretrained}", True
    tags = timm.models.get_arch_pretrained_cfgs(architecture)
    if name != architecture and name not in tags:
        known = ", ".join(key.partition(".")[2] for key in tags if "." in key)
        raise ValueError(f"create_model: {architecture} has no tag {name.partition('.')[2]!r}; tags: {known or 'none'}")
    if pretrained and not timm.models.is_model_pretrained(name):
        raise ValueError(
            f"create_model: there are no weights for {name}; models with weights: "
            f"{', '.join(list_models(pretrained=True)) or 'none here'}. Pass pretrained=False, or the path of weights"
        )
    try:
        return timm.create_model(name, pretrained=pretrained, **kwargs)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        cfg = timm.get_pretrained_cfg(name)
        raise ConnectionError(
            f"create_model: the weights of {name} are {cfg.hf_hub_id if cfg else ''} on the Hugging Face Hub, which "
            "cannot be asked (no network, or HF_HUB_OFFLINE is set), and they are not in its cache"
        ) from error


def _is_path(source: str | Path) -> bool:
    """Whether a name is meant as a path: it looks like one or, being no model's name, is there."""
    if isinstance(source, Path):
        return True
    separators = {os.sep, os.altsep or os.sep, "/"}
    if any(s in source for s in separators) or Path(source).suffix in _SUFFIXES:
        return True
    place = locate(source)
    is_there = place != Path(source) or (place / "config.json").is_file()
    return not timm.is_model(source.split(".")[0]) and is_there


def _existing(path: str | Path) -> Path:
    if not Path(path).exists():
        raise FileNotFoundError(
            f"create_model: {path} does not exist; expected a weight folder, a run folder or a checkpoint file"
        )
    return Path(path)


def _nearest(architecture: str) -> str:
    own = list_models()
    near = difflib.get_close_matches(architecture, own, n=3) or difflib.get_close_matches(
        architecture, timm.list_models(), n=3
    )
    return f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(own)}, and timm's models"


def _from_path(architecture: str, path: Path, **kwargs: Any) -> nn.Module:
    """Build `architecture` with the weights of a folder or a file."""
    path = locate(path)
    if path.is_dir():
        check_architecture(read_config(path), architecture, path)
        return build(path, **kwargs)
    return build_file(architecture, path, **kwargs)
