"""The output of a run: TensorBoard's log, the progress bar, and which of Lightning's messages are shown."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger


def quieten_lightning() -> None:
    """Suppress those of Lightning's messages that a command-line user cannot act on.

    All of its information is: the lines of a run say the same in fewer words ("Seed set to", "GPU available",
    "Restoring states from", tips). Its warnings are shown, apart from a few.
    """
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec.* is deprecated",  # only Lightning can fix this
        ".*is smaller than the logging interval",  # RunFolder logs every epoch, whatever the interval
        ".*callbacks used to create the checkpoint need to be provided.*",  # only a fit needs the average
        ".*Total length of `list` across ranks is zero",  # RunFolder says that there is no validation
        ".*Your `IterableDataset` has `__len__` defined",  # our streams do count their batches
        ".*Glyph .* missing from",  # boxes in place of letters can be seen in a plot
        ".*does not have many workers which may be a bottleneck",  # Speed measures whether it is one
    ):
        warnings.filterwarnings("ignore", message=message)


class Bar(RichProgressBar):
    """Lightning's progress bar, with epochs counted from one, as in every other line of a run."""

    def _get_train_description(self, current_epoch: int) -> str:
        epochs = self.trainer.max_epochs
        text = f"Epoch {current_epoch + 1}" + (f"/{epochs}" if epochs and epochs > 0 else "")
        return f"{text:{len(self.validation_description)}}"  # as wide as the validation bar, to avoid flickering


class Log(TensorBoardLogger):
    """Lightning's TensorBoardLogger, except that a full disk does not end the run. It prints a warning and stops
    logging.

    Nothing is written before the first metrics, so a run that fails before its first step leaves no file behind.
    Lightning accesses `experiment`, which would create a file, before it sets anything up. The attribute is therefore
    missing until RunFolder sets `is_ready`.

    Args:
        folder: where the event files are written.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.parent, name=folder.name, version="")
        self._has_failed = False
        self._deferred: list[tuple[tuple[Any, ...], dict[str, Any]]] = []  # arguments of log_hyperparams
        self._has_begun = False
        self.is_ready = False

    @property
    def experiment(self) -> Any:
        """The SummaryWriter."""
        if not self.is_ready:
            raise AttributeError("TensorBoard's log cannot be used before the setup of the run")
        return super().experiment

    def _begin(self) -> None:
        self.is_ready = self._has_begun = True
        deferred, self._deferred = self._deferred, []
        for args, kwargs in deferred:
            self.log_hyperparams(*args, **kwargs)

    @contextlib.contextmanager
    def _tolerate_full_disk(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            reason = error.__cause__ or error  # Lightning raises a ValueError, as if a value could not be logged
            if not isinstance(reason, OSError):
                raise
            if not self._has_failed:
                print(
                    f"Warning: could not write {self.log_dir}: {reason.strerror or reason}. The TensorBoard log ends "
                    "here and training continues. Free some disk space",
                    flush=True,
                )
            self._has_failed = True

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """Write metrics, until that fails."""
        if not self._has_begun:
            self._begin()
        if not self._has_failed:
            with self._tolerate_full_disk():
                super().log_metrics(*args, **kwargs)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Write the hyper-parameters, together with the first metrics."""
        if not self._has_begun:
            self._deferred.append((args, kwargs))
        elif not self._has_failed:
            with self._tolerate_full_disk():
                super().log_hyperparams(*args, **kwargs)

    def save(self) -> None:
        """Flush what was logged to the file."""
        if self._has_begun and not self._has_failed:
            with self._tolerate_full_disk():
                super().save()

    def finalize(self, status: str) -> None:
        """Close the file."""
        with self._tolerate_full_disk():
            super().finalize(status)
