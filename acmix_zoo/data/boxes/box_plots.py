"""Draw detections beside the annotated boxes. Matplotlib is imported when the first image is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from acmix_zoo.data.boxes.box_dataset import BoxBatch

_MIN_SCORE = 0.3  # weaker detections are not drawn
_WIDTH = 5.0  # inches of an image


def plot_detections(
    batch: BoxBatch, found: Sequence[dict[str, Tensor]], class_names: Sequence[str], path: str | Path
) -> None:
    """Draw the annotated boxes of each image on the left, and the detections with their scores on the right.

    Args:
        batch: images (3, H, W) uint8, and their targets.
        found: the detections in each image, as torchvision's detectors return them.
        class_names: the names of the classes; label 1 is the first one.
        path: output file.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    ratios = [image.shape[1] / image.shape[2] for image in batch.images]
    figure = Figure(figsize=(2 * _WIDTH, _WIDTH * sum(ratios) + 0.4 * len(ratios)), layout="constrained")
    rows = figure.subplots(len(batch.images), 2, squeeze=False, gridspec_kw={"height_ratios": ratios})
    colours = colormaps["tab10"]
    for (truth, detected), image, target, each in zip(rows, batch.images, batch.targets, found, strict=True):
        strong = each["scores"] >= _MIN_SCORE
        texts = [f"{class_names[label - 1]} {score:.2f}" for label, score in _pairs(each, strong)]
        for axes, title, boxes, labels, words in (
            (truth, "annotated", target["boxes"], target["labels"], [class_names[i - 1] for i in target["labels"]]),
            (detected, f"detected, score above {_MIN_SCORE}", each["boxes"][strong], each["labels"][strong], texts),
        ):
            axes.imshow(image.permute(1, 2, 0).numpy())
            axes.set_title(title, fontsize=9)
            axes.axis("off")
            for box, label, text in zip(boxes.tolist(), labels.tolist(), words, strict=True):
                _draw_box(axes, box, text, colours((label - 1) % 10))
        masks = each["masks"][strong, 0] if "masks" in each else ()
        for mask, label in zip(masks, each["labels"][strong].tolist(), strict=False):
            detected.contour(mask.cpu().numpy(), levels=[0.5], colors=[colours((label - 1) % 10)], linewidths=1)
    figure.savefig(path, dpi=100)


def _pairs(found: dict[str, Tensor], chosen: Tensor) -> list[tuple[int, float]]:
    return list(zip(found["labels"][chosen].tolist(), found["scores"][chosen].tolist(), strict=True))


def _draw_box(axes: Any, box: Sequence[float], text: str, colour: Any) -> None:
    from matplotlib.patches import Rectangle

    left, top, right, bottom = box
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.5))
    frame = {"facecolor": colour, "edgecolor": "none", "pad": 1, "alpha": 0.8}
    axes.text(left, top, text, fontsize=6, color="white", va="bottom", bbox=frame, parse_math=False)
