"""All tests in this folder force the native backend, also where ACMIX_BACKEND names another one."""

from collections.abc import Iterator

import pytest
from support.native_layers import record_calls

from acmix_zoo.ops import use_backend
from acmix_zoo.ops.backends.native import window


@pytest.fixture(autouse=True)
def native_backend() -> Iterator[None]:
    with use_backend("native"):
        yield


@pytest.fixture
def window_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the library functions for windows that have been called so far.

    Without checking them, a fallback would pass every comparison.
    """
    return record_calls(window, monkeypatch)
