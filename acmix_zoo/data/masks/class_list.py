"""Class lists of segmentation data sets: the file, and the options that say how masks encode classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from acmix_zoo.data.masks.mask_classes import Colour, MaskClasses
from acmix_zoo.data.text_files import read_text

CLASS_FILES = ("classes.txt", "label_colors.txt", "class_dict.csv")
"""Names under which a data set's folder may hold its class list."""
_VOID_NAMES = {"void", "ignore", "unlabelled", "unlabeled"}


class ClassOptions(NamedTuple):
    """The options of the data module that say how masks encode classes. See `MaskDataModule`."""

    class_names: Sequence[str] | None = None
    classes_file: str | None = None
    first_class_value: int = 0
    ignore_values: Sequence[int] = (255,)

    def resolve(self, root: Path, source: str) -> MaskClasses:
        """Return the classes, from the options or a class list in the data set's folder.

        Raises:
            FileNotFoundError: `classes_file` does not exist.
            ValueError: there is no class list, or it is wrong.
        """
        given = Path(self.classes_file).expanduser() if self.classes_file else None
        if given is not None and not given.is_file():
            raise FileNotFoundError(
                f"classes_file {given} does not exist. Expected a text file with one class per line"
            )
        files = [root / name for name in CLASS_FILES] if root.is_dir() else []
        path = given or next((file for file in files if file.is_file()), None)
        listed = read_class_list(path) if path is not None else None
        if self.class_names is not None:
            is_same = listed is not None and tuple(listed.names) == tuple(self.class_names)
            listed = listed if is_same else ClassList(list(self.class_names))  # a list of other names has other colours
        if listed is None:
            raise ValueError(
                f"{source} does not say which classes its masks contain. Expected one class per line in "
                f"{root / CLASS_FILES[0] if root.is_dir() else 'a file'}, in the order of the mask's values, or with a "
                "colour ('128 64 128 road') for RGB masks. For another place, set data.classes_file; or list the names "
                "as data.class_names"
            )
        return MaskClasses(
            tuple(listed.names),
            self.first_class_value,
            tuple(self.ignore_values),
            tuple(listed.colours),
            tuple(listed.ignored_colours),
        )


class ClassList(NamedTuple):
    """A list of classes, as a file contains it.

    Attributes:
        names: the names of the classes.
        colours: their colours in RGB masks; () if the list has none.
        ignored_colours: colours that belong to no class.
    """

    names: Sequence[str]
    colours: Sequence[Colour] = ()
    ignored_colours: Sequence[Colour] = ()


def read_class_list(path: Path) -> ClassList:
    """Read a class list: one class per line, with its name and, for RGB masks, its colour before or after it.

    Names and colours are separated by spaces, commas or semicolons, and names may contain numbers. Empty lines, lines
    that start with #, and the header of a CSV file are skipped. If the header has several columns before r, g and b,
    such as id and name, the last of them has the names. The names void, ignore and unlabelled mark colours that belong
    to no class.

    Raises:
        ValueError: some of the classes have no colour, void has none, a colour is unclear, or the file is not UTF-8.
    """
    names: list[str] = []
    colours: list[Colour] = []
    ignored: list[Colour] = []
    skipped = 0  # columns before the names
    for line in map(_with_commas, read_text(path).splitlines()):
        line = ",".join(line.split(",")[skipped:])
        words = [word for word in re.split(r"[,\s]+", line.strip()) if word]
        if not words or words[0].startswith("#"):
            continue
        if not names and [word.lower() for word in words[1:]][-3:] == ["r", "g", "b"]:
            skipped = line.count(",") - 3 if line.count(",") > 3 else 0
            continue
        try:
            name, colour = _split_line(line, words)
        except ValueError as error:
            raise ValueError(f"{path}: the line {line.strip()!r} {error}") from None
        bare = " ".join(word for word in name.split() if not word.isdecimal())
        is_void = bare.lower() in _VOID_NAMES
        if is_void and colour is None:  # leaving it out would renumber the classes after it
            raise ValueError(
                f"{path} lists {bare!r} without a colour. Expected only classes in a list without colours. Remove the "
                "line, and set data.ignore_values to the values of pixels without a class"
            )
        if colour is not None:
            (ignored if is_void else colours).append(colour)
        if not is_void:
            names.append(name)
    if colours and len(colours) < len(names):
        raise ValueError(
            f"{path}: {len(colours)} of {len(names)} classes have a colour. Expected one for all of them, or for none"
        )
    return ClassList(names, colours, ignored)


def _with_commas(line: str) -> str:
    """Return a line with commas if its colour is written with semicolons, or in brackets: road (128, 64, 128)."""
    if re.search(r"(;\s*(\d+|[rgb])\s*){3}$", line, re.IGNORECASE):
        return line.replace(";", ",")
    return re.sub(r"[(\[]\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*[)\]]\s*$", r",\1,\2,\3", line)


def _split_line(line: str, words: list[str]) -> tuple[str, Colour | None]:
    """Return the name in a line, and its colour: the last or the first three values, if these are integers.

    Args:
        line: the line. Values between commas may contain spaces.
        words: its values, if spaces separate them, too.

    Raises:
        ValueError: more than three numbers follow one another, or one is above 255.
    """
    cells: list[str] = []
    for cell in filter(None, map(str.strip, line.split(","))):
        parts = cell.split()
        cells += parts if len(parts) == 3 and all(map(str.isdecimal, parts)) else [cell]
    for values in (cells, words):
        before, after = values[:-3], values[3:]
        for numbers, rest, next_to in ((values[-3:], before, before[-1:]), (values[:3], after, after[:1])):
            name = " ".join(" ".join(rest).split())
            has_name = any(not word.isdecimal() for word in name.split())
            if has_name and all(number.isdecimal() for number in numbers):
                red, green, blue = map(int, numbers)
                if max(red, green, blue) > 255 or "".join(next_to).isdecimal():
                    raise ValueError(
                        "does not say clearly which numbers are the colour. Expected three from 0 to 255. Separate a "
                        "name that contains numbers by commas"
                    )
                return name, (red, green, blue)
    return " ".join(words), None
