"""Tests against other packages that our users combine with this one."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import these files only for the slow tests. Some of the packages modify others when they are imported
    (Ultralytics replaces `PIL.Image.open`), and all of them take seconds to import."""
    wanted = config.option.markexpr
    return True if "slow" not in wanted or "not slow" in wanted else None
