"""The interface of a data source: its properties, and access to its images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

from acmix_zoo.data.sources.image_sets import Images


class Source(ABC):
    """A named data set of labelled images.

    Attributes:
        name: name for messages and records.
        license: license of the images; "unknown" if the data set does not state one.
        origin: where the images come from: "local folder", "local file", "Hugging Face Hub" or the name of a package.
        class_names: the names of the classes, known before any image is read.
        remarks: remarks about skipped files and likely mistakes.
    """

    name: str
    license: str
    origin: str
    class_names: tuple[str, ...]
    remarks: Sequence[str] = ()

    def missing_split_advice(self, split: str) -> str:
        """Return how to add a split, for the error about a missing one."""
        return f"Add a {split} split"

    @abstractmethod
    def fingerprint(self) -> str:
        """Return sixteen hexadecimal digits that change when the data change."""


class IndexedSource(Source):
    """A source whose images have indices, so that they can be read in any order."""

    @abstractmethod
    def load(self) -> dict[str, Images]:
        """Return the images of each split that exists, out of "train", "val" and "test"."""

    @cached_property
    def splits(self) -> dict[str, Images]:
        """The result of `load`, which is called once."""
        return self.load()
