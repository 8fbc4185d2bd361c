"""Convert a checkpoint file of any kind to a weight folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import nn

from acmix_zoo.models.task_kinds import CLASSIFICATION
from acmix_zoo.weights.description import BUILDER_ARGUMENTS
from acmix_zoo.weights.folder_writer import write_folder
from acmix_zoo.weights.locate import Kind, locate
from acmix_zoo.weights.match import copy_weights
from acmix_zoo.weights.names import file_name, is_network_name
from acmix_zoo.weights.not_found import NotFoundError
from acmix_zoo.weights.read import State, read_state_dict
from acmix_zoo.weights.resolve import describe
from acmix_zoo.weights.translate import translated


def convert(
    source: str | Path,
    name: str,
    folder: str | Path,
    record: Mapping[str, Any],
    model_kwargs: Mapping[str, Any] | None = None,
) -> Path:
    """Convert a checkpoint to a weight folder.

    The numbers of classes and input channels are taken from the checkpoint.

    Args:
        source: a checkpoint of the authors, Lightning, timm or plain torch, or a safetensors file. A checkpoint of
            `acmix-zoo fit` and a weight folder also state the arguments of the network, its preprocessing and its
            classes, which are kept.
        name: `architecture` or `architecture.tag`; the tag may be new.
        folder: where to write. An existing weight folder is replaced once the new one verifies.
        record: how the weights were produced, for config.json; see `write_folder`.
        model_kwargs: arguments of the network that the checkpoint does not state, such as img_size.

    Returns:
        The folder.

    Raises:
        ValueError: the source is unreadable or unsafe, or holds the weights of a different network, of one for a
            different task than classification, or of one for another image size or window.
        FileNotFoundError: the source does not exist.
    """
    architecture, _, tag = name.partition(".")
    if tag and file_name(tag) != tag:
        raise ValueError(
            f"the tag {tag!r} cannot be part of a folder name. Expected letters, digits, `_`, `-` and `.`, not "
            "starting with `.` or `-`. Choose a different tag"
        )
    arguments = dict(model_kwargs or {})
    if unsuitable := sorted(arguments.keys() & {*BUILDER_ARGUMENTS, "num_classes", "in_chans"}):
        raise ValueError(
            f"--model-kwargs cannot set {', '.join(unsuitable)}. Expected arguments of the network's constructor that "
            "the file does not state, such as img_size=64. Leave out the rest"
        )
    known = locate(name if is_network_name(name) else architecture)  # the configuration to start from
    if known.kind is not Kind.NETWORK:
        raise NotFoundError(f"{architecture} is not the name of a network. Run `acmix-zoo list` to see all networks")
    described = describe(locate(source, prefers_paths=True))
    if described is not None and described.architecture != architecture:
        raise ValueError(
            f"{source} holds weights of {described.architecture}. Expected weights of {architecture}. Use --model "
            f"{described.architecture}"
        )
    if described is not None and described.task is not CLASSIFICATION:
        raise ValueError(
            f"{source} holds weights for {described.task.title}. Expected those of a classifier. Use `acmix-zoo export "
            f"{source} FOLDER`"
        )
    stated: dict[str, Any] = {}
    if described is not None:
        fields = described.pretrained_cfg
        arguments = {**described.arguments, **arguments, "pretrained_cfg": fields}
        stated = {key: getattr(fields, key) for key in ("license", "label_names", "label_descriptions")}
    try:
        model = timm.create_model(known.name, **arguments)
    except TypeError as error:
        raise ValueError(f"{architecture} cannot be built with {dict(model_kwargs or {})}: {error}") from error
    stored = read_state_dict(source)
    state = translated(stored, model)
    size = tuple(cast(dict[str, Any], model.pretrained_cfg)["input_size"])
    classes, channels = _stored_shape(model, state)
    pretrained_cfg: dict[str, Any] = {**stated, "tag": tag or None, **_cfg_for_channels(model, channels)}
    if (classes, channels) != (int(model.num_classes), size[0]):  # type: ignore[arg-type]
        model = timm.create_model(known.name, **{**arguments, "num_classes": classes, "in_chans": channels})
    copy_weights(model, state, str(source))
    _check_tables(stored, model, source, model_kwargs or {})
    images = torch.randn(1, channels, *size[1:], generator=torch.Generator().manual_seed(0))
    return write_folder(
        folder, model, architecture=architecture, pretrained_cfg=pretrained_cfg, record=record, example=images
    )


def _check_tables(stored: State, model: nn.Module, source: str | Path, given: Mapping[str, Any]) -> None:
    """Check that no position table was interpolated, which would change the logits.

    Raises:
        ValueError: one would, because the weights were made for another image size or window.
    """
    sizes = {key: len(value.flatten()) for key, value in model.state_dict().items()}
    for key, value in stored.items():
        own = next((name for name in sizes if key == name or key.endswith(f".{name}")), None)
        is_table = own is not None and own.rpartition(".")[2].startswith(("pos_embed", "relative_position_bias_table"))
        if own is not None and is_table and value.numel() != sizes[own]:
            raise ValueError(
                f"{source} was made for another image size or window: {key} has {value.numel():,} values. Expected "
                f"{sizes[own]:,}. State the size of the weights with --model-kwargs, such as img_size=64"
                + f", instead of {dict(given)}"
                * bool(given)
            )


def _stored_shape(model: nn.Module, state: State) -> tuple[int, int]:
    """Return the numbers of classes and input channels of stored weights. The default is those of the model."""
    cfg, own = cast(dict[str, Any], model.pretrained_cfg), model.state_dict()
    classifier, stem = (f"{cfg.get(key)}.weight" for key in ("classifier", "first_conv"))
    classes, channels = int(model.num_classes), int(cfg["input_size"][0])  # type: ignore[arg-type]
    if classifier in state:
        classes = len(state[classifier])
    if stem in state and own[stem].shape[1] == channels:
        channels = state[stem].shape[1]
    return classes, channels


def _cfg_for_channels(model: nn.Module, channels: int) -> dict[str, Any]:
    """Return the fields of timm's pretrained_cfg that depend on the number of channels: input size, mean and std."""
    cfg = cast(dict[str, Any], model.pretrained_cfg)
    stored, *size = cfg["input_size"]
    if channels == stored:
        return {}
    statistics = {key: (sum(cfg[key]) / len(cfg[key]),) * channels for key in ("mean", "std")}  # as timm does
    return {"input_size": (channels, *size), **statistics}
