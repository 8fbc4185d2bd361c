"""Augmentation moves image and mask together and never interpolates masks; batches depend on (seed, epoch, image)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

pytest.importorskip("lightning")

from support.tasks import write_masked_images

from acmix_zoo.data.augment import Pixels, preserve_random_state
from acmix_zoo.data.masks.mask_augment import MaskAugment
from acmix_zoo.data.masks.mask_classes import VOID
from acmix_zoo.data.masks.mask_dataset import MaskBatch, MaskDataset
from acmix_zoo.data.masks.mask_images import Pair
from acmix_zoo.data.masks.mask_module import MaskDataModule
from acmix_zoo.data.samplers import EvalSampler

PIXELS = Pixels(28, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", 1.0)
FILL = (124, 116, 104)


def coded_pair(height: int = 30, width: int = 40) -> Pair:
    """Return an image of four flat quarters whose red channel is 50 times the class, and its mask."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 2 :], mask[:, width // 2 :] = 2, mask[:, width // 2 :] + 1
    mask[height // 2 :, width // 2 :] = 3
    image = np.stack([50 * mask, np.zeros_like(mask), np.zeros_like(mask)], -1)
    return Pair(Image.fromarray(image), mask)


def augmented(augment: MaskAugment, key: int) -> tuple[Tensor, Tensor]:
    with preserve_random_state():
        return augment(coded_pair(), key)


@pytest.mark.parametrize("key", range(6))
def test_image_and_mask_move_together(key: int) -> None:
    augment = MaskAugment(PIXELS, (24, 28), resize=(20, 60), hflip=0.5)
    image, mask = augmented(augment, key)
    assert image.shape == (3, 24, 28) and mask.shape == (24, 28) and mask.dtype == image.dtype == torch.uint8
    assert set(mask.unique().tolist()) <= {0, 1, 2, 3, VOID}
    flat = (mask != VOID) & (image[1] == 0)
    for value in range(4):
        reds = image[0][flat & (mask == value)].float()
        assert not len(reds) or (reds - 50 * value).abs().median() <= 2  # interpolation mixes only the borders
    padding = image[:, mask == VOID]
    assert (padding == torch.tensor(FILL)[:, None]).all()


def test_augmentation_depends_on_the_key_alone() -> None:
    augment = MaskAugment(PIXELS, (24, 28), resize=(20, 60), color_jitter=True)
    torch.manual_seed(1)
    first = augmented(augment, 7)
    state = torch.get_rng_state()
    torch.rand(5)
    assert all(torch.equal(a, b) for a, b in zip(first, augmented(augment, 7), strict=True))
    assert not torch.equal(first[0], augmented(augment, 8)[0])
    torch.set_rng_state(state)


def test_evaluation_resizes_only_the_image() -> None:
    augment = MaskAugment(PIXELS, (24, 28), resize=(20, 60), eval_resize=15, color_jitter=True).for_evaluation()
    image, mask = augmented(augment, 3)
    assert image.shape == (3, 15, 20) and np.array_equal(mask.numpy(), coded_pair().mask)


@pytest.fixture
def data(tmp_path: Path) -> MaskDataModule:
    """The data of a folder with images of two sizes."""
    folder = write_masked_images(tmp_path / "shapes", (7, 3, 2), (20, 24))
    for kind, mode in (("images", "RGB"), ("masks", "L")):
        Image.new(mode, (30, 16), 1).save(folder / kind / "val/1.png")
    return MaskDataModule(str(folder), crop_size=(16, 16), resize=(16, 32), batch_size=2, seed=3)


def test_the_order_and_augmentation_are_those_of_the_epoch(data: MaskDataModule) -> None:
    data.setup("fit")
    first, again = list(data.train_dataloader()), list(data.train_dataloader())
    assert len(first) == 3 and all(torch.equal(a.images, b.images) for a, b in zip(first, again, strict=True))
    loader = data.train_dataloader()
    loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
    other = list(loader)
    assert not all(torch.equal(a.masks, b.masks) for a, b in zip(first, other, strict=True))
    assert {int(i) for batch in other for i in batch.indices} <= set(range(7))


def test_images_of_several_sizes_are_padded(data: MaskDataModule) -> None:
    batch, single = data.val_dataloader()
    assert isinstance(batch, MaskBatch)
    assert batch.images.shape == (2, 3, 20, 30) and batch.masks.shape == (2, 20, 30)
    assert batch.sizes.tolist() == [[20, 24, 20, 24], [16, 30, 16, 30]]
    assert (batch.masks[0, :, 24:] == VOID).all() and (batch.masks[1, 16:] == VOID).all()
    assert batch.images[0, :, :, 24:].abs().max() < 0.02  # the mean colour
    assert single.indices.tolist() == [2]


def test_padding_images_have_no_class(data: MaskDataModule) -> None:
    """A process with fewer batches than others repeats images that must not be counted."""
    dataset = MaskDataset(data.splits["val"], data.augment.for_evaluation())
    counted = []
    for rank in range(2):
        for index in EvalSampler(3, 2, rank, 2):
            batch = dataset.__getitems__([index])
            assert (batch.indices >= 0).all() == bool((batch.masks != VOID).any())
            counted += [i for i in batch.indices.tolist() if i >= 0]
    assert sorted(counted) == [0, 1, 2]


def test_an_unreadable_image_is_skipped_in_training(data: MaskDataModule) -> None:
    data.setup("fit")
    Path(data.splits["train"].images.describe(0)).write_bytes(b"gone")
    with pytest.warns(UserWarning, match="skipped: image"):
        indices = [i for batch in data.train_dataloader() for i in batch.indices.tolist()]
    assert 0 not in indices and len(indices) == 5
