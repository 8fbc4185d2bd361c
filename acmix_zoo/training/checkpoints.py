"""Save the checkpoints of a run so that a crash or a full disk never leaves it without a complete one.

A run resumes from last.ckpt. previous.ckpt is the one before it, and best.ckpt the one with the highest validation
score. Under a strategy that shards the network over processes, each is a folder (torch.distributed.checkpoint).
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
    """Stores the error of a write instead of raising it. Otherwise the other processes would wait for this one."""

    error: OSError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.error = None
        try:
            super().save_checkpoint(checkpoint, path, storage_options)
        except OSError as error:
            self.error = error


def is_checkpoint(path: Path) -> bool:
    """Return whether a file or folder is a readable checkpoint of Lightning. The weights are not loaded into memory."""
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
        """Why the last save failed; None if it succeeded."""

    def find_newest(self) -> Path | None:
        """Return the newest checkpoint that can be read, or None if there are no checkpoints.

        Raises:
            ValueError: there are checkpoints, but all are damaged.
        """
        existing = self._existing()
        for path in existing:
            if is_checkpoint(path):
                if path != self.last:
                    print(f"Warning: {self.last} is missing or damaged; resuming from {path} instead", flush=True)
                return path
        if existing:
            raise ValueError(
                f"all checkpoints are damaged: {', '.join(map(str, existing))}. To start the run again, choose a "
                "different --run.folder, or move this one away"
            )
        return None

    def exist(self) -> bool:
        """Return whether there is a run to resume."""
        return bool(self._existing())

    def resume_message(self, command: str) -> str:
        """Return a sentence that says how to resume the run. `command` is "" in a Python program."""
        if not self.last.exists():
            return "Nothing had been saved yet."
        how = f"run {command}" if command else "pass it to Trainer.fit as ckpt_path"
        return f"The last state is in {self.last}; {how} to resume."

    def take_best(self, trainer: L.Trainer, best: list[float]) -> bool:
        """If best.ckpt is missing, take the one beside the checkpoint that the run resumes from.

        It is missing in the folder of a new run that continues another one.

        Args:
            trainer: the trainer of the run.
            best: the best score so far. A best.ckpt that states another one was saved later and is not taken.

        Returns:
            Whether there is one now, in all processes. If not, a warning is printed.
        """
        other = Path(trainer.ckpt_path or self.best).with_name(self.best.name)
        if trainer.is_global_zero and not self.best.exists():
            if other.exists() and _stated_best(other) == best:
                self.folder.mkdir(parents=True, exist_ok=True)
                link(other, self.best)
            else:
                print(
                    f"Warning: {other} is missing, damaged or was saved later. The best weights will be chosen among "
                    "the remaining epochs",
                    flush=True,
                )
        found: bool = trainer.strategy.broadcast(self.best.exists())
        return found

    def _existing(self) -> list[Path]:
        return [path for path in (self.last, self.previous, self.best) if path.exists()]

    def save(self, trainer: L.Trainer, is_best: bool = False) -> bool:
        """Save the state as last.ckpt. The former last.ckpt becomes previous.ckpt. All processes call this together.

        A power cut at any moment leaves at least one of the two complete.

        Args:
            trainer: the trainer of the run.
            is_best: also save it as best.ckpt. This happens first, because the history in last.ckpt refers to it.

        Returns:
            Whether it was saved. If not, the former checkpoints are kept, and a warning is printed.
        """
        new = self.last.with_suffix(".new")
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # otherwise it is a plugin of the user
            trainer.strategy.checkpoint_io = _ReportingIO()
        if trainer.is_global_zero and new.is_dir():  # left behind by a process that was killed
            shutil.rmtree(new, ignore_errors=True)  # if one process raised an error, the others would wait for it
        error = _write(trainer, new)
        if trainer.is_global_zero and error is None:
            try:
                self._replace_last(new, is_best)
            except OSError as raised:
                error = raised
        reason = None if error is None else f"{self.last}: {error.strerror or error}"
        self.unsaved = trainer.strategy.broadcast(reason)
        if self.unsaved and trainer.is_global_zero:
            print(
                f"Warning: could not save {self.unsaved}. The previous checkpoint is kept and training continues. Free "
                "some disk space",
                flush=True,
            )
            with contextlib.suppress(OSError):
                _remove(new)
        return self.unsaved is None

    def _replace_last(self, new: Path, is_best: bool) -> None:
        _flush(new)
        if is_best:
            link(new, self.best)
        if new.is_dir() or self.last.is_dir():
            # A folder cannot be replaced in one step. In between, previous.ckpt is complete.
            if self.last.exists():
                _remove(self.previous)
                self.last.rename(self.previous)
        elif self.last.exists():
            link(self.last, self.previous)
        new.replace(self.last)
        _flush(self.folder)


def _write(trainer: L.Trainer, path: Path) -> OSError | None:
    """Write a checkpoint. Return the error that prevented it, in a process that knows it, or None."""
    try:
        trainer.save_checkpoint(path, weights_only=False)
    except OSError as raised:  # the folder could not be created (in all processes), or a plugin of the user failed
        return raised
    except RuntimeError as raised:
        if not (path / ".metadata").exists():
            raise
        # the shards are written, but not the file that the first process adds; the others wait for it
        trainer.strategy.barrier("Trainer.save_checkpoint")
        return OSError(f"could not write meta.pt; is the disk full? {str(raised).splitlines()[0]}")
    except CheckpointException as raised:  # from a sharded network, in all processes
        errors = [error for error, _ in raised.failures.values()]
        full = [error for error in errors if isinstance(error, OSError)]
        if len(full) < len(errors):
            raise
        return full[0]
    return getattr(trainer.strategy.checkpoint_io, "error", None)


def _stated_best(path: Path) -> Any:
    """Return the score that best.ckpt states, or None if it is damaged."""
    file = path / "meta.pt" if path.is_dir() else path
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)["callbacks"]["RunFolder"]["best"]
    except Exception:  # damaged files raise almost any exception
        return None


def link(path: Path, other: Path) -> None:
    """Replace `other` by a hard link to a file, or to the files of a folder, which needs no disk space."""
    new = other.with_suffix(".link")
    _remove(new)
    if path.is_dir():
        shutil.copytree(path, new, copy_function=_link_file)
    else:
        _link_file(path, new)
    if new.is_dir() or other.is_dir():
        _remove(other)
    new.replace(other)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link_file(path: str | Path, other: str | Path) -> None:
    try:
        os.link(path, other)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, other)
        _flush(Path(other))


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of files, has been written to the disk."""
    for file in path.iterdir() if path.is_dir() and path.suffix else ():
        _flush(file)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
