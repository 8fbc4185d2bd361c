"""Any checkpoint file as a weight folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import timm
import torch

from acmix_zoo.weights.build import stored_network
from acmix_zoo.weights.folder import write_folder
from acmix_zoo.weights.load import copy_in, translated
from acmix_zoo.weights.locate import locate


def convert(file: Path, name: str, folder: str | Path, record: Mapping[str, Any]) -> Path:
    """Convert a checkpoint file to a weight folder.

    The numbers of classes and input channels are taken from the file.

    Args:
        file: a checkpoint of the authors, Lightning, timm or plain torch, or a safetensors file. A checkpoint of
            `acmix-zoo fit` also states the arguments of its network.
        name: `architecture` or `architecture.tag`.
        folder: where; a weight folder that is there is replaced once the new one verifies.
        record: what is known about their making, for config.json; see `write_folder`.

    Returns:
        The folder.

    Raises:
        ValueError: the file is unreadable, unsafe, or holds the weights of another network. FileNotFoundError.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise ValueError(f"convert: unknown model {architecture!r}; `acmix-zoo list` shows what there is")
    known = name if tag and timm.models.is_model_pretrained(name) else architecture  # whose image size, crop and so on
    theirs, arguments = stored_network(locate(file)) or (architecture, {})
    if theirs != architecture:
        raise ValueError(f"convert: {file} holds weights of {theirs}, not of {architecture}; give --model {theirs}")
    model = timm.create_model(known, **arguments)
    state, cfg, own = translated(file, model), cast(dict[str, Any], model.pretrained_cfg), model.state_dict()
    classifier, stem = (f"{cfg.get(key)}.weight" for key in ("classifier", "first_conv"))
    known_classes = int(model.num_classes)  # type: ignore[arg-type]
    classes = len(state[classifier]) if classifier in state else known_classes
    channels, *size = cfg["input_size"]
    given: dict[str, Any] = {"tag": tag or None}
    if stem in state and own[stem].shape[1] == channels != state[stem].shape[1]:
        channels = state[stem].shape[1]
        given["input_size"] = (channels, *size)
        given |= {key: (sum(cfg[key]) / len(cfg[key]),) * channels for key in ("mean", "std")}  # as timm does
    if (classes, channels) != (known_classes, cfg["input_size"][0]):
        model = timm.create_model(known, **{**arguments, "num_classes": classes, "in_chans": channels})
    copy_in(model, state, str(file))
    images = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(0))
    return write_folder(folder, model, architecture=architecture, pretrained_cfg=given, record=record, example=images)
