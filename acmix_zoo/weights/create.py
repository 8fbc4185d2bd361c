"""Build models by name or from weights of any kind: `create_model` and `from_pretrained`.

timm builds the networks that it knows by name. Weights that are given by a path or a repository are located, fetched,
read, checked against their recorded hash and built by this package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from torch import nn

from acmix_zoo.weights.build_checkpoint import build_checkpoint
from acmix_zoo.weights.build_folder import build_folder
from acmix_zoo.weights.description import describe_config, read_config
from acmix_zoo.weights.fetch import fetch
from acmix_zoo.weights.locate import Kind, Located, locate, locate_weights
from acmix_zoo.weights.names import list_models


def create_model(name: str | Path, pretrained: bool | str | Path = False, **kwargs: Any) -> nn.Module:
    """Build a model, with or without weights.

    Args:
        name: the name of a model (`acmix_resnet_pico`, or any name that timm knows), with a tag if there are several
            weights (`acmix_resnet_pico.fashion_mnist`). Or weights that name their network: a weight folder, a run
            folder, a checkpoint of `acmix-zoo fit`, or a repository of the Hub (`org/name[@revision]` or
            `hf-hub:org/name`). Such weights are loaded whatever `pretrained` says.
        pretrained: True for the default weights, a tag, or any weights: a weight folder, a run folder, a repository, or
            a checkpoint file of any kind.
        kwargs: arguments of timm and of the network, such as num_classes, in_chans, drop_path_rate or features_only. If
            num_classes differs from that of the weights, the classifier is re-initialised. If in_chans differs, the
            first convolution is adapted as in timm.

    Raises:
        ValueError: the model is unknown, there are no such weights, or they belong to another network.
        FileNotFoundError: the path does not exist. ConnectionError: the weights are on the Hub, which cannot be
        reached.
    """
    located = locate(name)
    if located.kind is not Kind.NETWORK:
        if isinstance(pretrained, str | Path):
            raise ValueError(f"{name} and {pretrained} both name weights. Expected a model and one path to weights")
        return _build(located, **kwargs)
    if isinstance(pretrained, str | Path):
        weights = locate_weights(located.architecture, pretrained)
        if weights.kind is not Kind.NETWORK:
            return _build(weights, located.architecture, **kwargs)
        if weights.architecture != located.architecture:
            raise ValueError(f"{pretrained} are weights of {weights.architecture}, not of {located.architecture}")
        located, pretrained = weights, True
    return _build_by_name(located, pretrained, **kwargs)


def from_pretrained(source: str | Path, *, token: str | None = None, **kwargs: Any) -> nn.Module:
    """Return the model of existing weights, on the Hub or on this machine.

    Args:
        source: "org/name", "org/name@revision" (a branch, tag or commit), a weight folder, a run folder, a checkpoint
            of `acmix-zoo fit`, or the name of weights. A path in the working directory takes precedence over a name or
            repository.
        token: for private repositories; by default the one of `hf auth login` or HF_TOKEN.
        kwargs: as in `create_model`.

    Returns:
        The model in training mode. Call `.eval()` to classify. Its sha256 was checked before it was loaded.

    Raises:
        FileNotFoundError: there is no such path, repository, revision or file. PermissionError: the token may not read
            it. ConnectionError: the Hub cannot be reached and the cache does not have it. ValueError: this is not a
            weight folder, or the weights are not those that its config.json describes.
    """
    located = locate(source, prefers_paths=True)
    if located.kind is Kind.NETWORK:
        return _build_by_name(located, True, **kwargs)
    return _build(located, token=token, **kwargs)


def _build(located: Located, architecture: str = "", token: str | None = None, **kwargs: Any) -> nn.Module:
    """Build the model of located weights. With `architecture`, they have to belong to that network."""
    path = fetch(located, token)
    if path.is_file():
        return build_checkpoint(path, architecture, **kwargs)
    if architecture:
        found = describe_config(read_config(path), path).architecture
        if found != architecture:
            raise ValueError(f"{located.name} holds weights of {found}, not of {architecture}")
    return build_folder(path, **kwargs)


def _build_by_name(network: Located, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Let timm build a network that it knows, with the weights that are registered for it if `pretrained` is True."""
    if pretrained and not timm.models.is_model_pretrained(network.name):
        raise ValueError(
            f"there are no weights for {network.name}. Expected one of "
            f"{', '.join(list_models(pretrained=True)) or 'no model'}; otherwise pass pretrained=False or the path of "
            "weights"
        )
    try:
        return timm.create_model(network.name, pretrained=pretrained, **kwargs)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        cfg = timm.get_pretrained_cfg(network.name)
        raise ConnectionError(
            f"the weights of {network.name} are {cfg.hf_hub_id if cfg else ''} on the Hugging Face Hub, which cannot "
            "be reached (there is no network, or HF_HUB_OFFLINE is set), and they are not in its cache"
        ) from error
