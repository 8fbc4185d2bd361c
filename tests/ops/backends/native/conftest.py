"""All tests in this folder run with the native backend, which is not the default."""

from collections.abc import Iterator

import pytest

from acmix_zoo.ops import use_backend


@pytest.fixture(autouse=True)
def native_backend() -> Iterator[None]:
    with use_backend("native"):
        yield
