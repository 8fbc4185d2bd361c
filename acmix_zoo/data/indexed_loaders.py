"""`IndexedLoaders`: loaders of images that can be read in any order, such as class folders."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from acmix_zoo.data.batches import detach_worker, keep_batch
from acmix_zoo.data.image_dataset import ImageDataset
from acmix_zoo.data.inspection import Inspection
from acmix_zoo.data.loaders import LoaderOptions, Loaders, Position
from acmix_zoo.data.options import limit_batch_size
from acmix_zoo.data.samplers import EvalSampler, TrainSampler
from acmix_zoo.data.sources.base import IndexedSource
from acmix_zoo.data.splits import Split, inspect_splits, is_val_split_off, split_source
from acmix_zoo.data.summary import summarize


class IndexedLoaders(Loaders):
    """Loaders of an indexed source.

    Args:
        source: the source.
        val_fraction: fraction of each class used for validation if the source has no validation split; 0 for none.
        seed: seed for choosing the validation images.
        repeats: number of differently augmented copies of each sampled image in an epoch, see `TrainSampler`.
        validation_as_test: use the source's validation split as the test split.
    """

    def __init__(
        self,
        source: IndexedSource,
        val_fraction: float,
        seed: int,
        repeats: int = 1,
        validation_as_test: bool = False,
    ) -> None:
        self.source: IndexedSource = source
        self.val_fraction, self.seed, self.repeats = val_fraction, seed, repeats
        self.validation_as_test = validation_as_test
        self._sampler: TrainSampler | None = None
        # of the last evaluation of each split; not its loader, which would keep its workers alive
        self._evaluated: dict[str, tuple[Any, Any]] = {}

    @cached_property
    def splits(self) -> dict[str, Split]:
        """The splits that exist, out of "train", "val" and "test"."""
        return split_source(self.source, self.val_fraction, self.seed, self.validation_as_test)

    def sizes(self) -> dict[str, int]:
        return {name: split.size for name, split in self.splits.items()}

    def val_split(self) -> dict[str, Any]:
        if is_val_split_off(self.source, self.splits):
            return {"val_fraction": self.val_fraction, "seed": self.seed}
        return {}

    def inspect(self, splits: list[str], thorough: bool) -> dict[str, Inspection]:
        return inspect_splits({name: self.splits[name] for name in splits if name in self.splits}, thorough)

    def summary(self, inspections: Mapping[str, Inspection], is_brief: bool = False) -> str:
        return summarize(self.source, self.splits, inspections, is_brief)

    def limit_batch_size(self, batch_size: int, processes: int) -> tuple[int, str]:
        return limit_batch_size(batch_size, self.splits["train"].size, processes)

    def train(self, options: LoaderOptions, position: Position, accumulated: int) -> DataLoader[Any]:
        dataset = self.dataset_class(
            self.splits["train"],
            options.augment,
            seed=options.seed,
            max_unreadable=options.max_unreadable,
            training=True,
            raw=options.raw,
        )
        self._sampler = TrainSampler(
            dataset,
            options.seed,
            step=options.batch_size * accumulated,
            repeats=self.repeats,
            epoch=position.epoch,
            start=position.batch * options.batch_size,
        )
        # A last batch of one image upsets batch normalisation. But if there are few images, one batch must remain.
        return make_loader(dataset, self._sampler, options, drop_last=len(self._sampler) >= options.batch_size)

    def evaluate(self, split: str, options: LoaderOptions) -> DataLoader[Any]:
        loader = make_eval_loader(self.splits[split], options.for_split(split), dataset_class=self.dataset_class)
        self._evaluated[split] = loader.dataset, loader.sampler
        return loader

    def evaluated_positions(self, split: str) -> list[int] | None:
        if split not in self._evaluated:  # evaluated with a loader of a subclass
            return None
        dataset, sampler = self._evaluated[split]
        is_counted = (dataset.targets >= 0) & (dataset.unreadable.is_unreadable[: len(dataset)].numpy() == 0)
        return [position for position in sampler if position >= 0 and is_counted[position]]

    def example_file(self) -> str | None:
        split = self.splits.get("test") or self.splits.get("val")
        if split is None or not split.size:
            return None
        name = split.images.describe(int(split.indices[0]))
        return name if Path(name).is_file() else None

    def close(self) -> None:
        """Do nothing, because the workers end when the trainer drops their loader."""

    def batch_names(self, index: int, batch_size: int) -> list[str]:
        if self._sampler is None:
            return []
        order = self._sampler.order()[index * batch_size : (index + 1) * batch_size]
        return list(self._sampler.data.names(order.tolist()))


def make_eval_loader(
    split: Split, options: LoaderOptions, dataset_class: type[ImageDataset], with_index: bool = False
) -> DataLoader[Any]:
    """Return a loader that counts every image once.

    Args:
        split: the images.
        options: options for evaluation, see `LoaderOptions.for_split`.
        dataset_class: the class of the dataset.
        with_index: return the index of an image in place of its class.
    """
    dataset = dataset_class(
        split, options.augment, max_unreadable=options.max_unreadable, with_index=with_index, raw=options.raw
    )
    return make_loader(dataset, EvalSampler(len(dataset), options.batch_size), options)


def make_loader(
    dataset: Dataset[Any], sampler: TrainSampler | EvalSampler, options: LoaderOptions, drop_last: bool = False
) -> DataLoader[Any]:
    """Return a loader of a dataset that makes whole batches."""
    return DataLoader(
        dataset,
        batch_size=options.batch_size,  # by keyword, because Lightning re-creates the prediction loader
        sampler=sampler,
        num_workers=options.num_workers,
        worker_init_fn=detach_worker,
        collate_fn=keep_batch,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=options.keep_workers and options.num_workers > 0,
    )
