"""`CocoClasses`: the classes of a folder in COCO's format, whose files may give the same category different numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from acmix_zoo.data.wording import first_few


class CocoClasses:
    """The classes of a data set: the categories of its training file, sorted by id.

    Of categories with the same name, as some labelling services export them, those without annotations are left out.
    If several of them have annotations, all but the first get their id as part of their name.

    Args:
        categories: the categories of the training file.
        used: the ids of categories with training annotations.

    Attributes:
        names: the name of each class. No two are the same.
        category_ids: the id of each class in the training file.
        remark: what was renamed; "" if nothing was.
    """

    def __init__(self, categories: Sequence[Mapping[str, Any]], used: Collection[Any]) -> None:
        self._categories = categories
        ids: dict[str, list[int]] = defaultdict(list)
        for number, name in sorted(_ids(categories).items()):
            ids[name].append(number)
        kept = {name: [number for number in found if number in used] or found[:1] for name, found in ids.items()}
        classes = sorted((number, name) for name, numbers in kept.items() for number in numbers)
        self.category_ids = tuple(number for number, _ in classes)
        self.names = tuple(name if number == kept[name][0] else f"{name} (id {number})" for number, name in classes)
        self._numbers: dict[str, dict[int, int]] = defaultdict(dict)  # of each name: the class of each id
        for position, (number, name) in enumerate(classes):
            self._numbers[name][number] = position
        shared = [name for name, numbers in kept.items() if len(numbers) > 1]
        self.remark = f"several categories have the name {first_few(shared)}. All but the first are shown with their id"
        self.remark *= bool(shared)

    def numbers(self, categories: Sequence[Mapping[str, Any]]) -> dict[int, int]:
        """Return the number of the class of each category id in a file. Classes are found by their name.

        Args:
            categories: the categories of the file. Without any, they are those of the training file.
        """
        found = {}
        for number, name in _ids(categories or self._categories).items():
            candidates = self._numbers.get(name, {})
            if number in candidates or len(candidates) == 1:
                found[number] = candidates.get(number, next(iter(candidates.values())))
        return found


def _ids(categories: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Return the name of each category id."""
    return {int(category["id"]): str(category["name"]) for category in categories}
