"""Tests against the packages that our users have."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import these files for the quick suite: some of the packages change others when they are imported
    (Ultralytics replaces `PIL.Image.open`), and all of them take seconds."""
    return True if "not slow" in config.option.markexpr else None
