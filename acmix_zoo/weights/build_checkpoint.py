"""Build models from checkpoint files. As in timm, the number of classes and input channels may differ from the file.

A checkpoint of `acmix-zoo fit` names its network. For any other file, the caller has to name it.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import timm
from timm.models import adapt_input_conv
from torch import Tensor, nn

from acmix_zoo.models.task_kinds import CLASSIFICATION
from acmix_zoo.weights.build_network import build_task_network
from acmix_zoo.weights.description import TAG_FIELDS
from acmix_zoo.weights.load import load_weights
from acmix_zoo.weights.match import copy_weights
from acmix_zoo.weights.read import Source, State
from acmix_zoo.weights.resolve import DescribedCheckpoint, read_described
from acmix_zoo.weights.translate import translated


def build_checkpoint(path: Path, architecture: str = "", **kwargs: Any) -> nn.Module:
    """Build the network of a checkpoint file, with its weights.

    Args:
        path: the file.
        architecture: the name of the network. It may only be missing for a checkpoint of `acmix-zoo fit`, which also
            describes the arguments of the network.
        kwargs: arguments of `timm.create_model`. They take precedence over those in the checkpoint.

    Raises:
        ValueError: the weights belong to a different network, the file does not state its network and `architecture`
            is not given, or the file is unreadable or unsafe.
    """
    described = read_described(path)
    if described is not None and architecture in ("", described.network.architecture):
        return _build_described(described, path, architecture, **kwargs)
    if described is not None:
        raise ValueError(
            f"{path} holds weights of {described.network.architecture}. Expected weights of {architecture}"
        )
    if not architecture:
        raise ValueError(
            f"{path} does not state which network its weights belong to. Expected a weight folder, a run folder or a "
            f'checkpoint of `acmix-zoo fit`. For this file, give the network: create_model(NAME, pretrained="{path}"), '
            f"or `acmix-zoo convert {path} --model NAME` to make a weight folder of it"
        )
    model = _build_with(architecture, path, path, **kwargs)
    cfg: Any = model.pretrained_cfg
    for key in TAG_FIELDS & cfg.keys():  # timm's defaults, which describe other weights of this network
        cfg[key] = None
    cfg["num_classes"] = getattr(model, "num_classes", 0)  # a backbone has no classes
    return model


def _build_described(checkpoint: DescribedCheckpoint, path: Path, architecture: str, **kwargs: Any) -> nn.Module:
    network = checkpoint.network
    if network.task is not CLASSIFICATION and architecture:
        raise ValueError(
            f"{path} holds a network for {network.task.title}. Expected weights of a classifier. To use that network, "
            "pass the checkpoint as the model"
        )
    if network.task is not CLASSIFICATION:
        stored = _weights_of_task(checkpoint.content)
        return build_task_network(network, stored, path, **kwargs)
    arguments = {**network.arguments, **kwargs}
    return _build_with(
        network.architecture, checkpoint.content, path, pretrained_cfg=network.pretrained_cfg, **arguments
    )


def _weights_of_task(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of the network in a checkpoint of a task, where their names start with `model.`."""
    state: dict[str, Tensor] = content["state_dict"]
    return {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}


def _build_with(architecture: str, source: Source, path: Path, **kwargs: Any) -> nn.Module:
    """Build a network and copy the weights `source`, from the file `path`, into it.

    The number of classes is the stored one by default. As in timm, the classifier keeps its initial values if another
    number is given, the first convolution is adapted to `in_chans`, and `features_only` builds a backbone.
    """
    if kwargs.pop("features_only", False):
        backbone = timm.create_model(architecture, features_only=True, **kwargs)
        arguments = {name: value for name, value in kwargs.items() if name not in ("out_indices", "feature_cls")}
        network = _build_with(architecture, source, path, **{**arguments, "num_classes": 0})
        return load_weights(backbone, network.state_dict())
    model = timm.create_model(architecture, **kwargs)
    state, cfg = translated(source, model), cast(dict[str, Any], model.pretrained_cfg)
    stored_classes = max((_count_classes(state, name) for name in _layer_names(cfg.get("classifier"))), default=0)
    if "num_classes" not in kwargs and stored_classes not in (0, model.num_classes):
        model = timm.create_model(architecture, num_classes=stored_classes, **kwargs)
    own = model.state_dict()
    for name in _layer_names(cfg.get("first_conv")):
        key = f"{name}.weight"
        if key in own and key in state and own[key].ndim == state[key].ndim == 4:
            state[key] = _with_channels(state[key], own[key].shape[1])
    reinitialised: set[str] = set()
    for name in _layer_names(cfg.get("classifier")):
        if _count_classes(state, name) != _count_classes(own, name):
            reinitialised |= {key for key in (*own, *state) if key.startswith(f"{name}.")}
    if reinitialised and "num_classes" not in kwargs:
        warnings.warn(
            f"{path} has no weights for the classifier of {architecture}, so it keeps its initial values. Expected a "
            "classifier, or num_classes for a new one",
            stacklevel=4,
        )
    copy_weights(model, state, str(path), reinitialised=reinitialised)
    return model


def _with_channels(weight: Any, channels: int) -> Any:
    """Adapt the weight of a first convolution from (O, stored, K, K) to (O, channels, K, K)."""
    stored = weight.shape[1]
    if stored == channels:
        return weight
    if stored == 3:
        return adapt_input_conv(channels, weight)
    return adapt_input_conv(channels, weight, base_chans=stored)  # only newer releases of timm have this argument


def _layer_names(value: Any) -> tuple[str, ...]:
    """Return one of timm's layer fields, which may be None, a name or several names, as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value or ())


def _count_classes(state: State, classifier: str) -> int:
    weight = state.get(f"{classifier}.weight")
    return 0 if weight is None else len(weight)
