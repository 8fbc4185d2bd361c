"""`StreamLoaders`: loaders of data that is read shard by shard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from acmix_zoo.data.inspection import Inspection
from acmix_zoo.data.loaders import LoaderOptions, Loaders, Position
from acmix_zoo.data.sources.stream_source import StreamSource
from acmix_zoo.data.stream.batch_stream import BatchMaker, EvalStream, TrainStream


class StreamLoaders(Loaders):
    """Loaders of a streamed source.

    Args:
        source: the source.
        epoch_images: number of images per epoch; None for the whole training split.
        val_fraction, repeats, validation_as_test: options of `ImageDataModule`, to reject values that a stream does
            not support.

    Raises:
        ValueError: the number of training images is not known, or an option is not supported.
    """

    def __init__(
        self,
        source: StreamSource,
        epoch_images: int | None,
        val_fraction: float,
        repeats: int,
        validation_as_test: bool = False,
    ) -> None:
        self.source: StreamSource = source
        self.epoch_images = epoch_images or source.splits["train"].size or 0
        self._train: TrainStream | None = None
        if self.epoch_images < 1:
            raise ValueError(
                f"{source.name} does not state how many training images it has. Set data.epoch_images to the number of "
                "images per epoch"
            )
        if val_fraction > 0 and "val" not in source.splits:
            raise ValueError(
                f"{source.name} has no validation split, and a stream cannot be split. Add one, or set "
                "data.val_fraction to 0"
            )
        if repeats > 1:
            raise ValueError(f"repeats={repeats} is not supported for a stream. Set data.repeats to 1")
        if validation_as_test:
            raise ValueError(
                "validation_as_test is not supported for a stream, because its training split cannot be split. Set "
                "data.validation_as_test to false, or data.streaming to false"
            )

    def sizes(self) -> dict[str, int]:
        return {name: split.size or 0 for name, split in self.source.splits.items()}

    def inspect(self, splits: list[str], thorough: bool) -> dict[str, Inspection]:
        """Return {}, because a stream's images are only checked when they are read."""
        return {}

    def summary(self, inspections: Mapping[str, Inspection], is_brief: bool = False) -> str:
        sizes = self.sizes()
        images = ", ".join(f"{name} {sizes[name] or 'unknown'}" for name in ("train", "val", "test") if name in sizes)
        return f"data: {self.source.name}, {len(self.source.class_names)} classes; images: {images}"

    def limit_batch_size(self, batch_size: int, processes: int) -> tuple[int, str]:
        """Return the batch size unchanged, because a stream is never too short for a batch."""
        return batch_size, ""

    def train(self, options: LoaderOptions, position: Position, accumulated: int) -> TrainStream:
        maker = self._maker("train", options)
        steps = max(1, self.epoch_images // (maker.world * options.batch_size))
        steps = steps // accumulated * accumulated or steps
        if position.epoch + position.batch > 0 and not position.stream:
            raise ValueError(
                "the checkpoint was trained without streaming. Resume with --data.streaming false, or start a new run "
                "from its weights with --model.pretrained"
            )
        self.close()
        self._train = TrainStream(maker, steps, state=position.stream, start=position.batch)
        return self._train

    def evaluate(self, split: str, options: LoaderOptions) -> EvalStream:
        return EvalStream(self._maker(split, options.for_split(split)))

    def batch_names(self, index: int, batch_size: int) -> list[str]:
        """Return the names of the images of the last training batch, because earlier ones are not remembered."""
        return self._train.names if self._train else []

    def state(self) -> dict[str, Any] | None:
        return self._train.state() if self._train else None

    def close(self) -> None:
        if self._train:
            self._train.close()

    def _maker(self, split: str, options: LoaderOptions) -> BatchMaker:
        return BatchMaker(
            self.source.splits[split],
            options.augment,
            options.batch_size,
            num_workers=options.num_workers,
            seed=options.seed,
            max_unreadable=options.max_unreadable,
            raw=options.raw,
        )
