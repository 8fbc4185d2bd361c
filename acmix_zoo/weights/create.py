"""Build models by name or from weights of any kind: `create_model`, `from_pretrained` and `create_task_network`.

timm builds networks that are given by name. For weights that are given as a path or a repository, this package locates,
fetches and reads them, checks their sha256 and builds the network.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from torch import nn

from acmix_zoo.models.task_kinds import CLASSIFICATION, TaskKind
from acmix_zoo.models.task_network import TaskNetwork
from acmix_zoo.weights.build_checkpoint import build_checkpoint
from acmix_zoo.weights.build_folder import build_folder
from acmix_zoo.weights.build_network import copy_task_weights
from acmix_zoo.weights.class_names import drop_other_names
from acmix_zoo.weights.description import describe_config, read_config
from acmix_zoo.weights.fetch import fetch
from acmix_zoo.weights.locate import Kind, ModelLocation, locate, locate_weights
from acmix_zoo.weights.names import list_models
from acmix_zoo.weights.resolve import describe


def create_model(name: str | Path, pretrained: bool | str | Path = False, **kwargs: Any) -> nn.Module:
    """Build a model, with or without weights.

    Args:
        name: the name of a model (`acmix_resnet_pico`, or any name that timm knows), optionally with the tag of its
            weights (`acmix_resnet_pico.fashion_mnist`). Or weights that state their network: a weight folder, a run
            folder, a checkpoint of `acmix-zoo fit`, or a repository on the Hub (`org/name[@revision]` or
            `hf-hub:org/name`). These weights are always loaded, whatever the value of `pretrained`. They may also be
            those of a segmenter or a detector (`acmix_zoo.models.task_network.TaskNetwork`).
        pretrained: True for the default weights, a tag, or where to find weights: a weight folder, a run folder, a
            repository, or a checkpoint file of any kind.
        kwargs: arguments of timm and of the network, such as num_classes, in_chans, drop_path_rate or features_only. If
            num_classes differs from that of the weights, the classifier is re-initialised. If in_chans differs, the
            first convolution is adapted as in timm.

    Raises:
        ValueError: the model is unknown, there are no such weights, or they belong to a different network.
        FileNotFoundError: the path does not exist.
        ConnectionError: the weights are on the Hub, which cannot be reached.
    """
    location = locate(name)
    if location.kind is not Kind.NETWORK:
        if isinstance(pretrained, str | Path):
            raise ValueError(
                f"{name} and pretrained={str(pretrained)!r} both refer to weights. Expected only one of them. Leave "
                "out `pretrained`, or pass the name of a network as the model"
            )
        return _build(location, **kwargs)
    if isinstance(pretrained, str | Path):
        weights = locate_weights(location.architecture, pretrained)
        if weights.kind is not Kind.NETWORK:
            return _build(weights, location.architecture, **kwargs)
        if weights.architecture != location.architecture:
            raise ValueError(
                f"{pretrained} holds weights of {weights.architecture}. Expected weights of {location.architecture}"
            )
        location, pretrained = weights, True
    if pretrained:
        _check_has_weights(location, "Pass pretrained=False, or the path of weights")
    return _build_by_name(location, pretrained, **kwargs)


def from_pretrained(source: str | Path, *, token: str | None = None, **kwargs: Any) -> nn.Module:
    """Build a model from weights that state their network, on the Hub or on this machine.

    Args:
        source: "org/name", "org/name@revision" (a branch, tag or commit), a weight folder, a run folder, a checkpoint
            of `acmix-zoo fit`, or the name of weights. A path in the working directory takes precedence over a name or
            a repository.
        token: token for private repositories. The default is the one of `hf auth login` or HF_TOKEN.
        kwargs: as in `create_model`.

    Returns:
        The model in training mode. Call `.eval()` before inference. The weights of a folder or a repository are
        compared with the sha256 in its config.json before they are loaded.

    Raises:
        FileNotFoundError: the path, repository, revision or file does not exist.
        PermissionError: the token has no access to the repository.
        ConnectionError: the Hub cannot be reached, and the weights are not in its cache.
        ValueError: this is not a weight folder, or the weights do not match its config.json.
    """
    location = locate(source, prefers_paths=True)
    if location.kind is Kind.NETWORK:
        _check_has_weights(location, "Pass the path of weights")
        return _build_by_name(location, True, **kwargs)
    return _build(location, token=token, **kwargs)


def create_task_network(
    task: TaskKind,
    name: str,
    pretrained: bool | str = False,
    *,
    num_classes: int,
    model_kwargs: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build the network of any task: a classifier, or a `TaskNetwork`.

    Args:
        task: the task.
        name: name of the network, or of the backbone of a `TaskNetwork`.
        pretrained: as in `create_model`. Weights of a classifier go into the backbone, and those of the same task into
            the whole network. If their number of classes differs, the head keeps its initial values.
        num_classes: number of classes.
        model_kwargs: arguments of the network or backbone.
        options: the options of the `TaskNetwork`.

    Raises:
        ModuleNotFoundError: the network needs a package of an extra. The message names it.
        ValueError: as for `create_model`, or the weights are those of another task, or of other options.
    """
    arguments = dict(model_kwargs or {})
    if task is CLASSIFICATION:
        return create_model(name, pretrained, num_classes=num_classes, **arguments)
    architecture = name.partition(".")[0]
    network: TaskNetwork = task.network_class()(architecture, num_classes, model_kwargs=arguments, **options or {})
    location = locate_weights(architecture, pretrained) if isinstance(pretrained, str) else None
    described = describe(location) if location else None
    if location is None or described is None or described.task is not task:
        if pretrained:
            with warnings.catch_warnings():  # only the backbone is used
                warnings.filterwarnings("ignore", message=".*has no weights for the classifier")
                network.load_backbone(create_model(name, pretrained, **arguments))
        return network
    stored = _build(location)
    assert isinstance(stored, TaskNetwork)
    if stored.options != network.options:
        differing = [name for name, value in stored.options.items() if value != network.options[name]]
        found, expected = ({name: each.options[name] for name in differing} for each in (stored, network))
        raise ValueError(
            f"{pretrained} holds a network for {task.title} with {found}. Expected {expected}. Use the options of the "
            "weights"
        )
    copy_task_weights(network, stored.state_dict(), stored.num_classes, str(pretrained))
    network.pretrained_cfg = stored.pretrained_cfg
    return network


def _build(location: ModelLocation, architecture: str = "", token: str | None = None, **kwargs: Any) -> nn.Module:
    """Build the model to which weights belong. If `architecture` is given, it has to be that network."""
    path = fetch(location, token)
    kwargs = {name: value for name, value in kwargs.items() if value is not None}  # as timm does
    if "pretrained_cfg" in kwargs:
        raise ValueError(
            f"pretrained_cfg cannot be replaced for {location.name}, whose weights have their own. To change single "
            "fields, pass pretrained_cfg_overlay"
        )
    if path.is_file():
        return drop_other_names(build_checkpoint(path, architecture, **kwargs))
    if architecture:
        found = describe_config(read_config(path), path)
        if found.architecture != architecture:
            raise ValueError(
                f"{location.name} holds weights of {found.architecture}. Expected weights of {architecture}"
            )
        if found.task is not CLASSIFICATION:
            raise ValueError(
                f"{location.name} holds a network for {found.task.title}. Expected weights of a classifier. To use "
                "that network, pass the weights as the model"
            )
    return drop_other_names(build_folder(path, **kwargs))


def _check_has_weights(network: ModelLocation, advice: str) -> None:
    if not timm.models.is_model_pretrained(network.name):
        raise ValueError(
            f"there are no weights for {network.name}. Expected one of "
            f"{', '.join(list_models(pretrained=True)) or 'none'}. {advice}"
        )


def _build_by_name(network: ModelLocation, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Let timm build a network that it knows, with the weights that are registered for it if `pretrained` is True."""
    try:
        return drop_other_names(timm.create_model(network.name, pretrained=pretrained, **kwargs))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        cfg = timm.get_pretrained_cfg(network.name)
        raise ConnectionError(
            f"the weights of {network.name} are {cfg.hf_hub_id if cfg else ''} on the Hugging Face Hub, which cannot "
            "be reached (there is no connection, or HF_HUB_OFFLINE is set), and they are not in its cache. Download "
            "them once with a connection, choose weights that are on this machine (`acmix-zoo list --pretrained`), or "
            "start without weights (pretrained=False, or --from-scratch of `acmix-zoo train`)"
        ) from error
