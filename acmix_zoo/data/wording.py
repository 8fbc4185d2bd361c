"""Lists and numbers in messages."""

from __future__ import annotations

from collections.abc import Sequence


def first_few(names: Sequence[str], most: int = 5) -> str:
    """Return the first few names separated by commas, and the number of the others: "a, b, c and 7 more"."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def count_noun(count: int, noun: str) -> str:
    """Return a number with its noun: "1 image", "2,000 images", "3 classes"."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{count:,} {noun if count == 1 else plural}"
