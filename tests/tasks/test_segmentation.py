"""The segmentation task: exact metrics, losses, evaluation with windows and mirror images, and a short training."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

pytest.importorskip("lightning")
pytest.importorskip("segmentation_models_pytorch")

from support.tasks import write_masked_images
from support.training import make_trainer

from acmix_zoo.data.masks.mask_classes import VOID
from acmix_zoo.data.masks.mask_module import MaskDataModule
from acmix_zoo.tasks import SegmentationTask
from acmix_zoo.tasks.dense_evaluation import slide, window_starts, with_mirror
from acmix_zoo.tasks.segmentation_metrics import CrossEntropy, SegmentationMetrics, WeightedLoss

SMALL = {"decoder": "unet", "decoder_kwargs": {"decoder_channels": [16, 16, 8, 8, 8]}}


def make_task(**kwargs: Any) -> SegmentationTask:
    torch.manual_seed(0)
    return SegmentationTask("test_resnet", **{"num_classes": 3, **SMALL, **kwargs})


def random_images(count: int = 5, classes: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Return logits and masks of different sizes. The class 3 occurs nowhere."""
    pairs = []
    for i in range(count):
        logits = torch.randn(classes, 5 + i, 7)
        logits[3] = -99
        mask = torch.randint(0, 3, (5 + i, 7))
        mask[torch.rand(mask.shape) < 0.2] = VOID
        pairs.append((logits, mask))
    pairs.append((torch.randn(classes, 2, 2).index_fill(0, torch.tensor(3), -99), torch.full((2, 2), VOID)))
    return pairs


def test_metrics_are_those_of_all_pixels_together() -> None:
    """Compared with sets of pixels. Pixels without a class do not count, and neither does a class that never occurs."""
    metrics, images = SegmentationMetrics(4), random_images()
    for logits, mask in images:
        metrics.add_image(logits, mask)
    found, scores = metrics.compute(), metrics.class_scores()["IoU"]
    truth = torch.cat([mask[mask != VOID] for _, mask in images])
    guess = torch.cat([logits.argmax(0)[mask != VOID] for logits, mask in images])
    expected = [float(((truth == c) & (guess == c)).sum() / ((truth == c) | (guess == c)).sum()) for c in range(3)]
    assert scores[:3] == pytest.approx(expected) and math.isnan(scores[3])
    assert float(found["miou"]) == pytest.approx(sum(expected) / 3)
    assert float(found["pixel_accuracy"]) == pytest.approx(float((truth == guess).float().mean()))
    losses = [
        torch.nn.functional.cross_entropy(logits[None], mask[None], ignore_index=VOID) for logits, mask in images[:-1]
    ]
    assert float(found["loss"]) == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)
    metrics.reset()
    assert not metrics["confusion"].confmat.any()


def test_metrics_do_not_depend_on_how_images_are_shared_among_processes() -> None:
    """Their states are integers, which torchmetrics sums over processes."""
    images = random_images()
    combined, *parts = (SegmentationMetrics(4) for _ in range(3))
    for i, (logits, mask) in enumerate(images):
        combined.add_image(logits, mask)
        parts[i % 2].add_image(logits, mask)
    for name in ("confusion", "loss"):
        for state, reduce in combined[name]._reductions.items():
            total = getattr(combined[name], state)
            assert not total.is_floating_point() and reduce is not None
            assert torch.equal(total, sum(getattr(part[name], state) for part in parts))


def test_cross_entropy_weighs_classes_and_ignores_pixels() -> None:
    logits, masks = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    masks[0, :2] = VOID
    weights = [0.5, 1.0, 3.0]
    expected = torch.nn.functional.cross_entropy(logits, masks, torch.tensor(weights), ignore_index=VOID)
    torch.testing.assert_close(CrossEntropy(weights)(logits, masks), expected)
    torch.testing.assert_close(CrossEntropy([1, 2, 6])(logits, masks), expected)  # whole numbers, in Python
    expected = torch.nn.functional.cross_entropy(logits, masks, ignore_index=VOID)
    torch.testing.assert_close(CrossEntropy(None)(logits, masks), expected)


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "lovasz"])
def test_losses_reward_the_truth_and_ignore_the_rest(name: str) -> None:
    loss = WeightedLoss({name: 2.0}, None)
    masks = torch.randint(0, 3, (2, 6, 6))
    masks[:, 0] = VOID
    right = 20 * torch.nn.functional.one_hot(masks.clamp(max=2), 3).permute(0, 3, 1, 2).float()
    assert float(loss(right, masks)) < 0.01 < 0.5 < float(loss(-right, masks))
    changed = right.clone()
    changed[:, :, 0] = 99 * torch.randn(2, 3, 6)
    torch.testing.assert_close(loss(changed, masks), loss(right, masks))
    nothing = loss(right.requires_grad_(), torch.full_like(masks, VOID))  # a crop may be all void
    assert float(nothing.detach()) == 0
    nothing.sum().backward()
    assert right.grad is not None and not right.grad.any()


def test_impossible_settings_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"losses=\{'l2': 1\} is unknown\. Expected weights of some of cross_entropy"):
        make_task(losses={"l2": 1})
    with pytest.raises(ValueError, match=r"there are 2 class_weights\. Expected 3, one per class"):
        make_task(class_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"window=\[0, 8\] is not a size"):
        make_task(window=(0, 8))
    for overlap in (1.0, -0.5):  # one step per pixel; pixels that no window covers
        with pytest.raises(ValueError, match=f"window_overlap={overlap} is out of range"):
            make_task(window_overlap=overlap)


@pytest.mark.parametrize(("length", "window"), [(10, 4), (9, 4), (4, 4), (3, 4), (11, 3)])
def test_windows_cover_everything_and_overlap(length: int, window: int) -> None:
    starts = window_starts(length, window, 1 / 3)
    covered = {i for start in starts for i in range(start, min(start + window, length))}
    assert covered == set(range(length)) and starts == sorted(set(starts))
    assert max(starts) + window == max(length, window)
    assert all(b - a <= max(1, window * 2 / 3) for a, b in itertools.pairwise(starts))


def test_windows_and_mirrors_agree_for_a_network_of_single_pixels() -> None:
    images = torch.randn(2, 3, 11, 9)
    network = torch.nn.Conv2d(3, 4, 1)
    torch.testing.assert_close(slide(network, images, (4, 5), 1 / 3), network(images))
    torch.testing.assert_close(slide(network, images, (40, 50), 1 / 3), network(images))
    torch.testing.assert_close(with_mirror(network, images), network(images))
    seen: list[tuple[int, ...]] = []

    def watch(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return x.cumsum(-1)

    both = with_mirror(watch, images)
    torch.testing.assert_close(both, (images.cumsum(-1) + images.flip(-1).cumsum(-1).flip(-1)) / 2)
    assert seen == [(2, 3, 11, 9)] * 2


@pytest.fixture
def data(tmp_path: Path) -> MaskDataModule:
    folder = write_masked_images(tmp_path / "shapes")
    return MaskDataModule(str(folder), crop_size=(32, 32), batch_size=3)


def test_a_short_training_learns(data: MaskDataModule) -> None:
    task = make_task(lr=0.02, losses={"cross_entropy": 1.0, "dice": 0.5}, class_weights=[1.0, 2.0, 2.0])
    trainer = make_trainer(epochs=3, enable_checkpointing=False)
    trainer.fit(task, data)
    metrics = trainer.callback_metrics
    assert metrics["val/miou"] > 0.5 and metrics["val/pixel_accuracy"] > 0.7
    scores = task.class_scores["val"]["IoU"]
    assert list(scores) == ["ground", "grass", "water"]
    assert sum(scores.values()) / 3 == pytest.approx(float(metrics["val/miou"]))


def test_a_frozen_backbone_stays_unchanged(data: MaskDataModule) -> None:
    task = make_task(freeze_backbone=True, lr=0.1)
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    make_trainer(epochs=1, enable_checkpointing=False).fit(task, data)
    changed = {key for key, value in task.model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and all(key.startswith(("net.decoder.", "net.segmentation_head.")) for key in changed)


def test_scores_are_those_at_the_original_size(data: MaskDataModule) -> None:
    """A network that sees images at half the size is scored on every pixel of the masks."""
    data.augment = replace(data.augment, eval_resize=20)
    task = make_task(window=(16, 16), flip_eval=True)
    (batch, *_) = data.val_dataloader()
    assert batch.images.shape[-2:] == (20, 24) and batch.masks.shape[-2:] == (40, 48)
    task.eval()
    task.update_metrics(task.val_metrics, batch)
    assert int(task.val_metrics["confusion"].confmat.sum()) == int((batch.masks != VOID).sum())
    assert task.evaluation_options(task.hparams) == {"window": (16, 16), "flip_eval": True, "window_overlap": 1 / 3}


def test_predictions_do_not_depend_on_the_other_images_of_a_batch(data: MaskDataModule, tmp_path: Path) -> None:
    """An image that is smaller than the others is not padded before the network sees it."""
    folder = tmp_path / "shapes/images/test"
    with Image.open(folder / "1.png") as image:
        image.resize((30, 25)).save(folder / "1.png")
    data.predict, task = str(folder), make_task()
    together = make_trainer().predict(task, data)
    data.batch_size = 1
    alone = make_trainer().predict(task, data)
    assert together is not None and alone is not None
    for (_, mask), ((_, expected),) in zip(together[0], alone, strict=True):
        assert torch.equal(mask, expected)


def test_windows_are_summed_in_float32() -> None:
    task = make_task(window=(16, 16)).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert task(torch.randn(1, 3, 24, 24)).dtype == torch.bfloat16
        (logits,) = task.predict_logits(torch.randn(1, 3, 24, 24), [(24, 24)])
    overlap = logits[:, 8:16, 8:16]
    assert not torch.equal(overlap, overlap.bfloat16().float())


def test_predictions_have_the_size_of_the_image(data: MaskDataModule, tmp_path: Path) -> None:
    data.predict = str(tmp_path / "shapes/images/test")
    found = make_trainer().predict(make_task(), data)
    assert found is not None
    masks = [mask for batch in found for mask in batch]
    assert [mask.position for mask in masks] == [0, 1, 2]
    assert all(mask.mask.shape == (40, 48) and int(mask.mask.max()) < 3 for mask in masks)
