"""Prepare one image for a network as in its evaluation, together with what the network then sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from timm.data import resolve_data_config
from torch import Tensor, nn

from acmix_zoo.data.image_loading import evaluation_transform


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
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]  # timm's contract
    tensor = evaluation_transform(cfg)(image).unsqueeze(0)  # (1, C, H, W)
    config = resolve_data_config(pretrained_cfg=cfg)
    return PreparedImage(tensor, without_normalisation(tensor, config["mean"], config["std"])[0])


def without_normalisation(batch: Tensor, mean: Sequence[float], std: Sequence[float]) -> npt.NDArray[np.uint8]:
    """Return normalised images (B, C, H, W) as pictures (B, H, W, 3), given the mean and deviation of each channel."""
    offset, scale = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))  # (C, 1, 1)
    levels = ((batch * scale + offset).clamp(0, 1) * 255).round().to(torch.uint8)  # (B, C, H, W)
    return levels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
