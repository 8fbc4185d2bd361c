"""Check a weight file against the SHA-256 that is recorded next to it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def check_sha256(weights: str | Path) -> None:
    """Refuse weights whose SHA-256 differs from the one in the config.json next to them.

    Args:
        weights: a file of a weight folder, or the folder itself.

    Raises:
        ValueError: the hashes differ. Files without a recorded hash pass.
    """
    weights = Path(weights)
    if weights.is_dir():
        weights = weights / "model.safetensors"
    config = weights.parent / "config.json"
    if not config.is_file() or not weights.is_file():
        return
    try:
        expected = json.loads(config.read_text(encoding="utf-8"))["acmix_zoo"]["sha256"]
    except (ValueError, KeyError, TypeError):  # a config.json of another project or of the user
        return
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ValueError(
            f"{weights} is not what {config} describes: sha256 {found} was found, {expected} is recorded. "
            "It was changed or damaged, so it is not used. Download or write the weight folder again"
        )
