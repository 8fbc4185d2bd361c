"""Choose the run folder of a command, and find the data of a run that was moved, before anything is built."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]
from lightning.pytorch.utilities import rank_zero_only

from acmix_zoo.data.sources.find_images import is_run
from acmix_zoo.data.sources.folder_source import FolderSource
from acmix_zoo.data.sources.installed_sources import SHIPPED
from acmix_zoo.training.run import RunFolder
from acmix_zoo.weights.names import is_network_name


def choose_run_folder(config: Any, command: str) -> list[str]:
    """Set the run folder in a configuration, in place.

    If the config is a run's own config.yaml, the run folder is the folder that contains it, even if that was moved or
    the command is run from a different directory. `_find_recorded` finds the paths in it, and a fit resumes the run
    unless --ckpt_path is given. A different run folder, on the command line or in another config, is a new run. Without
    any, the folder is named after the recipe (or the network) and the data, so that two experiments do not share one.

    Args:
        config: the parsed options of the subcommand.
        command: the command line as given.

    Returns:
        The options whose recorded paths were found in another place, such as "data.source".
    """
    recipes = [Path(str(path)) for path in config.get("config") or []]
    given = {word.split("=")[0] for word in shlex.split(command)}
    run_config = next((path for path in reversed(recipes) if _is_run_config(path)), None)
    stated = yaml.safe_load(run_config.read_text(encoding="utf-8")) if run_config else {}  # without the other configs
    recorded = stated.get("run", {}).get("folder")
    moved: list[str] = []
    if run_config is not None and "--run.folder" not in given and config.run.folder == recorded:
        run_folder = run_config.parent
        config.run.folder = str(run_folder)
        if "--ckpt_path" not in given and config.ckpt_path is None:
            config.ckpt_path = "last"  # the file itself has null, so that it can also repeat the run in a new folder
        paths = [("data", "source"), ("data", "classes_file")]
        if not RunFolder(str(run_folder)).last.exists():  # otherwise the start weights are not needed any more
            paths += [("model", "pretrained"), ("model", "model")]
        for group, name in paths:
            value, option = config[group].get(name), f"--{group}.{name}"
            is_path = (
                isinstance(value, str) and value not in SHIPPED and not (name == "model" and is_network_name(value))
            )
            if is_path and option not in given and value == stated.get(group, {}).get(name):
                config[group][name] = _find_recorded(value, recorded, run_folder, option)
                if config[group][name] != value:
                    moved.append(f"{group}.{name}")
    if config.run.folder is None:
        experiment = recipes[0].stem if recipes else Path(str(config.model.model)).name
        data = _data_name(str(config.data.source)) if config.data.source else ""
        config.run.folder = f"runs/{experiment}-{data}" if data else f"runs/{experiment}"
    return moved


def check_run_folder(folder: Path, source: Any) -> None:
    """Check that a new run will not write between the class folders that it is trained on.

    A new folder next to them is allowed, and so is their runs/. Neither is taken for a class.

    Args:
        folder: the run folder.
        source: the source of the images.

    Raises:
        ValueError: the run folder is the folder of the images, or lies elsewhere inside it.
    """
    if not isinstance(source, FolderSource):
        return
    run = folder.expanduser().resolve()
    for root in (source.root, *source.folders.values()):
        data = root.resolve()
        has_classes = root in source.folders.values()  # the root of a data set with splits has none
        if run != data and not (has_classes and data in run.parents):
            continue
        inside = run.relative_to(data).parts
        if inside[:1] == ("runs",) or (len(inside) == 1 and (is_run(run) or not run.exists())):
            continue
        raise ValueError(
            f"the run folder {folder} is inside {root}, the folder of the images, so files of the run would be taken "
            f"for images. Expected a folder outside it, or {root / 'runs'}/NAME. Choose a different --run.folder"
        )


class NextRunFolder(NamedTuple):
    """The folder for a new run.

    Attributes:
        path: the folder, which does not exist yet.
        unfinished: the folder of the newest earlier run on the same data if it was interrupted, or None.
    """

    path: Path
    unfinished: Path | None


def next_run_folder(source: str) -> NextRunFolder:
    """Return the first of runs/DATA, runs/DATA-2, runs/DATA-3, … that does not exist.

    Args:
        source: the data set, which gives the folder its name.
    """
    name = _data_name(source) or "data"
    path, number, newest = Path("runs") / name, 1, None
    while path.exists():
        newest, number = path, number + 1
        path = Path("runs") / f"{name}-{number}"
    is_unfinished = newest is not None and (newest / "checkpoints").is_dir() and not (newest / "weights").is_dir()
    return NextRunFolder(path, newest if is_unfinished else None)


def _data_name(source: str) -> str:
    """Return the last part of a path or name, with only characters that suit the name of a folder."""
    name = Path(source).name
    if name in ("", ".."):  # "." and "..": a run folder runs/.. would be the working directory
        name = Path(source).resolve().name
    return re.sub(r"[^\w.-]+", "_", name)


def with_absolute_paths(config: Any) -> Any:
    """Return a copy of a subcommand's options with absolute paths of the run folder and the data.

    The copy works from any directory.
    """
    config = config.clone()
    config.run.folder = os.path.abspath(config.run.folder)
    for name in ("source", "classes_file"):
        value = config.data.get(name)
        if isinstance(value, str) and value not in SHIPPED and Path(value).expanduser().exists():
            config.data[name] = os.path.abspath(os.path.expanduser(value))
    return config


def _find_recorded(value: str, recorded: str | None, run_folder: Path, option: str) -> str:
    """Return the present location of a path from a run's config.yaml. Print a line if it is not the recorded location.

    The recorded location is used if it exists. A relative path is relative to the directory in which the run was
    started, if that follows from the location of the run folder. Otherwise, data that were moved together with the run
    folder are found at the same location relative to it. Finally, a relative path is searched in the current directory.

    Args:
        value: the recorded path, or a name, which is returned unchanged.
        recorded: the run folder as recorded.
        run_folder: the run folder now.
        option: the option with this value, for the message.
    """
    if os.path.isabs(value):
        if os.path.exists(value) or not recorded or not os.path.isabs(recorded):
            return value
        moved = os.path.normpath(run_folder.resolve() / os.path.relpath(value, recorded))
        if not os.path.exists(moved):
            return value
        reason = f"{value} does not exist, and the run folder was moved; the same path relative to it exists"
    else:
        start = _find_start(run_folder, recorded)
        if start and (start / value).exists():
            return str(start / value)
        if not Path(value).exists():
            return value
        moved = os.path.abspath(value)
        reason = (
            f"{run_folder / 'config.yaml'} has the relative path {value}, which is taken from the current directory"
        )
    if is_first_process():
        print(f"Using {option} {moved}: {reason}", flush=True)
    return moved


def _is_run_config(path: Path) -> bool:
    return path.name == "config.yaml" and (path.parent / "checkpoints").is_dir()


def _find_start(folder: Path, recorded: str | None) -> Path | None:
    """Return the directory in which a run was started, or None if that does not follow from the present run folder.

    Args:
        folder: the present run folder.
        recorded: the run folder as recorded.
    """
    present, parts = folder.resolve().parts, Path(recorded or "").parts
    if not parts or Path(*parts).is_absolute() or ".." in parts or present[-len(parts) :] != parts:
        return None
    return Path(*present[: -len(parts)])


def is_first_process() -> bool:
    """Return whether this is the first process of the run, according to the launcher. There is no trainer yet."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0
