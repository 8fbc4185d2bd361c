"""Augmentation of batches, and the keys that its random numbers come from."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from acmix_zoo.data.augment import Augment, Pixels, image_keys, shift_and_flip, uniforms

KEYS = image_keys(3, images=np.arange(64))


PIXELS = Pixels(16, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), "bicubic", 1.0)


def crop_transform(augment: str, crop_scale: tuple[float, float]) -> Any:
    pixels = Pixels(8, (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0)
    return Augment(pixels, augment, crop_scale=crop_scale, hflip=0.0)


def test_crops_keep_the_given_fraction_of_the_image() -> None:
    ramp = Image.fromarray(np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None], (64, 64)).copy()).convert("RGB")
    heights = {}
    for smallest in (0.09, 0.81):
        augment = crop_transform("crop", (smallest, smallest))
        images = [augment.image(ramp, key) for key in range(20)]
        heights[smallest] = np.mean([int(image.max()) - int(image.min()) for image in images])
    # A crop has 64·√0.09 = 19 or 64·√0.81 = 58 rows times √(3/4) to √(4/3), of which the 8 output rows span 7/8.
    assert 12 < heights[0.09] < 22 and 43 < heights[0.81] < 58


def test_only_imagenet_changes_colours() -> None:
    grey = Image.new("RGB", (64, 64), (128, 128, 128))

    def means(augment: str) -> set[float]:
        transform = crop_transform(augment, (0.25, 1.0))
        return {float(transform.image(grey, key).mean()) for key in range(5)}

    assert means("crop") == {128.0} and len(means("imagenet")) > 1
    jitters = [type(step).__name__ for step in crop_transform("3a", (0.25, 1.0)).transform.transforms]
    assert "ColorJitter" in jitters  # 3-Augment contains it, unlike timm's other policies


def test_shift_and_flip_crops_the_padded_image() -> None:
    batch = np.random.default_rng(0).integers(0, 256, (64, 1, 16, 16), dtype=np.uint8)
    out = shift_and_flip(batch, 2, 0.5, KEYS)
    assert out.shape == batch.shape and out.dtype == np.uint8 and out.flags.c_contiguous
    kinds = set()
    for before, after in zip(batch, out, strict=True):
        padded = np.pad(before, ((0, 0), (2, 2), (2, 2)))
        crops = {(t, m, flip): padded[:, t : t + 16, m : m + 16][:, :, :: -1 if flip else 1]
                 for t in range(5) for m in range(5) for flip in (False, True)}  # fmt: skip
        kinds.add(next(key for key, crop in crops.items() if np.array_equal(crop, after)))
    assert {t for t, _, _ in kinds} == {m for _, m, _ in kinds} == set(range(5)) and {f for _, _, f in kinds} == {0, 1}
    assert np.array_equal(shift_and_flip(batch, 0, 0.0, KEYS), batch)
    assert np.array_equal(shift_and_flip(batch, 0, 1.0, KEYS), batch[..., ::-1])


@pytest.mark.gpu
def test_normalising_on_a_gpu_gives_the_same_bits() -> None:
    raw = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16).contiguous()
    assert torch.equal(PIXELS.normalize(raw.cuda()).cpu(), PIXELS.normalize(raw))


def test_keys_are_unique_and_uniform() -> None:
    """Every number changes the key, and random numbers are uniform and uncorrelated."""
    numbers = np.arange(10_000)
    keys = [image_keys(*start, images=numbers) for start in ((0, 0), (0, 1), (1, 0), (2**63, 5), (-1, 5))]
    assert len(np.unique(np.concatenate(keys))) == 50_000
    draws = uniforms(keys[0], 3)
    assert draws.min() >= 0 and draws.max() < 1
    shares = np.stack([np.histogram(column, 20, (0, 1))[0] for column in draws.T]) / 10_000
    assert np.abs(shares - 0.05).max() < 0.01
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.04
