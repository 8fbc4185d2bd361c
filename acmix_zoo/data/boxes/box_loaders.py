"""`BoxLoaders`: loaders of images with boxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch.utils.data import DataLoader

from acmix_zoo.data.boxes.box_augment import BoxAugment
from acmix_zoo.data.boxes.box_dataset import BoxDataset
from acmix_zoo.data.boxes.box_summary import summarize_boxes
from acmix_zoo.data.indexed_loaders import IndexedLoaders, make_loader
from acmix_zoo.data.inspection import Inspection
from acmix_zoo.data.loaders import LoaderOptions, Position
from acmix_zoo.data.samplers import EvalSampler, TrainSampler
from acmix_zoo.data.splits import Split


class BoxLoaders(IndexedLoaders):
    """Loaders of a `BoxSource`. The augmentation in their options is a `BoxAugment`."""

    def summary(self, inspections: Mapping[str, Inspection]) -> str:
        return summarize_boxes(self.source, self.splits, inspections)

    def train(self, options: LoaderOptions, position: Position, accumulated: int) -> DataLoader[Any]:
        dataset = BoxDataset(
            self.splits["train"],
            cast(BoxAugment, options.augment),
            seed=options.seed,
            max_unreadable=options.max_unreadable,
            training=True,
        )
        self._sampler = TrainSampler(
            dataset,
            options.seed,
            step=options.batch_size * accumulated,
            epoch=position.epoch,
            start=position.batch * options.batch_size,
        )
        return make_loader(dataset, self._sampler, options, drop_last=len(self._sampler) >= options.batch_size)

    def evaluate(self, split: str, options: LoaderOptions) -> DataLoader[Any]:
        return make_box_eval_loader(self.splits[split], options, is_complete=split == "test")


def make_box_eval_loader(split: Split, options: LoaderOptions, is_complete: bool = False) -> DataLoader[Any]:
    """Return a loader that counts every image once, in its own size.

    Args:
        is_complete: unreadable images are errors, because a score on fewer images would not be comparable.
    """
    dataset = BoxDataset(split, BoxAugment(), max_unreadable=0 if is_complete else options.max_unreadable)
    return make_loader(dataset, EvalSampler(len(dataset), options.batch_size), options)
