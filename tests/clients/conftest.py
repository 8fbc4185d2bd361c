"""Tests against the packages that our users have."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import these files for the slow tests only: some of the packages change others when they are imported
    (Ultralytics replaces `PIL.Image.open`), and all of them take seconds."""
    wanted = config.option.markexpr
    return True if "slow" not in wanted or "not slow" in wanted else None
