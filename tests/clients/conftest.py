"""Tests against other packages that our users combine with this one."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import these files in the quick suite. Some of the packages modify others when they are imported
    (Ultralytics replaces `PIL.Image.open`), and all of them take seconds to import."""
    return True if "not slow" in config.option.markexpr else None
