"""One run at a time writes a run folder."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # no POSIX: nothing is locked
    fcntl: Any = None  # type: ignore[no-redef]


class Lock:
    """A lock on a folder, of this process and none that it starts; it ends with the process, kill -9 or not. Within a
    process one at a time: the system drops the lock when any of them is closed.

    `filelock`, which torch installs, does not work here in every version that torch accepts. Its lock is a `flock`,
    which the forked processes of a loader inherit. With filelock 3.20, the folder of a killed run therefore stays
    locked until these processes have ended, too, and a second run that checks the lock erases the name of the holder.
    Version 4 fixes both, but uses a marker file where `flock` is unavailable, and a crashed machine leaves it behind.

    Args:
        folder: gets a file `.lock`, which says who has it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self._file: IO[str] | None = None

    def take(self) -> None:
        """
        Raises:
            OSError: another process has it.
        """
        if fcntl is None or self._file is not None:
            return
        file = self.path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):  # others: a file system that knows no locks
                file.seek(0)
                raise OSError(
                    f"{self.path.parent} is being written by another run ({file.read().strip() or 'not known whose'}); "
                    "end that one to go on with it here, or choose another --run.folder. Processes of a torchrun that "
                    "was killed go on without it; of a lost machine a network file system may learn in a minute or two"
                ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file

    def release(self, remove: bool = False) -> None:
        """Let another process have it.

        Args:
            remove: also delete the file, if this process has the lock.
        """
        if self._file is not None:
            if remove:
                self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None
