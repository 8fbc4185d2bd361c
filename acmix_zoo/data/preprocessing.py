"""Prepare an image for a network as in its evaluation, and find the names of its classes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn


class PreparedImage(NamedTuple):
    """An image as a network receives it.

    Attributes:
        tensor: (1, C, H, W), resized, cropped and normalised.
        picture: (H, W, 3) uint8, the same before it was normalised.
    """

    tensor: Tensor
    picture: npt.NDArray[np.uint8]


def prepare_image(image: Image.Image, model: nn.Module) -> PreparedImage:
    """Resize, crop and normalise an RGB image as the timm configuration of a model says."""
    config: dict[str, Any] = resolve_data_config(pretrained_cfg=model.pretrained_cfg)
    tensor: Tensor = create_transform(**config)(image)[None]  # (1, C, H, W)
    mean, std = (torch.tensor(config[name]).view(-1, 1, 1) for name in ("mean", "std"))
    levels = ((tensor[0] * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)  # (C, H, W)
    return PreparedImage(tensor, levels.expand(3, -1, -1).permute(1, 2, 0).numpy())


def class_names(model: nn.Module) -> list[str]:
    """Return the names of a model's classes, or "class 0", "class 1", … if its weights do not state them."""
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    return config.get("label_names") or [f"class {i}" for i in range(int(model.num_classes))]  # type: ignore[arg-type]
