"""Any checkpoint file as a weight folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import timm
import torch

from acmix_zoo.weights.folder import write_folder
from acmix_zoo.weights.load import copy_in, translated


def convert(file: Path, name: str, folder: str | Path, record: Mapping[str, Any]) -> Path:
    """Write the weights of a checkpoint file as a weight folder; the number of classes is read off the file.

    Args:
        file: a checkpoint of the authors, Lightning, timm or plain torch, or a safetensors file.
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
    model = timm.create_model(known)
    state, cfg = translated(file, model), cast(dict[str, Any], model.pretrained_cfg)
    classifier = cfg.get("classifier")
    classes = state.get(f"{classifier}.weight")
    if classes is not None and len(classes) != model.num_classes:
        model = timm.create_model(known, num_classes=len(classes))
    copy_in(model, state, str(file))
    images = torch.randn(1, *cfg["input_size"], generator=torch.Generator().manual_seed(0))
    return write_folder(
        folder, model, architecture=architecture, pretrained_cfg={"tag": tag or None}, record=record, example=images
    )
