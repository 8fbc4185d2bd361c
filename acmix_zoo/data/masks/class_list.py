"""Class lists of segmentation data sets: the file, and the options that say how masks encode classes."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from acmix_zoo.data.masks.mask_classes import Colour, MaskClasses
from acmix_zoo.data.text_files import read_text

CLASS_FILES = ("classes.txt", "label_colors.txt", "class_dict.csv")
"""Names under which a data set's folder may hold its class list."""
_DELIMITERS: tuple[str, ...] = (",", ";", "\t")  # of the columns of CSV files
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

    Names and colours are separated by spaces, commas or semicolons, and names may contain numbers. Empty lines and
    lines that start with # are skipped. A CSV file may begin with a header that ends in r, g, b; the names are then in
    the column before them. The names void, ignore and unlabelled mark colours that belong to no class.

    Raises:
        ValueError: some of the classes have no colour, void has none, a colour is unclear, or the file is not UTF-8.
    """
    names: list[str] = []
    colours: list[Colour] = []
    ignored: list[Colour] = []
    lines = [line.strip() for line in read_text(path).splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    delimiter = _delimiter_of_header(lines[0]) if lines else None
    for line in lines if delimiter is None else lines[1:]:
        try:
            name, colour = _split_row(line, delimiter) if delimiter in _DELIMITERS else _split_line(line)
        except ValueError as error:
            raise ValueError(f"{path}: the line {line!r} {error}") from None
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


def _delimiter_of_header(line: str) -> str | None:
    """Return what separates the columns of a CSV file, given its first line; None if that is no header."""
    for delimiter in (*_DELIMITERS, " "):
        columns = [column.strip().lower() for column in line.rstrip(delimiter).split(delimiter)]
        if len(columns) > 3 and columns[-3:] == ["r", "g", "b"]:
            return delimiter
    return None


def _split_row(line: str, delimiter: str) -> tuple[str, Colour]:
    """Return the name and the colour in a row of a CSV file: its last four columns.

    Raises:
        ValueError: the row has no such columns.
    """
    cells = next(csv.reader([line.rstrip(delimiter)], delimiter=delimiter, skipinitialspace=True))
    name, colour = (" ".join(cells[-4].split()), [cell.strip() for cell in cells[-3:]]) if len(cells) > 3 else ("", [])
    if not name or not all(value.isdecimal() and int(value) < 256 for value in colour):
        raise ValueError("has no name and colour in its last four columns. Expected three numbers from 0 to 255")
    red, green, blue = map(int, colour)
    return name, (red, green, blue)


def _split_line(line: str) -> tuple[str, Colour | None]:
    """Return the name in a line, and its colour: the last or the first three values, if these are integers.

    Raises:
        ValueError: more than three numbers follow one another, or one is above 255.
    """
    if re.search(r"\d\s*;\s*\d+\s*;\s*\d", line):
        line = line.replace(";", ",")
    line = re.sub(r"[(\[]\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*[)\]]", r",\1,\2,\3,", line)
    words = [word for word in re.split(r"[,\s]+", line) if word]
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
