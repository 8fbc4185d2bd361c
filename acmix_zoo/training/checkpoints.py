"""The checkpoints of a run: written whole or not at all, the one before kept, found again.

last.ckpt is what a run goes on from, previous.ckpt the one before it, best.ckpt the one with the highest validation
accuracy. Under a strategy that spreads the network over processes each is a folder (torch.distributed.checkpoint).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch.distributed.checkpoint.api import CheckpointException


class _ReportingIO(TorchCheckpointIO):
    """Keeps the error of a write: raised in the process that writes, it would leave the others waiting for it."""

    error: OSError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.error = None
        try:
            super().save_checkpoint(checkpoint, path, storage_options)
        except OSError as error:
            self.error = error


def is_checkpoint(path: Path) -> bool:
    """Whether Lightning wrote the file, or the folder, and it can be read; the weights stay on the disk."""
    if path.is_dir():
        return (path / ".metadata").is_file() and is_checkpoint(path / "meta.pt")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, pickle.UnpicklingError):
        return False
    return isinstance(content, dict) and "pytorch-lightning_version" in content


class Checkpoints:
    """The checkpoints in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last, self.previous, self.best = (folder / f"{name}.ckpt" for name in ("last", "previous", "best"))
        self.unsaved: str | None = None
        """Why last.ckpt is not of the last save."""

    def find(self) -> Path | None:
        """The newest one that can be read; None if there is none at all.

        Raises:
            ValueError: there are some, and all are damaged.
        """
        there = [path for path in (self.last, self.previous, self.best) if path.exists()]
        for path in there:
            if is_checkpoint(path):
                if path != self.last:
                    print(f"{self.last} is missing or damaged: the run goes on from {path}", flush=True)
                return path
        if there:
            raise ValueError(
                f"{', '.join(map(str, there))}: damaged, every one; move the folder away to begin the run anew"
            )
        return None

    def any(self) -> bool:
        """Whether there is a run to go on with."""
        return any(path.exists() for path in (self.last, self.previous, self.best))

    def save(self, trainer: L.Trainer, best: bool = False) -> bool:
        """Save the state as last.ckpt; what was there becomes previous.ckpt. All processes together.

        A power cut at any moment leaves at least one of the two whole.

        Args:
            best: it becomes best.ckpt, too; before it becomes last.ckpt, which says so.

        Returns:
            Whether it could be saved; if not, what was there stays, and the user is told.
        """
        new = self.last.with_suffix(".new")
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # another one is the user's
            trainer.strategy.checkpoint_io = _ReportingIO()
        if trainer.is_global_zero and new.is_dir():  # of a process that was killed
            shutil.rmtree(new, ignore_errors=True)  # an error of one process would leave the others waiting
        error = _write(trainer, new)
        if trainer.is_global_zero and error is None:
            try:
                self._take_place(new, best)
            except OSError as raised:
                error = raised
        said = None if error is None else f"{self.last}: {error.strerror or error}"
        self.unsaved = trainer.strategy.broadcast(said)
        if self.unsaved and trainer.is_global_zero:
            print(
                f"NOT SAVED, {self.unsaved}; the previous state stays, training goes on. Free some space.", flush=True
            )
            with contextlib.suppress(OSError):
                _remove(new)
        return self.unsaved is None

    def _take_place(self, new: Path, best: bool) -> None:
        _flush(new)
        if best:
            second_name(new, self.best)
        if new.is_dir() or self.last.is_dir():  # a folder cannot be exchanged in one step; previous.ckpt is whole then
            if self.last.exists():
                _remove(self.previous)
                self.last.rename(self.previous)
        elif self.last.exists():
            second_name(self.last, self.previous)
        new.replace(self.last)
        _flush(self.folder)


def _write(trainer: L.Trainer, path: Path) -> OSError | None:
    """What kept a checkpoint from being written, in a process that knows; None if nothing did."""
    try:
        trainer.save_checkpoint(path, weights_only=False)
    except OSError as raised:  # no folder could be made, which all processes meet; or a user's own way of saving
        return raised
    except RuntimeError as raised:
        if not (path / ".metadata").exists():
            raise
        # the parts are written, but not what the first process writes beside them; the others wait for it
        trainer.strategy.barrier("Trainer.save_checkpoint")
        return OSError(f"meta.pt cannot be written; is the disk full? {str(raised).splitlines()[0]}")
    except CheckpointException as raised:  # of a network that is spread over processes, and in all of them
        errors = [error for error, _ in raised.failures.values()]
        full = [error for error in errors if isinstance(error, OSError)]
        if len(full) < len(errors):
            raise
        return full[0]
    return getattr(trainer.strategy.checkpoint_io, "error", None)


def second_name(path: Path, other: Path) -> None:
    """Give a file a second name, whose former file goes; it takes no space until the first name means another file."""
    new = other.with_suffix(".also")
    _remove(new)
    if path.is_dir():
        shutil.copytree(path, new, copy_function=_link)
    else:
        _link(path, new)
    if new.is_dir() or other.is_dir():
        _remove(other)
    new.replace(other)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link(path: str | Path, other: str | Path) -> None:
    try:
        os.link(path, other)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, other)
        _flush(Path(other))


def _flush(path: Path) -> None:
    """Have the disk hold a file, or a folder's names, before the next step relies on it."""
    for file in path.iterdir() if path.is_dir() and path.suffix else ():
        _flush(file)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
