"""Make sure that only one run at a time writes to a run folder: create the folder and lock it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path
from typing import IO, Any

import lightning as L

try:
    import fcntl
except ImportError:  # no POSIX: nothing is locked
    fcntl: Any = None  # type: ignore[no-redef]


class Lock:
    """A lock on a folder. It belongs to this process alone, not to those that it starts, and ends with it, even after
    kill -9. A process may only have one lock on a folder: the system drops it when any of them is closed.

    `filelock`, which torch installs, does not work here in every version that torch accepts. Its lock is a `flock`,
    which the forked processes of a loader inherit. With filelock 3.20, the folder of a killed run therefore stays
    locked until these processes have ended, too, and a second run that checks the lock erases the name of the holder.
    Version 4 fixes both, but uses a marker file where `flock` is unavailable, and a crashed machine leaves it behind.

    Args:
        folder: the folder to lock. Its file `.lock` states which process has the lock.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self._file: IO[str] | None = None

    def take(self) -> None:
        """Take the lock.

        Raises:
            OSError: another process has it.
        """
        if fcntl is None or self._file is not None:
            return
        file = self.path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):  # other errors mean a file system without locks
                file.seek(0)
                raise OSError(
                    f"another run is writing to {self.path.parent} ({file.read().strip() or 'unknown process'}). Stop "
                    "that run to resume it here, or choose a different --run.folder. If torchrun was killed, its "
                    "processes may still be running. If a machine failed, a network file system may take a minute or "
                    "two to release the folder"
                ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file

    def release(self, remove: bool = False) -> None:
        """Release the lock.

        Args:
            remove: also delete the file, if this process has the lock.
        """
        if self._file is not None:
            if remove:
                self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None


class ClaimedFolder:
    """A run folder that a run creates and locks, and removes again if the run fails before its first step.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = Lock(folder)
        self._created: list[Path] = []  # folders that this run created, the innermost first
        self._created_lock = False

    def claim(self, trainer: L.Trainer) -> None:
        """Create the folder with its checkpoints/ and lock it. All processes call this together.

        Raises:
            OSError: another run is writing to it. This is raised in all processes.
        """
        innermost = self.folder / "checkpoints"
        self._created = [path for path in (innermost, *innermost.parents) if not path.exists()]
        self._created_lock = not self._lock.path.exists()
        innermost.mkdir(parents=True, exist_ok=True)
        message = None
        if trainer.is_global_zero:
            try:
                self._lock.take()
            except OSError as error:
                message = str(error)
        message = trainer.strategy.broadcast(message)
        if message:
            raise OSError(message)

    def release(self) -> None:
        """Let another run use the folder."""
        self._lock.release()

    def withdraw(self) -> None:
        """Release the folder and remove what was created for a run that did not begin."""
        self._lock.release(remove=self._created_lock)
        for path in self._created:
            with contextlib.suppress(OSError):  # it is not empty, because someone else uses it
                path.rmdir()
