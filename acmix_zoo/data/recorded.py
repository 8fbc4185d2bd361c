"""The data of a checkpoint as far as the checkpoint knows them: classes without images, which is enough to predict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from acmix_zoo.data.sources import Images, Source

_given: ContextVar[RecordedSource | None] = ContextVar("_given", default=None)


class RecordedSource(Source):
    """The source that a model was trained on, where its images may be gone.

    Args:
        card: what `ImageDataModule.card` returned in the training.
    """

    def __init__(self, card: Mapping[str, Any]) -> None:
        dataset = card["dataset"]
        self.name, self.license = str(dataset["name"]), str(dataset["license"])
        self.class_names = tuple(card["cfg"]["label_names"])
        self._fingerprint = str(dataset["fingerprint"])

    def fingerprint(self) -> str:
        return self._fingerprint

    def load(self) -> dict[str, Images]:
        """
        Raises:
            ValueError: always; only the classes are known.
        """
        raise ValueError(
            f"only the classes of {self.name} are known, from a checkpoint; to train or to evaluate give the images "
            "with --data.source"
        )


@contextmanager
def recorded_source(card: Mapping[str, Any] | None) -> Iterator[None]:
    """Have `open_source` return the source of a card, whatever it is asked for.

    Args:
        card: as for RecordedSource; None leaves everything as it is.
    """
    token = _given.set(RecordedSource(card) if card else _given.get())
    try:
        yield
    finally:
        _given.reset(token)


def given_source() -> RecordedSource | None:
    """Return the source that `recorded_source` gives, if any."""
    return _given.get()
