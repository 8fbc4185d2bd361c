"""Reading a sharded checkpoint runs no code from it."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")


from acmix_zoo.tasks.sharded import _Unpickler


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


def test_metadata_with_code_is_rejected(tmp_path: Path) -> None:
    with (tmp_path / "evil").open("wb") as file:
        pickle.dump(Evil(), file)
    with (tmp_path / "evil").open("rb") as file, pytest.raises(pickle.UnpicklingError, match=r"posix\.system"):
        _Unpickler(file).load()
