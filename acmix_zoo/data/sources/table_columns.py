"""Find the image column, the class column and the classes of a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from acmix_zoo.data.wording import count_noun


class Classes(NamedTuple):
    """The classes of a table.

    Attributes:
        names: the names of the classes.
        numbers: the class number of each value of the class column; None if the values are the numbers.
    """

    names: tuple[str, ...]
    numbers: dict[Any, int] | None = None


def find_image_column(features: Any, data_name: str) -> str:
    """Return the name of the column of images: "image", or the only such column.

    Args:
        features: the columns of a table and their types, as the `datasets` library describes them.
        data_name: name of the data set for the error message.

    Raises:
        ValueError: there is no such column, or several.
    """
    import datasets

    def has_images(feature: Any) -> bool:
        is_encoded = isinstance(feature, dict) and {"bytes", "path"} <= set(feature)
        is_binary = getattr(feature, "dtype", "") in ("binary", "large_binary")
        return isinstance(feature, datasets.Image) or is_encoded or is_binary

    found = [str(name) for name, feature in features.items() if has_images(feature)]
    if "image" in found or len(found) == 1:
        return "image" if "image" in found else found[0]
    raise ValueError(f"{data_name}: expected one column of images, found {found or 'none'} among {', '.join(features)}")


def find_label_column(features: Any, data_name: str, image_column: str, requested: str | None) -> str:
    """Return the name of the class column: the requested one, "label", the only ClassLabel column, or "cls".

    Args:
        features, data_name: as for `find_image_column`.
        image_column: the column of images.
        requested: the column that the user has named, if any.

    Raises:
        ValueError: the requested column does not exist or has no classes, or there is none of the others.
    """
    import datasets

    plain = [name for name, feature in features.items() if name != image_column and _is_plain(feature)]
    for_boxes = ""
    if "objects" in features:
        for_boxes = ". For the boxes in objects, use a recipe such as detect/bccd, or `acmix-zoo data --task detection`"
    if requested is not None:
        if requested in plain:
            return requested
        problem = "has no text or numbers" if requested in features else "does not exist"
        raise ValueError(
            f"{data_name}: the column {requested!r} {problem}. "
            f"Expected one of {', '.join(plain) or 'the columns of text or numbers, but there are none'}{for_boxes}"
        )
    labels: list[str] = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    for name in ("label", *labels[: len(labels) == 1], "cls"):
        if name in features:
            return name
    candidates = ", ".join(labels or plain)
    advice = f"Set data.label_column to one of: {candidates}" if candidates else "Add a column label with the classes"
    raise ValueError(f"{data_name}: no column is clearly the class column. {advice}{for_boxes}")


def _is_plain(feature: Any) -> bool:
    """Return whether the values of a column are text or numbers, and no lists, images or files."""
    import datasets

    return isinstance(feature, datasets.Value | datasets.ClassLabel) and "binary" not in feature.dtype


def declared_class_names(feature: Any) -> tuple[str, ...] | None:
    """Return the class names of a ClassLabel column; None for other columns."""
    import datasets

    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def number_classes(values: Iterable[Any], column: str, names: tuple[str, ...] | None) -> Classes:
    """Number the classes of a column without declared class names. Classes that are text are sorted.

    Args:
        values: the different values of the column in the training split.
        column: name of the column for error messages.
        names: names for the values 0, 1, 2, …, if known. They are not needed for values that are text.

    Raises:
        ValueError: the values are neither text nor integers, or an integer has no name.
    """
    found = [value for value in values if value is not None]
    if all(isinstance(value, float) and value.is_integer() for value in found):  # one is missing in a CSV file
        found = [int(value) for value in found]
    elif all(isinstance(value, bool) for value in found):
        found = [int(value) for value in found]
        names = names or (("False", "True") if len(found) == 2 else None)
    types = sorted({type(value).__name__ for value in found})
    if types not in (["str"], ["int"]):
        raise ValueError(
            f"column {column!r} has values of type {' and '.join(types) or 'None'}. Expected class names or integers"
        )
    found.sort()
    if names is None or types == ["str"]:
        return Classes(tuple(str(value) for value in found), {value: number for number, value in enumerate(found)})
    if not 0 <= found[0] <= found[-1] < len(names):
        raise ValueError(
            f"column {column!r} has classes {found[0]} to {found[-1]}, but there are {len(names)} class names. "
            "Expected one name per class"
        )
    return Classes(names, {number: number for number in range(len(names))})


def check_class_count(class_names: tuple[str, ...], column: str, data_name: str) -> None:
    """Check that there are enough classes for a classifier.

    Raises:
        ValueError: there are fewer than two.
    """
    if len(class_names) < 2:
        count = count_noun(len(class_names), "class")
        raise ValueError(f"{data_name}: column {column!r} has {count}. Expected two or more")
