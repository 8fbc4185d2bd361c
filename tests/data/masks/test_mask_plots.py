"""The picture of images, masks and predicted masks."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib import get_data_path
from PIL import Image, ImageFont

from acmix_zoo.data.masks import mask_plots
from acmix_zoo.data.masks.mask_classes import VOID, default_palette
from acmix_zoo.data.masks.mask_plots import MaskExample, plot_masks


def test_columns_show_the_image_its_mask_and_the_prediction(tmp_path: Path) -> None:
    image = np.full((3, 10, 20), 90, np.uint8)
    truth = np.array([[0, 1], [1, VOID]], np.uint8)
    found = np.array([[1, 1], [0, 0]], np.uint8)
    path = plot_masks([MaskExample(image, truth, found)], ["sky", "road"], tmp_path / "masks.png")
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    sky, road = default_palette(2)
    centres = [
        [picture.getpixel((320 * column + x, 16 + y)) for y in (40, 120) for x in (80, 240)] for column in range(3)
    ]
    white = (255, 255, 255)
    assert centres == [[(90, 90, 90)] * 4, [sky, road, road, white], [road, road, sky, white]]


def test_the_legend_has_the_letters_of_other_alphabets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    font = Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    monkeypatch.setattr(mask_plots, "font_for", lambda line: ImageFont.truetype(str(font), 12))
    mask = np.zeros((4, 4), np.uint8)
    example = MaskExample(np.zeros((3, 4, 4), np.uint8), mask, mask)
    path = plot_masks([example], ["ж", "я"], tmp_path / "masks.png")
    with Image.open(path) as opened:
        legend = opened.crop((0, 16 + 320, 320, opened.height))
    # A font without a letter draws the same box in its place for every letter.
    assert legend.crop((18, 0, 34, 20)).tobytes() != legend.crop((178, 0, 194, 20)).tobytes()
