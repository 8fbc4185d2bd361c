"""Plot detections next to the annotated boxes. Matplotlib is imported when the first plot is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from acmix_zoo.data.boxes.box_dataset import BoxBatch
from acmix_zoo.data.fonts import plot_fonts

_MIN_SCORE = 0.5  # weaker detections are not drawn; there are many of them, because they raise the AP
_WIDTH = 5.0  # inches of an image


def plot_detections(
    batch: BoxBatch, found: Sequence[dict[str, Tensor]], class_names: Sequence[str], path: str | Path
) -> None:
    """Write a plot with the annotated boxes of each image on the left, and the detections on the right.

    Args:
        batch: images (3, H, W) uint8, and their targets.
        found: the detections in each image, as torchvision's detectors return them.
        class_names: the names of the classes; label 1 is the first one.
        path: output file.
    """
    from matplotlib.figure import Figure

    ratios = [image.shape[1] / image.shape[2] for image in batch.images]
    figure = Figure(figsize=(2 * _WIDTH, _WIDTH * sum(ratios) + 0.4 * len(ratios)), layout="constrained")
    rows = figure.subplots(len(batch.images), 2, squeeze=False, gridspec_kw={"height_ratios": ratios})
    for axes, image, target, detections in zip(rows, batch.images, batch.targets, found, strict=True):
        strong = detections["scores"] >= _MIN_SCORE
        shown = {name: values[strong].cpu() for name, values in detections.items()}
        titles = ("annotated", f"detected, score above {_MIN_SCORE}")
        for each, title, boxes in zip(axes, titles, (target, shown), strict=True):
            each.imshow(image.permute(1, 2, 0).numpy())
            each.set_title(title, fontsize=9)
            each.axis("off")
            _draw_boxes(each, boxes, class_names)
        for mask, label in zip(shown.get("masks", ()), shown["labels"].tolist(), strict=False):
            axes[1].contour(mask[0].numpy(), levels=[0.5], colors=[_colour(label)], linewidths=1)
    figure.savefig(path, dpi=100)


def _draw_boxes(axes: Any, boxes: Mapping[str, Tensor], class_names: Sequence[str]) -> None:
    """Draw boxes with the names of their classes and, if there are any, their scores.

    The name is above the box, or within it where it would leave the image.
    """
    from matplotlib.patches import Rectangle

    labels = boxes["labels"].tolist()
    scores = [f" {score:.2f}" for score in boxes["scores"].tolist()] if "scores" in boxes else [""] * len(labels)
    for (left, top, right, bottom), label, score in zip(boxes["boxes"].tolist(), labels, scores, strict=True):
        colour, size = _colour(label), (right - left, bottom - top)
        left, top = left - 0.5, top - 0.5  # imshow has the centre of the first pixel at 0, boxes have its corner there
        axes.add_patch(Rectangle((left, top), *size, fill=False, edgecolor=colour, linewidth=1.5))
        frame = {"facecolor": colour, "edgecolor": "none", "pad": 1, "alpha": 0.8}
        text = class_names[label - 1] + score
        height = axes.get_ylim()[0]  # of the image, in pixels, because its first row is on top
        side = "top" if top < 0.05 * height else "bottom"
        style = {"fontsize": 7, "fontfamily": plot_fonts(), "color": "white", "parse_math": False}
        axes.text(left, top, text, va=side, bbox=frame, **style)


def _colour(label: int) -> Any:
    from matplotlib import colormaps

    return colormaps["tab10"]((label - 1) % 10)
