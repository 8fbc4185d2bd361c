"""Replace a weight folder by a new one in a single step, after the new one has been verified."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from acmix_zoo.weights.description import has_config, read_config
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
    if hint := _FILE_HINTS.get(folder.suffix.lower()):
        raise ValueError(
            f"{folder.name} is the name of a {folder.suffix} file, but weights are written as a folder. Expected a "
            f"folder name, such as {folder.stem}. {hint}"
        )
    if Path.cwd().is_relative_to(folder):
        raise ValueError(
            f"{folder} contains the current directory, so it cannot be replaced. Expected another folder, such as "
            "./weights"
        )
    expected = "Expected a new path, an empty folder or a weight folder. Choose a different path"
    is_empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not (is_empty or has_config(folder) or _is_damaged(folder)):
        raise FileExistsError(f"{folder} exists and is not a weight folder. {expected}")
    if others := _other_files(folder):
        raise FileExistsError(f"{folder} also contains {', '.join(others)[:200]}, which would be deleted. {expected}")
    return folder


def _is_damaged(folder: Path) -> bool:
    """Return whether this looks like a weight folder whose config.json is not valid JSON."""
    try:
        json.loads((folder / "config.json").read_bytes())
    except OSError:
        return False
    except (ValueError, RecursionError):
        return (folder / "test/example.safetensors").is_file()  # other libraries have no such file
    return False


def _other_files(folder: Path) -> list[str]:
    """Return the files in a folder, relative to it, that do not belong to its weights. Folders are not entered."""
    pictures = read_config(folder).get("acmix_zoo", {}).get("pictures") if has_config(folder) else None
    files = {"config.json", "model.safetensors", "README.md", ".gitattributes"}
    folders: dict[str, Callable[[str], bool]] = {
        "test": lambda name: name == "example.safetensors",
        "pictures": lambda name: name in pictures if isinstance(pictures, Mapping) else _is_damaged(folder),
        ".eval_results": lambda name: name.endswith(".yaml"),
        ".cache": lambda name: True,  # of the Hub's tools, as .gitattributes
    }
    others = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name in folders and path.is_dir():
            belongs = folders[path.name]
            others += [
                f"{path.name}/{each.name}"
                for each in sorted(path.iterdir())
                if not belongs(each.name) or (each.is_dir() and path.name != ".cache")
            ]
        elif path.name not in files or path.is_dir():
            others.append(path.name)
    return others


def copy_weights_folder(source: Path, target: Path) -> None:
    """Copy the files of a weight folder into an existing folder, without any other files beside them."""
    others = set(_other_files(source))
    for path in (path for pattern in WEIGHT_FOLDER_FILES for path in source.glob(pattern)):
        name = path.relative_to(source)
        if name.as_posix() not in others:
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copy(path, target / name)


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
