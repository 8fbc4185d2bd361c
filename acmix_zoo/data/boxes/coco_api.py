"""Which library computes COCO's metric and decodes its masks: faster-coco-eval or pycocotools."""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np


class CocoApi(NamedTuple):
    """A library with COCO's metric and masks.

    Attributes:
        name: what torchmetrics calls it.
        mask: its module with functions for run-length encoded masks.
    """

    name: Literal["faster_coco_eval", "pycocotools"]
    mask: Any


@lru_cache
def coco_api() -> CocoApi:
    """Return the first library that is installed.

    Raises:
        ModuleNotFoundError: neither is.
    """
    candidates: tuple[tuple[Literal["faster_coco_eval", "pycocotools"], str], ...] = (
        ("faster_coco_eval", "faster_coco_eval.core.mask"),  # its results are the same, and it is faster
        ("pycocotools", "pycocotools.mask"),
    )
    for name, module in candidates:
        try:
            return CocoApi(name, importlib.import_module(module))
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError(
        "the COCO metric needs faster-coco-eval or pycocotools, and neither is installed. Install one with: "
        "pip install 'acmix-zoo[detect]'"
    )


def encode_mask(segmentation: Any, height: int, width: int) -> Any:
    """Return the segmentation of an object in a COCO file as one run-length encoded mask.

    Args:
        segmentation: polygons [[x1, y1, x2, y2, …], …], or a run-length encoding {size, counts}.
        height, width: size of the image.

    Raises:
        ValueError: it is something else.
    """
    mask = coco_api().mask
    try:
        if isinstance(segmentation, dict):
            is_compressed = isinstance(segmentation["counts"], str | bytes) and len(segmentation["size"]) == 2
            return segmentation if is_compressed else mask.frPyObjects(segmentation, height, width)
        polygons = [polygon for polygon in segmentation or [] if len(polygon) >= 6]  # fewer points have no area
        if not polygons:
            return mask.encode(np.zeros((height, width), np.uint8, order="F"))
        return mask.merge(mask.frPyObjects(polygons, height, width))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            "has a segmentation that cannot be read. Expected polygons [[x1, y1, x2, y2, …], …], or a run-length "
            "encoding {size, counts}"
        ) from error


def decode_masks(masks: list[Any], height: int, width: int) -> np.ndarray:
    """Return run-length encoded masks as (N, height, width) uint8.

    Masks of another size, as of an image file that is smaller than its annotation states, are cropped or padded.
    """
    decoded = np.zeros((len(masks), height, width), np.uint8)
    for target, encoded in zip(decoded, masks, strict=True):
        mask = coco_api().mask.decode(encoded)[:height, :width]
        target[: mask.shape[0], : mask.shape[1]] = mask
    return decoded


def mask_areas(masks: list[Any]) -> np.ndarray:
    """Return the number of pixels of each run-length encoded mask: (N,)."""
    return np.asarray(coco_api().mask.area(masks)) if masks else np.zeros(0)
