"""The error for a name or path that refers to nothing: what is missing, what was expected, and the closest names."""

from __future__ import annotations

from collections.abc import Sequence


class NotFoundError(FileNotFoundError, ValueError):
    """Nothing has this name: there is no such model (a ValueError) and no such path (a FileNotFoundError)."""


def not_found_error(problem: str, expected: str, closest: Sequence[str] = (), advice: str = "") -> NotFoundError:
    """Return the error for a name that refers to nothing.

    Args:
        problem: what is wrong, such as "runs/a does not exist".
        expected: what would have been right, such as "a run folder".
        closest: names that exist and are similar.
        advice: what to do, for example if there are no similar names.
    """
    sentences = [problem, f"Expected {expected}"]
    if closest:
        sentences.append(f"The {closest_names_phrase(closest)}")
    return NotFoundError(". ".join([*sentences, *[advice] * bool(advice)]))


def closest_names_phrase(names: Sequence[str]) -> str:
    """Return the end of a sentence that lists the closest names."""
    return f"closest {'names are' if len(names) > 1 else 'name is'} {', '.join(names)}"
