"""Build models from checkpoint files, with another classifier or other input channels if asked for, as in timm.

A checkpoint of `acmix-zoo fit` names its network. For any other file, the caller has to name it.
"""

from pathlib import Path
from typing import Any, cast

import timm
from timm.models import adapt_input_conv
from torch import nn

from acmix_zoo.weights.build import build, described, read_described
from acmix_zoo.weights.load import copy_in, translated
from acmix_zoo.weights.locate import locate
from acmix_zoo.weights.read import Source, State


def build_path(path: str | Path, **kwargs: Any) -> nn.Module:
    """Build the model of a weight folder, a run folder or a checkpoint of `acmix-zoo fit`, with its weights.

    Args:
        path: path of the folder or file.
        kwargs: arguments for timm, such as num_classes, in_chans or drop_path_rate.

    Raises:
        FileNotFoundError: `path` does not exist, or is neither a weight folder nor a run folder. ValueError: the
            content is damaged or unsafe, or does not name its network.
    """
    place = locate(path)
    if place.is_dir():
        return build(place, **kwargs)
    if place.name == "model.safetensors" and (place.parent / "config.json").is_file():
        return build(place.parent, **kwargs)
    if not place.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a weight folder, a run folder or a checkpoint file")
    return _build_checkpoint(place, **kwargs)


def _build_checkpoint(path: Path, **kwargs: Any) -> nn.Module:
    """Build the network of a Lightning checkpoint of a ClassificationTask."""
    checkpoint, config = read_described(path)
    if config is None:
        raise ValueError(
            f"create_model: {path} does not say which network its weights belong to. Expected a weight folder, a run "
            f'folder or a checkpoint of `acmix-zoo fit`. Name the network: create_model(NAME, pretrained="{path}")'
        )
    known, pretrained_cfg, arguments = described(config, path)
    return build_with(known, checkpoint, str(path), pretrained_cfg=pretrained_cfg, **{**arguments, **kwargs})


def build_file(architecture: str, path: Path, **kwargs: Any) -> nn.Module:
    """Build `architecture` with the weights of any checkpoint file.

    A checkpoint of a `ClassificationTask` describes its network. The arguments in this description are used here, too;
    `kwargs` take precedence over them.

    Raises:
        ValueError: the weights belong to another network, or are unreadable or unsafe.
    """
    _, config = read_described(path)
    if config is None:
        return build_with(architecture, path, str(path), **kwargs)
    check_architecture(config, architecture, path)
    return _build_checkpoint(path, **kwargs)


def check_architecture(config: dict[str, Any], architecture: str, where: Path) -> None:
    """
    Raises:
        ValueError: the weights described by `config` are not those of `architecture`.
    """
    theirs = config["architecture"]
    if theirs != architecture:
        raise ValueError(f"create_model: {where} holds weights of {theirs}, not of {architecture}")


def build_with(architecture: str, source: Source, where: str, **kwargs: Any) -> nn.Module:
    """Build `architecture` with the weights of a checkpoint file or state dict.

    As in timm, the classifier keeps its initial values if its number of classes differs from the stored one, and the
    first convolution is adapted to `in_chans`.

    Args:
        architecture: a model's name.
        source: the weights, as in `load_weights`.
        where: what to call `source` in error messages.
        kwargs: arguments of `timm.create_model`.

    Raises:
        ValueError: the weights belong to another network, or are unreadable or unsafe.
    """
    if kwargs.get("features_only"):
        raise ValueError(
            f"create_model: features_only does not work with {where}. Expected a weight folder; convert the file with "
            "`acmix-zoo convert`"
        )
    model = timm.create_model(architecture, **kwargs)
    state, own = translated(source, model), model.state_dict()
    cfg = cast(dict[str, Any], model.pretrained_cfg)
    for name in _names(cfg.get("first_conv")):
        key = f"{name}.weight"
        if key in own and key in state and own[key].ndim == state[key].ndim == 4:
            state[key] = _adapted(state[key], own[key].shape[1])
    fresh: set[str] = set()
    for name in _names(cfg.get("classifier")):
        if _classes(state, name) != _classes(own, name):
            fresh |= {key for key in (*own, *state) if key.startswith(f"{name}.")}
    copy_in(model, state, where, fresh=fresh)
    return model


def _adapted(weight: Any, channels: int) -> Any:
    """Adapt the weight of a first convolution from (O, stored, K, K) to (O, channels, K, K)."""
    stored = weight.shape[1]
    if stored == channels:
        return weight
    if stored == 3:
        return adapt_input_conv(channels, weight)
    return adapt_input_conv(channels, weight, base_chans=stored)  # only newer releases of timm have this argument


def _names(value: Any) -> tuple[str, ...]:
    """Return one of timm's layer fields, which may be None, a name or several names, as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value or ())


def _classes(state: State, classifier: str) -> int:
    weight = state.get(f"{classifier}.weight")
    return 0 if weight is None else len(weight)
