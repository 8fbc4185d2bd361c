"""`TaskViews`: what a task shows to the person who trains it, in lines and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image


class ShownTarget(NamedTuple):
    """A picture of a training image, and its target in words."""

    picture: Image.Image
    title: str


class TaskViews:
    """The parts of a task that only people see. By default, there is nothing to see."""

    def remarks(self) -> list[str]:
        """Return lines to print before the first step."""
        return []

    def show_target(self, picture: Image.Image, batch: Any, number: int, class_names: Sequence[str]) -> ShownTarget:
        """Return a picture of a training image with its target, so that the data can be checked.

        Args:
            picture: the image as the network receives it. It may be drawn on.
            batch: the batch that the image belongs to.
            number: number of the image in the batch.
            class_names: the names of the classes.
        """
        return ShownTarget(picture, "")

    def plot_examples(self, data: Any, path: Any) -> None:
        """Write an image of predictions beside the truth, for tasks where that says more than a number.

        Args:
            data: the data module.
            path: the PNG file.
        """
