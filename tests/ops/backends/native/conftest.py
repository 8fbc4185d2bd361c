"""All tests in this folder force the native backend, also where ACMIX_BACKEND names another one."""

from collections.abc import Iterator

import pytest

from acmix_zoo.ops import use_backend


@pytest.fixture(autouse=True)
def native_backend() -> Iterator[None]:
    with use_backend("native"):
        yield
