"""Read text files that users have written, with any editor."""

from __future__ import annotations

from pathlib import Path


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 file, without the byte order mark that some editors put in front.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a UTF-8 text file. Expected UTF-8. Save the file as UTF-8") from error
