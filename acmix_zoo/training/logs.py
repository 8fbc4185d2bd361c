"""TensorBoard's log of a run, which is worth less than the run."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger


class Log(TensorBoardLogger):
    """Lightning's TensorBoardLogger; where it cannot be written (full disk), it says so once and stops, and the
    training goes on.

    Args:
        folder: for the event files.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.parent, name=folder.name, version="")
        self._stopped = False

    @contextlib.contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            reason = error.__cause__ or error  # Lightning takes any error for a value that cannot be logged
            if not isinstance(reason, OSError):
                raise
            if not self._stopped:
                print(
                    f"NOT LOGGED, {self.log_dir}: {reason.strerror or reason}; TensorBoard's log ends here, training "
                    "goes on. Free some space.",
                    flush=True,
                )
            self._stopped = True

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """Write numbers, until that fails."""
        if not self._stopped:
            with self._forgiven():
                super().log_metrics(*args, **kwargs)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Write what the run was started with."""
        if not self._stopped:
            with self._forgiven():
                super().log_hyperparams(*args, **kwargs)

    def save(self) -> None:
        """Have the file hold what was logged."""
        if not self._stopped:
            with self._forgiven():
                super().save()

    def finalize(self, status: str) -> None:
        """Close the file."""
        with self._forgiven():
            super().finalize(status)
