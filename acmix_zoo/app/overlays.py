"""Draw values over the image that a network sees, as PNG files for a page with a light or dark background."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from torch import Tensor

from acmix_zoo.explain.pixel_attention import PixelAttention

Picture = npt.NDArray[np.uint8]
"""(H, W, 3), as the network sees it."""
FOR, AGAINST, ATTENDED = (196, 22, 28), (31, 95, 180), (193, 87, 26)
"""The colours of what speaks for a class and against it, and of attention."""
_SIDE = 448  # pixels of the picture to click on, at least


def signed_overlay(picture: Picture, values: Tensor, limit: float) -> Image.Image:
    """Lay signed values over a pale image: red for positive and blue for negative ones, opaque at ±`limit`.

    Args:
        picture: (H, W, 3).
        values: (h, w), enlarged to the size of the image.
        limit: the absolute value that is opaque.
    """
    array = _enlarged(values, picture)  # (H, W)
    colours = np.where(array[..., None] > 0, FOR, AGAINST)  # (H, W, 3)
    return _blend(picture, colours, np.abs(array) / (limit or 1.0))


def positive_overlay(picture: Picture, values: Tensor) -> Image.Image:
    """Lay values from zero to their maximum over a pale image, in one colour."""
    array = _enlarged(values, picture)  # (H, W)
    return _blend(picture, np.broadcast_to(ATTENDED, picture.shape), array / (array.max() or 1.0))


def attention_overlay(picture: Picture, attention: PixelAttention, head: int | None) -> Image.Image:
    """Lay the attention of one pixel over an enlarged image, and outline the position to which the pixel belongs.

    Args:
        picture: (H, W, 3).
        attention: weights of the heads for that pixel. Those of some layers are signed.
        head: the head to draw, or None for their mean.
    """
    large = enlarged_picture(picture)
    weights = attention.weights.detach().double().cpu()
    values = weights.mean(0) if head is None else weights[head]
    if values.min() < 0:
        overlay = signed_overlay(large, values, float(values.abs().max()))
    else:
        overlay = positive_overlay(large, values)
    if attention.query is not None:
        row, column = attention.query
        height, width = large.shape[0] / attention.grid[0], large.shape[1] / attention.grid[1]
        box = [column * width, row * height, (column + 1) * width - 1, (row + 1) * height - 1]
        draw = ImageDraw.Draw(overlay)
        draw.rectangle([box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2], outline="black", width=6)
        draw.rectangle(box, outline="white", width=2)
    return overlay


def enlarged_picture(picture: Picture) -> Picture:
    """Repeat the pixels of a small image, so that single ones can be seen and clicked on."""
    factor = -(-_SIDE // max(picture.shape[:2]))
    return picture.repeat(factor, 0).repeat(factor, 1)


def data_url(image: Image.Image) -> str:
    """Return an image as a URL that contains it, so that it is never written to a file."""
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"


def _enlarged(values: Tensor, picture: Picture) -> npt.NDArray[np.floating[Any]]:
    """Return values (h, w) for every pixel of an image (H, W, 3), without interpolation."""
    image = Image.fromarray(values.detach().float().cpu().numpy())
    return np.asarray(image.resize((picture.shape[1], picture.shape[0]), Image.Resampling.NEAREST))


def _blend(picture: Picture, colours: npt.NDArray[np.int_], opacity: npt.NDArray[np.floating[Any]]) -> Image.Image:
    """Blend colours (H, W, 3) with opacity (H, W) into a light grey version of the image."""
    pale = 180 + 75 * picture.mean(2, keepdims=True) / 255  # (H, W, 1)
    weight = 0.85 * opacity.clip(0, 1)[..., None]
    return Image.fromarray((pale * (1 - weight) + colours * weight).round().astype(np.uint8))
