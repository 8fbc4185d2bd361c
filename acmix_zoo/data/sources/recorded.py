"""The data set as recorded in a checkpoint: its classes, but no images. This is enough for prediction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from acmix_zoo.data.sources.base import IndexedSource
from acmix_zoo.data.sources.image_sets import Images

_current: ContextVar[RecordedSource | None] = ContextVar("_current", default=None)


class RecordedSource(IndexedSource):
    """The data set that a model was trained on. Its images may no longer exist.

    Args:
        card: the value of `ImageDataModule.card` during training.
    """

    def __init__(self, card: Mapping[str, Any]) -> None:
        dataset = card["dataset"]
        self.name, self.license = str(dataset["name"]), str(dataset["license"])
        self.origin = str(dataset.get("source", "unknown"))  # some shipped records have no source
        self.class_names = tuple(card["cfg"]["label_names"])
        self.category_ids = tuple(dataset.get("category_ids") or range(1, 1 + len(self.class_names)))  # of detectors
        self._fingerprint = str(dataset["fingerprint"])

    def fingerprint(self) -> str:
        return self._fingerprint

    def load(self) -> dict[str, Images]:
        """Raise a ValueError, because the images are unknown."""
        raise ValueError(
            f"the checkpoint contains only the classes of {self.name}, not its images. To train or evaluate, set "
            "--data.source to the images"
        )


@contextmanager
def use_recorded_source(card: Mapping[str, Any] | None) -> Iterator[None]:
    """Make `open_source` return the source of a card, whatever its arguments.

    `acmix-zoo predict` needs this, because the images of the training run may no longer exist. LightningCLI builds the
    data module from options with plain values, so an opened source cannot be passed as an argument.

    Args:
        card: as for `RecordedSource`. None changes nothing.
    """
    token = _current.set(RecordedSource(card) if card else _current.get())
    try:
        yield
    finally:
        _current.reset(token)


def current_recorded_source() -> RecordedSource | None:
    """Return the source set by `use_recorded_source`, if any."""
    return _current.get()
