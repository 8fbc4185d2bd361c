"""`BoxLoaders`: loaders of images with boxes."""

from __future__ import annotations

from collections.abc import Mapping

from acmix_zoo.data.boxes.box_dataset import BoxDataset
from acmix_zoo.data.boxes.box_summary import summarize_boxes
from acmix_zoo.data.indexed_loaders import IndexedLoaders
from acmix_zoo.data.inspection import Inspection


class BoxLoaders(IndexedLoaders):
    """Loaders of a `BoxSource`. The augmentation in their options is a `BoxAugment`.

    Attributes:
        evaluation_size: maximum lengths of the shorter and the longer side of an image in evaluation, for the summary;
            None if they are not known.
    """

    dataset_class = BoxDataset
    evaluation_size: tuple[int, int] | None = None

    def summary(self, inspections: Mapping[str, Inspection], is_brief: bool = False) -> str:
        return summarize_boxes(self.source, self.splits, inspections, self.evaluation_size, is_brief)
