"""`Loaders`: the interface between the data modules and the two ways to read data, indexed and streamed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch.utils.data import DataLoader

from acmix_zoo.data.image_dataset import ImageDataset
from acmix_zoo.data.inspection import Inspection
from acmix_zoo.data.sources.base import Source
from acmix_zoo.data.stream.batch_stream import EvalStream, TrainStream

TrainLoader = DataLoader[Any] | TrainStream
EvalLoader = DataLoader[Any] | EvalStream


@dataclass(frozen=True)
class LoaderOptions:
    """Options of a loader.

    Attributes:
        augment: augmentation in training, such as an `Augment`. Evaluation uses its `for_evaluation`.
        batch_size: number of images per batch and process.
        num_workers: number of worker processes; 0 to load in the training process.
        seed: seed of the order and the augmentation.
        max_unreadable: number of unreadable images to skip per process.
        raw: keep the images as uint8, because the trainer normalises them on the device.
        keep_workers: keep the worker processes from one epoch to the next.
    """

    augment: Any  # as the datasets take it
    batch_size: int
    num_workers: int = 0
    seed: int = 0
    max_unreadable: int = 0
    raw: bool = False
    keep_workers: bool = False

    def for_split(self, split: str) -> LoaderOptions:
        """Return the options for evaluating a split. All test images must be readable, because a score on fewer images
        would not be comparable."""
        return LoaderOptions(
            self.augment.for_evaluation(),
            self.batch_size,
            self.num_workers,
            max_unreadable=0 if split == "test" else self.max_unreadable,
            raw=self.raw,
            keep_workers=self.keep_workers,
        )


class Position(NamedTuple):
    """Position of a training run.

    Attributes:
        epoch: number of completed epochs.
        batch: number of completed batches of the current epoch.
        stream: result of `Loaders.state`; None if the data are not streamed.
    """

    epoch: int = 0
    batch: int = 0
    stream: dict[str, Any] | None = None


class Loaders(ABC):
    """Training and evaluation loaders of one source, and what is known about its splits.

    Attributes:
        dataset_class: the class of the datasets of indexed images.
        source: the source.
    """

    dataset_class: ClassVar[type[ImageDataset]] = ImageDataset
    source: Source

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Return the number of images of each existing split; 0 if it is not known."""

    def val_split(self) -> dict[str, Any]:
        """Return the options by which the validation images were split off the training images; {} if they were not."""
        return {}

    @abstractmethod
    def inspect(self, splits: list[str], thorough: bool) -> dict[str, Inspection]:
        """Check the images of the given splits that exist, as far as that is possible without reading all of them.

        Args:
            splits: names of splits.
            thorough: decode every image of the test split.
        """

    @abstractmethod
    def summary(self, inspections: Mapping[str, Inspection], is_brief: bool = False) -> str:
        """Return the summary of the data that `acmix-zoo data` prints.

        Args:
            inspections: the results of `inspect`.
            is_brief: whether to leave out what only someone who checks the data wants to see, as at the start of a run.
        """

    @abstractmethod
    def limit_batch_size(self, batch_size: int, processes: int) -> tuple[int, str]:
        """Return the batch size to use, and a warning if there are too few images ("" otherwise).

        See `acmix_zoo.data.options.limit_batch_size`.
        """

    @abstractmethod
    def train(self, options: LoaderOptions, position: Position, accumulated: int) -> TrainLoader:
        """Return the training batches from a position onwards.

        Args:
            accumulated: number of batches per optimiser step. An epoch has whole steps, unless it is shorter than one.
        """

    @abstractmethod
    def evaluate(self, split: str, options: LoaderOptions) -> EvalLoader:
        """Return batches that contain every image of a split once, over all processes."""

    @abstractmethod
    def batch_names(self, index: int, batch_size: int) -> list[str]:
        """Return the names of the images of this process's training batch `index` in the current epoch."""

    def evaluated_positions(self, split: str) -> list[int] | None:
        """Return the positions of the images that this process counted in the last evaluation of a split, in order.

        None if they are not known, as in a stream.
        """
        return None

    def example_file(self) -> str | None:
        """Return the path of an image that was not trained on, or None if there is no such file."""
        return None

    def state(self) -> dict[str, Any] | None:
        """Return what is needed to resume training besides the epoch and batch. Every process must call this."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Stop worker processes that do not end with the trainer's loaders."""
