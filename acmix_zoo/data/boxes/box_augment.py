"""Resize and flip an image together with its boxes and masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat, Mask

from acmix_zoo.data.augment import Pixels, uniforms
from acmix_zoo.data.boxes.coco_api import decode_masks
from acmix_zoo.data.boxes.objects import Objects, clip_boxes

Target = dict[str, Tensor]
"""boxes (N, 4) float32: left, top, right and bottom in pixels; labels (N,) int64 from 1, because 0 is the background;
iscrowd (N,) int64; area (N,) float32; and masks (N, H, W) uint8 if masks are used."""


@dataclass(frozen=True)
class BoxAugment:
    """Augmentation of images with boxes. Its random numbers depend only on the key of the image.

    Attributes:
        pixels: normalisation.
        sizes: lengths of the shorter side, of which each image gets one at random; () to keep its size.
        max_size: maximum length of the longer side.
        hflip, vflip: probability of a horizontal and of a vertical flip.
    """

    pixels: Pixels
    sizes: tuple[int, ...] = ()
    max_size: int = 1333
    hflip: float = 0.0
    vflip: float = 0.0

    def for_evaluation(self) -> BoxAugment:
        """Return the augmentation of images in evaluation: none, because the detector resizes them."""
        return BoxAugment(self.pixels)

    def __call__(self, image: Image.Image, objects: Objects, key: int) -> tuple[Tensor, Target]:
        """Augment an image.

        Args:
            image: RGB image of size (W, H).
            objects: its objects, in pixels.
            key: the key of the image, see `acmix_zoo.data.augment.image_keys`.

        Returns:
            The image (3, h, w) uint8, and its target in pixels of the result, without boxes outside the image.
        """
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W)
        height, width = pixels.shape[1:]
        # The size may not have been known before, or be smaller than the annotation states.
        clipped, is_inside = clip_boxes(objects.boxes, (width, height))
        objects = objects._replace(boxes=clipped).select(is_inside)
        parts: dict[str, Any] = {"image": pixels, **_geometry(objects, height, width)}
        pick, hflip, vflip = uniforms(np.array([key], np.uint64), 3)[0]
        if self.sizes:
            size = scaled_size(height, width, self.sizes[int(pick * len(self.sizes))], self.max_size)
            parts = {name: transforms.resize(part, list(size), antialias=True) for name, part in parts.items()}
        if hflip < self.hflip:
            parts = {name: transforms.horizontal_flip(part) for name, part in parts.items()}
        if vflip < self.vflip:
            parts = {name: transforms.vertical_flip(part) for name, part in parts.items()}
        scale = parts["image"].shape[1] * parts["image"].shape[2] / (height * width)
        target = {name: part.as_subclass(Tensor) for name, part in parts.items() if name != "image"}
        target |= {
            "labels": torch.from_numpy(objects.classes + 1),
            "iscrowd": torch.from_numpy(objects.is_crowd.astype(np.int64)),
            "area": torch.from_numpy(objects.areas) * scale,
        }
        return parts["image"].contiguous(), target


def scaled_size(height: int, width: int, side: int, max_size: int) -> tuple[int, int]:
    """Return (height, width), scaled to a shorter side of `side` pixels and a longer one of at most `max_size`."""
    scale = min(side / min(height, width), max_size / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _geometry(objects: Objects, height: int, width: int) -> dict[str, Any]:
    """Return boxes and masks as tensors that torchvision transforms together with the image."""
    boxes = BoundingBoxes(torch.from_numpy(objects.boxes), format=BoundingBoxFormat.XYXY, canvas_size=(height, width))
    geometry: dict[str, Any] = {"boxes": boxes}
    if objects.masks is not None:
        geometry["masks"] = Mask(torch.from_numpy(decode_masks(objects.masks, height, width)))
    return geometry


def trainable_target(target: Target) -> Target:
    """Return the target of training: without crowds, and without boxes that are smaller than a pixel after resizing."""
    sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
    kept = (sides >= 1).all(1) & (target["iscrowd"] == 0)
    return {name: target[name][kept] for name in ("boxes", "labels", "masks") if name in target}
