"""The colours of the overlays, and the outline of the position that a pixel belongs to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from acmix_zoo.app.overlays import attention_overlay, data_url, enlarged_picture, positive_overlay, signed_overlay
from acmix_zoo.explain.pixel_attention import PixelAttention

GREY = np.full((4, 4, 3), 128, np.uint8)


def test_red_speaks_for_a_class_and_blue_against_it() -> None:
    values = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    image = np.asarray(signed_overlay(GREY, values, 1.0)).astype(int)
    red, blue, pale = image[0, 0], image[0, 3], image[3, 0]
    assert red[0] > red[2] + 100 and blue[2] > blue[0] + 100 and np.ptp(pale) == 0 and pale[0] > 180
    assert np.ptp(np.asarray(signed_overlay(GREY, 0 * values, 0.0)).astype(int)) == 0


def test_the_strongest_value_has_the_strongest_colour() -> None:
    image = np.asarray(positive_overlay(GREY, torch.tensor([[0.0, 0.1], [0.1, 0.2]]))).astype(int)
    saturation = np.ptp(image, axis=2)
    assert saturation[3, 3] > saturation[0, 3] > saturation[0, 0] == 0


@pytest.mark.parametrize("head", [None, 1])
def test_attention_is_drawn_at_its_position_with_an_outline(head: int | None) -> None:
    weights = torch.zeros(2, 4, 4)
    weights[1, 0, 3] = 1
    overlay = attention_overlay(GREY, PixelAttention("layer", (0, 3), (1, 0), (2, 2), weights), head)
    image = np.asarray(overlay).astype(int)
    side = len(image)
    assert side == len(enlarged_picture(GREY)) >= 448 and side % 4 == 0
    corner, other = image[side // 8, -side // 8], image[side // 8, side // 8]
    assert np.ptp(corner) > 100 and np.ptp(other) == 0
    assert (image[side // 2, side // 4] == 255).all() and (image[side // 2 - 2, side // 4] == 0).all()
    assert data_url(overlay).startswith("data:image/png;base64,")
