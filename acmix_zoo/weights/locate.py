"""Find out what a name or path refers to. Every function and command that takes a model or weights starts here.

A user may give the name of a network (`acmix_resnet_pico`), of its weights (`acmix_resnet_pico.fashion_mnist`) or of a
shipped detector (`fcos_acmix_resnet_nano.bccd`), the path of a weight folder, a run folder or a checkpoint of any kind,
or a repository on the Hugging Face Hub (`org/name`, `org/name@revision`, or `hf-hub:org/name`). `locate` turns any of
them into a `ModelLocation`, which says what it is and where it is stored.
"""

from __future__ import annotations

import csv
import difflib
import os
from dataclasses import dataclass
from enum import Enum
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import timm
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but exported lazily

from acmix_zoo.weights.description import has_config, read_config
from acmix_zoo.weights.names import closest_models, is_network_name
from acmix_zoo.weights.not_found import NotFoundError, not_found_error
from acmix_zoo.weights.shipped import shipped_task_networks

HUB_PREFIX = "hf-hub:"
WEIGHT_SUFFIXES = {".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".npz"}
_RECIPE_SUFFIXES = {".yaml", ".yml"}
_RUNS = "runs"  # the folder that holds runs by default
_EXPECTED_PATH = "a weight folder, a run folder or a checkpoint file"


class Kind(Enum):
    """What a name or path refers to."""

    NETWORK = "the name of a network or of its weights"
    WEIGHT_FOLDER = "a weight folder"
    CHECKPOINT = "a checkpoint or weight file"
    SHARDED_CHECKPOINT = "a sharded checkpoint, written by several processes"
    REPOSITORY = "a repository on the Hugging Face Hub"


class Repository(NamedTuple):
    """A repository on the Hugging Face Hub.

    Attributes:
        id: its name, `org/name`.
        revision: a branch, a tag or a commit; None for the main branch.
    """

    id: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.id}@{self.revision}" if self.revision else self.id


@dataclass(frozen=True)
class ModelLocation:
    """What a name or path refers to.

    Attributes:
        name: the name or path as the user gave it, for messages.
        kind: what it refers to.
        path: the weight folder, checkpoint file or sharded checkpoint. None for a network or a repository.
        run: the run folder that contains `path`, or None.
        architecture: for a network, its name without the tag; "" otherwise.
        tag: for a network, the tag of its weights; "" if none was given, and for everything else.
        repository: for a repository, its name and revision; None otherwise.
    """

    name: str
    kind: Kind
    path: Path | None = None
    run: Path | None = None
    architecture: str = ""
    tag: str = ""
    repository: Repository | None = None


def locate(source: str | PathLike[str], *, prefers_paths: bool = False) -> ModelLocation:
    """Return what `source` refers to. A run folder, or its `config.yaml`, refers to the weights of the run.

    A finished run's weights are in `weights/`. Those of an interrupted run are in `checkpoints/best.ckpt`, even if it
    was finished before and then trained for longer.

    Args:
        source: a name or a path. A `Path` is never interpreted as a name.
        prefers_paths: whether a folder in the working directory takes precedence over a network of the same name. By
            default it does not, because the meaning of `create_model("resnet18")` must not depend on the directory.
            Functions that need weights rather than a network pass True.

    Raises:
        NotFoundError: nothing has this name. The error lists the closest names.
    """
    name = str(source)
    if isinstance(source, str):
        if name.startswith(HUB_PREFIX):
            return ModelLocation(name, Kind.REPOSITORY, repository=parse_repository(name))
        if is_network_name(name) and not (prefers_paths and _locate_path(Path(name), name)):
            architecture, _, tag = name.partition(".")
            return ModelLocation(name, Kind.NETWORK, architecture=architecture, tag=tag)
        folder = shipped_task_networks().get(name)
        if folder and not (prefers_paths and _locate_path(Path(name), name)):
            return ModelLocation(name, Kind.WEIGHT_FOLDER, folder)
    if location := _locate_path(Path(source), name):
        return location
    if isinstance(source, str) and _is_repository(name):
        return ModelLocation(name, Kind.REPOSITORY, repository=parse_repository(name))
    raise _not_found_error(source)


def locate_weights(architecture: str, source: str | PathLike[str]) -> ModelLocation:
    """Return what `source` refers to as the weights of a network: one of its tags, or anything that `locate` finds.

    Raises:
        NotFoundError: there are no such weights. The error lists the network's tags.
    """
    if isinstance(source, str) and is_network_name(f"{architecture}.{source}"):
        return ModelLocation(f"{architecture}.{source}", Kind.NETWORK, architecture=architecture, tag=source)
    try:
        return locate(source, prefers_paths=True)
    except NotFoundError:
        if _reads_as_path(source):
            raise
        raise _unknown_tag_error(architecture, str(source)) from None


def parse_repository(name: str) -> Repository:
    """Parse `org/name` or `org/name@revision`, with or without the prefix `hf-hub:`.

    Raises:
        ValueError: this is not a valid name of a repository.
    """
    repo, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
    if repo.count("/") != 1:
        raise ValueError(f"{name!r} is not a valid repository name. Expected org/name or org/name@revision")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"{name!r} is not a valid repository name on the Hugging Face Hub: {error}") from error
    return Repository(repo, revision or None)


def find_run(path: Path) -> Path | None:
    """Return the run folder that a path is, or belongs to as its config.yaml, weights or checkpoints, or None."""
    if _is_run(path):
        return path
    if not path.exists():
        return None
    parent = path.absolute().parent
    if path.name in ("config.yaml", "weights", "checkpoints") and _is_run(parent):
        return parent
    return parent.parent if parent.name in ("weights", "checkpoints") and _is_run(parent.parent) else None


def _is_run(folder: Path) -> bool:
    """Return whether a folder is a run folder. A run that a Python program trained has no config.yaml."""
    return (folder / "config.yaml").is_file() or any((folder / "checkpoints").glob("*.ckpt"))


def is_sharded(path: Path) -> bool:
    """Return whether a folder is a checkpoint that several processes wrote."""
    return (path / ".metadata").is_file()


def _locate_path(path: Path, name: str) -> ModelLocation | None:
    """Return the weights that exist at `path`, or None."""
    run = path.parent if path.name in ("config.yaml", "checkpoints") else path
    weights, best = run / "weights", run / "checkpoints" / "best.ckpt"
    for candidate in (path, best, weights) if _is_trained_further(run) else (path, weights, best):
        if kind := _detect_kind(candidate):
            is_inside_weight_folder = kind is Kind.WEIGHT_FOLDER and candidate.is_file()
            found = candidate.parent if is_inside_weight_folder else candidate
            return ModelLocation(name, kind, found, run=find_run(found) if candidate == path else run)
    return None


def _is_trained_further(run: Path) -> bool:
    """Return whether a run has been trained for longer since its weights/ was written. Checkpoints are not read."""
    try:
        with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
            trained = max(float(row["epoch"]) for row in csv.DictReader(file))
        return trained > read_config(run / "weights")["acmix_zoo"]["epochs"]  # type: ignore[no-any-return]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return False  # a file is missing or damaged


def _detect_kind(path: Path) -> Kind | None:
    """Return the kind of the weights at a path, or None if there are none."""
    if (path / "config.json").is_file():
        return Kind.WEIGHT_FOLDER
    if is_sharded(path):
        return Kind.SHARDED_CHECKPOINT
    if not path.is_file() or path.suffix in _RECIPE_SUFFIXES:
        return None
    is_inside_weight_folder = path.name in ("model.safetensors", "config.json") and has_config(path.parent)
    return Kind.WEIGHT_FOLDER if is_inside_weight_folder else Kind.CHECKPOINT


def _reads_as_path(source: str | PathLike[str]) -> bool:
    """Return whether a name that was not found looks like a path rather than the name of a model."""
    name = str(source)
    separators = {"/", os.sep, os.altsep or os.sep}
    return isinstance(source, PathLike) or bool(separators & set(name)) or _has_file_suffix(name)


def _has_file_suffix(name: str) -> bool:
    return Path(name).suffix in WEIGHT_SUFFIXES | _RECIPE_SUFFIXES


def _could_be_repository(name: str) -> bool:
    """Return whether a name has the form `org/name` or `org/name@revision`."""
    if name.startswith((".", "~")) or _has_file_suffix(name.partition("@")[0]):
        return False
    try:
        parse_repository(name)
    except ValueError:
        return False
    return True


def _is_repository(name: str) -> bool:
    """Return whether an unknown name is more likely a repository than a mistyped path, such as a run that is not there
    yet."""
    path = Path(name)
    is_in_folder = path.parent.is_dir() or path.parts[0] == _RUNS
    return _could_be_repository(name) and not path.exists() and ("@" in name or not is_in_folder)


def _not_found_error(source: str | PathLike[str]) -> NotFoundError:
    """Return the error for a name that refers to nothing."""
    name, path = str(source), Path(source)
    architecture, _, tag = name.partition(".")
    if not name:
        return not_found_error("the name of the model is empty", _EXPECTED_PATH)
    if path.is_dir():
        expected = "a weight folder (with a config.json) or a run folder (with weights/ or checkpoints/best.ckpt)"
        return not_found_error(f"{name} is a folder without weights", expected)
    if path.exists():
        return not_found_error(f"{name} is a recipe, which has no weights", _EXPECTED_PATH)
    if not _reads_as_path(source):
        if timm.is_model(architecture):
            return _unknown_tag_error(architecture, tag)
        near = [*closest_models(name), *closest_paths(path)]
        expected = "the name of a network or of its weights, the path of a weight folder, run folder or checkpoint, or "
        expected += "a repository on the Hugging Face Hub (org/name)"
        return not_found_error(
            f"unknown model {name!r}", expected, near, "" if near else "Run `acmix-zoo list` to see all networks"
        )
    advice = ""
    if _could_be_repository(name):
        advice = f"If you mean a repository on the Hugging Face Hub, use {HUB_PREFIX}{name}"
    return not_found_error(f"{name} does not exist", _EXPECTED_PATH, closest_paths(path), advice)


def _unknown_tag_error(architecture: str, tag: str) -> NotFoundError:
    """Return the error for a tag that a network does not have."""
    tags = [name.partition(".")[2] for name in timm.models.get_arch_pretrained_cfgs(architecture) if "." in name]
    near = [*difflib.get_close_matches(tag.removeprefix(f"{architecture}."), tags), *closest_paths(Path(tag))]
    if not tags:
        problem = f"`{architecture}` has no tag {tag!r}: no pretrained weights are registered for it"
        return not_found_error(problem, _EXPECTED_PATH, near)
    return not_found_error(f"{architecture} has no tag {tag!r}", f"{' or '.join(tags)}, or {_EXPECTED_PATH}", near)


def closest_paths(path: Path) -> list[str]:
    """Return up to three paths with weights whose names are similar, in the same folder or one of a similar name."""
    folder = path.parent
    folders = [folder] if folder.is_dir() else _similar_entries(folder)
    near = [entry for folder in folders for entry in _similar_entries(folder / path.name)]
    return [str(found) for found in near if _locate_path(found, str(found))][:3]


def _similar_entries(path: Path) -> list[Path]:
    """Return the entries of the same folder whose names are similar to that of `path`, the closest first."""
    try:
        entries = os.listdir(path.parent)
    except OSError:
        return []
    return [path.parent / name for name in difflib.get_close_matches(path.name, entries, n=8)]
