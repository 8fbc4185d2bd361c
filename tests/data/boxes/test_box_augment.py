"""Boxes and masks are resized and flipped with their image, in a way that depends only on the key."""

import numpy as np
import pytest
import torch
from PIL import Image

from acmix_zoo.data.augment import Pixels
from acmix_zoo.data.boxes.box_augment import BoxAugment, scaled_size, trainable_target
from acmix_zoo.data.boxes.coco_api import encode_mask
from acmix_zoo.data.boxes.objects import Objects, make_objects

KEY = 12345
PIXELS = Pixels(48, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", 1.0)


def painted(box: tuple[int, int, int, int], size: tuple[int, int] = (64, 48)) -> tuple[Image.Image, Objects]:
    """Return a black image with a white rectangle, and its box and mask."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = 255
    mask = encode_mask([[left, top, right, top, right, bottom, left, bottom]], size[1], size[0])
    return Image.fromarray(pixels), make_objects([box], [4], masks=[mask])


def white_box(pixels: torch.Tensor) -> list[int]:
    """Return the bounding box of the bright pixels of an image (3, H, W), or of the ones in a mask (1, H, W)."""
    rows, columns = torch.nonzero(pixels.reshape(-1, *pixels.shape[-2:])[0] > (127 if pixels.max() > 1 else 0)).T
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [8, 4, 24, 20]),
        ({"hflip": 1.0}, [40, 4, 56, 20]),
        ({"vflip": 1.0}, [8, 28, 24, 44]),
        ({"sizes": (96,)}, [16, 8, 48, 40]),
        ({"sizes": (96,), "max_size": 96, "hflip": 1.0}, [60, 6, 84, 30]),
    ],
)
def test_boxes_and_masks_follow_the_image(options: dict[str, object], expected: list[int]) -> None:
    pixels, target = BoxAugment(PIXELS, **options)(*painted((8, 4, 24, 20)), KEY)
    assert pixels.dtype == torch.uint8 and target["masks"].shape == (1, *pixels.shape[1:])
    assert target["boxes"].tolist() == [expected]
    assert white_box(pixels) == expected == white_box(target["masks"])
    assert target["labels"].tolist() == [5]  # 0 is the background
    assert type(pixels) is type(target["boxes"]) is torch.Tensor


def test_areas_are_scaled() -> None:
    _, target = BoxAugment(PIXELS, sizes=(96,))(*painted((8, 4, 24, 20)), KEY)
    assert target["area"].tolist() == [4 * 256]


def test_random_numbers_depend_on_the_key_alone() -> None:
    augment = BoxAugment(PIXELS, sizes=(32, 40, 48, 56), hflip=0.5)
    sample = painted((8, 4, 24, 20))
    shapes = [tuple(augment(*sample, key)[0].shape) for key in range(30)]
    flips = [augment(*sample, key)[1]["boxes"][0, 0].item() / shape[2] > 0.5 for key, shape in enumerate(shapes)]
    assert {shape[1] for shape in shapes} == {32, 40, 48, 56}
    assert {*flips} == {True, False}
    torch.manual_seed(7)
    again = [tuple(augment(*sample, key)[0].shape) for key in range(30)]
    assert again == shapes


def test_scaled_size_limits_the_longer_side() -> None:
    assert scaled_size(480, 640, 800, 1333) == (800, 1067)
    assert scaled_size(480, 960, 800, 1333) == (666, 1333)


def test_an_image_without_objects() -> None:
    image, _ = painted((8, 4, 24, 20))
    pixels, target = BoxAugment(PIXELS, sizes=(96,), hflip=1.0)(image, make_objects([], [], masks=[]), KEY)
    assert target["boxes"].shape == (0, 4) and target["masks"].shape == (0, *pixels.shape[1:])


def test_boxes_are_clipped_to_the_file() -> None:
    """The annotation may state a larger image than the file contains."""
    image, _ = painted((8, 4, 24, 20))
    _, target = BoxAugment(PIXELS)(image, make_objects([(50, 40, 90, 60), (70, 60, 90, 80)], [0, 0]), KEY)
    assert target["boxes"].tolist() == [[50, 40, 64, 48]]
    assert {len(part) for part in target.values()} == {1}


def test_masks_of_another_size_are_cropped_or_padded_to_the_file() -> None:
    """The annotation may state another size than the file has."""
    image, _ = painted((8, 4, 24, 20))
    mask = encode_mask([[50, 10, 90, 10, 90, 20, 50, 20]], 30, 100)
    pixels, target = BoxAugment(PIXELS)(image, make_objects([(50, 10, 90, 20)], [0], masks=[mask]), KEY)
    assert target["masks"].shape == (1, *pixels.shape[1:])
    assert white_box(target["masks"]) == [50, 10, 64, 20]


def test_training_leaves_out_crowds_and_tiny_boxes() -> None:
    image, _ = painted((8, 4, 24, 20))
    objects = make_objects([(0, 0, 9, 9), (0, 0, 9, 9), (5, 5, 5.5, 20)], [0, 1, 2], is_crowd=[True, False, False])
    target = trainable_target(BoxAugment(PIXELS)(image, objects, KEY)[1])
    assert target["labels"].tolist() == [2] and set(target) == {"boxes", "labels"}
