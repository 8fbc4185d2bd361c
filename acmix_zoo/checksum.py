"""Check a weight file against the SHA-256 that is recorded next to it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def check_sha256(weights: str | Path) -> None:
    """Check that the SHA-256 of a weight file is the one in the config.json next to it.

    Without one, or for a file that is not the model.safetensors of a weight folder, do nothing.

    Args:
        weights: a file, or a weight folder.

    Raises:
        ValueError: the hashes differ.
    """
    weights = Path(weights)
    if weights.is_dir():
        weights = weights / "model.safetensors"
    config = weights.parent / "config.json"
    if weights.name != "model.safetensors" or not config.is_file() or not weights.is_file():
        return
    try:
        expected = json.loads(config.read_text(encoding="utf-8-sig"))["acmix_zoo"]["sha256"]
    except (ValueError, KeyError, TypeError):  # the config.json of a different project
        return
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ValueError(
            f"{weights} is changed or damaged: its sha256 is {found}. Expected {expected}, as in {config}. Download or "
            "write the weight folder again"
        )
