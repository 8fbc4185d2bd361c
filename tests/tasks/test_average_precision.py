"""COCO's metric: known values, exact over processes, and independent of the order of the images."""

import pytest
import torch
from torch import Tensor

from acmix_zoo.tasks import average_precision
from acmix_zoo.tasks.average_precision import AveragePrecision

Image = tuple[dict[str, Tensor], dict[str, Tensor]]


def image(boxes: list[list[float]], labels: list[int], scores: list[float], truth: list[list[float]]) -> Image:
    """Return detections, and a target whose objects have the class 1."""
    detections = {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels), "scores": torch.tensor(scores)}
    corners = torch.tensor(truth).reshape(-1, 4)
    target = {
        "boxes": corners,
        "labels": torch.ones(len(corners), dtype=torch.int64),
        "iscrowd": torch.zeros(len(corners), dtype=torch.int64),
        "area": (corners[:, 2:] - corners[:, :2]).prod(1),
    }
    return detections, target


BOX = [10.0, 10.0, 60.0, 60.0]
SHIFTED = [10.0, 10.0, 60.0, 45.0]  # IoU 0.7 with BOX
HIT = image([BOX], [1], [0.9], [BOX])
CLOSE = image([SHIFTED], [1], [0.8], [BOX])
MISS = image([[70.0, 70.0, 90.0, 90.0]], [1], [0.7], [BOX])


def measure(*images: Image, numbers: list[int] | None = None, classes: int = 2) -> AveragePrecision:
    metric = AveragePrecision(classes)
    for number, each in zip(numbers or range(len(images)), images, strict=True):
        metric.add(number, *each)
    return metric


@pytest.mark.parametrize(
    ("images", "map50", "expected"),
    [
        ((HIT,), 1.0, 1.0),
        ((MISS,), 0.0, 0.0),
        ((CLOSE,), 1.0, 0.5),  # right for 5 of the 10 thresholds from 0.5 to 0.95
        ((HIT, CLOSE), 1.0, 0.5 + 0.5 * 51 / 101),  # recall 0.5 at the higher ones: 51 of 101 recall levels
    ],
)
def test_known_values(images: tuple[Image, ...], map50: float, expected: float) -> None:
    scores = measure(*images).compute()
    assert float(scores["map50"]) == pytest.approx(map50, abs=1e-6)
    assert float(scores["map"]) == pytest.approx(expected, abs=1e-6)


def test_scores_of_classes() -> None:
    """Each mean over the classes with objects is the metric of all classes."""
    boxes = [BOX, [70.0, 10.0, 90.0, 30.0]]
    wrong = image(boxes, [2, 2], [0.9, 0.8], boxes)  # of the first class, for objects of the first and the second
    wrong[1]["labels"][1] = 2
    metric = measure(HIT, CLOSE, wrong, classes=3)
    found = metric.compute()
    scores = metric.class_scores()
    assert list(scores) == ["AP", "AP50"]
    for name, total in (("AP", "map"), ("AP50", "map50")):
        first, second, third = scores[name]
        assert (first + second) / 2 == pytest.approx(float(found[total]), abs=1e-6)
        assert third != third  # NaN: there are no such objects
    assert scores["AP50"][0] != scores["AP50"][1]
    metric = measure(CLOSE)
    metric.compute()
    assert [metric.class_scores()[name][0] for name in ("AP", "AP50")] == pytest.approx([0.5, 1.0], abs=1e-6)


def test_an_image_counts_once() -> None:
    assert measure(HIT, MISS, HIT, numbers=[0, 1, 0]).compute() == measure(HIT, MISS).compute()


def test_crowds_are_ignored() -> None:
    detections, target = MISS
    crowd = image([BOX], [1], [0.95], [BOX])
    crowd[1]["iscrowd"] += 1
    assert measure((detections, target), crowd).compute() == measure((detections, target)).compute()


def test_without_detections_and_without_objects() -> None:
    nothing = image([], [], [], [BOX])
    nothing[0]["boxes"] = torch.zeros(0, 4)
    assert float(measure(nothing).compute()["map"]) == 0
    assert float(AveragePrecision(2).compute()["map"]) == 0


def test_reset() -> None:
    metric = measure(MISS)
    metric.reset()
    metric.add(0, *HIT)
    assert float(metric.compute()["map"]) == 1


def test_masks() -> None:
    metric = AveragePrecision(1, has_masks=True)
    detections, target = image([BOX], [1], [0.9], [BOX])
    masks = torch.zeros(1, 80, 80)
    masks[:, 10:60, 10:60] = 1
    half = masks.clone()
    half[:, 10:35] = 0  # IoU 0.5
    metric.add(0, {**detections, "masks": half[:, None] * 0.9}, {**target, "masks": masks.byte()})
    scores = metric.compute()
    assert float(scores["map"]) == 1 and float(scores["mask_map"]) == pytest.approx(0.1)
    assert float(scores["mask_map50"]) == 1


def test_processes_with_different_numbers_of_images_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchmetrics itself gathers the n-th image of each process, and fails if there is none."""
    images = [HIT, CLOSE, MISS, CLOSE, HIT]
    shares = [[1, 3, 4], [], [2, 0]]
    processes = [measure(*(images[i] for i in share), numbers=share) for share in shares]
    gathered = [image for process in processes for image in process.images()]
    alone = measure(*images).compute()
    monkeypatch.setattr(average_precision, "gather", lambda own: gathered)
    for process in processes:
        assert process.compute() == alone
