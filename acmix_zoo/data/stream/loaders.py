"""The loaders of a streamed data set, as `ImageDataModule` wants them."""

from __future__ import annotations

from typing import Any

from acmix_zoo.data.augment import Augment
from acmix_zoo.data.stream.stream_batches import BatchMaker, EvalStream, TrainStream
from acmix_zoo.data.stream.stream_source import StreamSource


class StreamLoaders:
    """Training that can be gone on with, and complete evaluation.

    Args:
        source: what is streamed. augment: of training; evaluation takes its pixels alone.
        batch_size, workers, seed, max_bad: see `BatchMaker`.
        epoch_images: what an epoch is; 0 for the whole training split.

    Raises:
        ValueError: the number of training images is not known.
    """

    def __init__(
        self,
        source: StreamSource,
        augment: Augment,
        batch_size: int,
        workers: int,
        seed: int = 0,
        max_bad: int = 0,
        epoch_images: int = 0,
    ) -> None:
        self.source, self.augment, self.batch_size, self.max_bad = source, augment, batch_size, max_bad
        self._making = {"workers": workers, "seed": seed}
        self.epoch_images = epoch_images or source.splits["train"].size or 0
        if self.epoch_images < 1:
            raise ValueError(
                f"{source.name} does not say how many training images it has; set epoch_images, the images of an epoch"
            )
        self._train: TrainStream | None = None

    def check(self, val_fraction: float, repeats: int) -> None:
        """
        Raises:
            ValueError: options that a stream cannot follow.
        """
        if val_fraction > 0 and "val" not in self.source.splits:
            raise ValueError(
                f"{self.source.name} has no validation split, and none can be set aside of a stream; add one, or set "
                "val_fraction to 0"
            )
        if repeats > 1:
            raise ValueError(f"repeats={repeats}: a stream gives an image once in a pass; set repeats to 1")

    def sizes(self) -> dict[str, int]:
        """Images of each split; 0 where it is not known."""
        return {name: split.size or 0 for name, split in self.source.splits.items()}

    def train(self, accumulated: int, resume: dict[str, Any], raw: bool) -> TrainStream:
        """Training batches; where there are as many, an epoch has whole optimiser steps of `accumulated` batches."""
        maker = self._maker("train", self.augment, self.max_bad, raw)
        steps = max(1, self.epoch_images // (maker.world * self.batch_size))
        steps = steps // accumulated * accumulated or steps
        if resume["epoch"] + resume["batch"] > 0 and not resume.get("stream"):
            raise ValueError(
                "the checkpoint is of a run that did not stream; go on with --data.streaming false, or begin a new run "
                "from its weights with --model.pretrained"
            )
        self.close()
        self._train = TrainStream(maker, steps, state=resume.get("stream"), start=resume["batch"])
        return self._train

    def close(self) -> None:
        """Stop the training workers."""
        if self._train:
            self._train.close()

    def evaluation(self, part: str, raw: bool) -> EvalStream:
        """Every image of a split once; of the test split all have to be readable."""
        plain = Augment(self.augment.pixels)
        return EvalStream(self._maker(part, plain, 0 if part == "test" else self.max_bad, raw))

    def batch_names(self) -> list[str]:
        """What the images of this process's last training batch are called."""
        return self._train.names if self._train else []

    def state(self) -> dict[str, Any] | None:
        """Where training stands; every process has to ask for it."""
        return self._train.gathered() if self._train else None

    def _maker(self, part: str, augment: Augment, max_bad: int, raw: bool) -> BatchMaker:
        return BatchMaker(self.source.splits[part], augment, self.batch_size, max_bad=max_bad, raw=raw, **self._making)
