"""Replace a weight folder by a new one in a single step, after the new one has been verified."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from acmix_zoo.weights.description import has_config
from acmix_zoo.weights.fetch import WEIGHT_FOLDER_FILES
from acmix_zoo.weights.verification import check_folder

_FOR_TORCH = "For a file: torch.save(acmix_zoo.create_model(WEIGHTS).state_dict(), FILE)"
# File extensions that users may try, and how to create such a file from a weight folder or run folder.
_FILE_HINTS = {
    **dict.fromkeys((".onnx", ".pt2"), "To write such a file, run `acmix-zoo export MODEL FILE`"),
    ".safetensors": "The safetensors file will be model.safetensors in that folder",
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin"), _FOR_TORCH),
}


def check_target(folder: str | Path) -> Path:
    """Return the absolute path for a new weight folder, without symbolic links.

    It may only exist if it is empty, or a weight folder without other files, because it will be replaced as a whole.

    Raises:
        ValueError: the path is that of a model file, such as model.onnx, or of the current directory.
        FileExistsError: the path exists and is something else.
    """
    folder = Path(os.path.realpath(folder))
    if folder.suffix in _FILE_HINTS:
        raise ValueError(
            f"{folder.name} is the name of a {folder.suffix} file, but weights are written as a folder. Expected a "
            f"folder name, such as {folder.stem}. {_FILE_HINTS[folder.suffix]}"
        )
    if Path.cwd().is_relative_to(folder):
        raise ValueError(
            f"{folder} contains the current directory, so it cannot be replaced. Expected another folder, such as "
            "./weights"
        )
    expected = "Expected a new path, an empty folder or a weight folder. Choose a different path"
    content = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if folder.exists() and not (folder.is_dir() and (not content or has_config(folder))):
        raise FileExistsError(f"{folder} exists and is not a weight folder. {expected}")
    known = {name.partition("/")[0] for name in WEIGHT_FOLDER_FILES} | {
        ".cache",
        ".gitattributes",
    }  # of the Hub's tools
    if others := sorted(content - known):
        raise FileExistsError(f"{folder} also contains {', '.join(others)[:200]}, which would be deleted. {expected}")
    return folder


@contextmanager
def temporary_sibling(folder: Path) -> Iterator[Path]:
    """Create an empty folder next to `folder`, on the same disk, and remove it at the end unless it was moved."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        new.chmod(0o755)  # mkdtemp gives no access to other users
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


def replace_folder(folder: Path, new: Path) -> None:
    """Verify the weight folder `new` and move it to `folder`. If it does not verify, `folder` is unchanged.

    Several processes may do this at the same time. The last one wins, and the folder is always complete. There is no
    lock file, because it would remain next to the folder, and some network file systems do not support locks.

    Raises:
        ValueError: `new` does not verify.
    """
    problems = check_folder(new)
    if problems:
        raise ValueError(f"{folder} would not verify: {'; '.join(problems)}")
    with temporary_sibling(folder) as old:
        for attempt in range(100):
            backup = old / str(attempt)
            try:
                with suppress(FileNotFoundError):
                    folder.rename(backup)
                new.rename(folder)
                return
            except BaseException as error:
                if isinstance(error, OSError) and error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                    continue  # another process has put its folder there in the meantime
                with suppress(OSError):  # there was no folder before, or another process has put its folder there
                    backup.rename(folder)
                raise
    raise FileExistsError(f"{folder} is replaced by other processes all the time. Write to a different folder")
