"""Batches of images that are read in threads."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from timm.models import PretrainedCfg
from torch import Tensor

from acmix_zoo.data import UnreadableImage
from acmix_zoo.data.image_loading import evaluation_transform, load_batches


def to_tensor(image: Image.Image) -> Tensor:
    return torch.full((1, 1, 1), float(image.getpixel((0, 0))))  # type: ignore[arg-type]


def test_batches_are_in_order_and_leave_out_unreadable_images() -> None:
    def reader(number: int) -> Image.Image:
        if number in (1, 4, 5):
            raise UnreadableImage(f"image {number} cannot be read")
        return Image.new("L", (1, 1), number)

    readers = [lambda number=number: reader(number) for number in range(7)]  # type: ignore[misc]
    batches = list(load_batches(readers, to_tensor, 2))
    assert [batch.numbers for batch in batches] == [[0], [2, 3], [], [6]]
    assert [batch.images.flatten().tolist() for batch in batches] == [[0], [2, 3], [], [6]]
    assert [list(batch.problems) for batch in batches] == [[1], [], [4, 5], []]
    assert str(batches[0].problems[1]) == "image 1 cannot be read"
    assert not list(load_batches([], to_tensor, 2))


def test_the_transform_follows_the_configuration_of_the_network() -> None:
    cfg = PretrainedCfg(input_size=(3, 8, 8), crop_pct=1.0, mean=(0.5,) * 3, std=(0.5,) * 3).to_dict()
    x = evaluation_transform(cfg)(Image.new("RGB", (20, 10), (255, 0, 0)))
    assert x.shape == (3, 8, 8) and torch.equal(x[:, 0, 0], torch.tensor([1.0, -1.0, -1.0]))


def test_images_become_grey_for_networks_with_one_channel(tmp_path: Path) -> None:
    cfg = PretrainedCfg(input_size=(1, 8, 8), crop_pct=1.0, mean=(0.0,), std=(1.0,)).to_dict()
    assert evaluation_transform(cfg)(Image.new("RGB", (8, 8), "white")).shape == (1, 8, 8)


def test_networks_for_other_than_grey_and_rgb_images_are_rejected() -> None:
    with pytest.raises(ValueError, match="takes 4 channels, but image files are grey or RGB"):
        evaluation_transform({"input_size": (4, 8, 8), "mean": (0.5,) * 4, "std": (0.5,) * 4})
