"""Find out what a name or path refers to. Every function and command that takes a model or weights starts here.

A user may give the name of a network (`acmix_resnet_pico`) or of its weights (`acmix_resnet_pico.fashion_mnist`), the
path of a weight folder, a run folder or a checkpoint of any kind, or a repository of the Hugging Face Hub (`org/name`,
`org/name@revision`, or `hf-hub:org/name`). `locate` turns all of them into a `Located`, which says what was meant.
"""

from __future__ import annotations

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

from acmix_zoo.weights.description import has_config
from acmix_zoo.weights.names import closest_models, is_network_name

HUB_PREFIX = "hf-hub:"
_FILE_SUFFIXES = {".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".npz", ".yaml"}


class NotFoundError(FileNotFoundError, ValueError):
    """Nothing has this name: there is no such model (a ValueError) and no such path (a FileNotFoundError)."""


class Kind(Enum):
    """What a name or path refers to."""

    NETWORK = "the name of a network or of its weights"
    WEIGHT_FOLDER = "a weight folder"
    CHECKPOINT = "a checkpoint or weight file"
    SHARDED_CHECKPOINT = "a checkpoint folder that several processes wrote"
    REPOSITORY = "a repository of the Hugging Face Hub"


class Repository(NamedTuple):
    """A repository of the Hugging Face Hub.

    Attributes:
        id: its name, `org/name`.
        revision: a branch, a tag or a commit; None for the main branch.
    """

    id: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.id}@{self.revision}" if self.revision else self.id


@dataclass(frozen=True)
class Located:
    """What a name or path refers to.

    Attributes:
        name: the name or path as the user gave it, for messages.
        kind: what it refers to.
        path: the weight folder, the file, or the sharded checkpoint's folder. None for a network and a repository.
        run: the run folder that `path` is part of, or None.
        architecture: the network's name without a tag, for a network only; "" otherwise.
        tag: which of the network's weights are meant. "" for a network without a tag and for everything else.
        repository: the repository and its revision, or None.
    """

    name: str
    kind: Kind
    path: Path | None = None
    run: Path | None = None
    architecture: str = ""
    tag: str = ""
    repository: Repository | None = None


def locate(source: str | PathLike[str], *, prefers_paths: bool = False) -> Located:
    """Return what `source` refers to. A run folder, or its `config.yaml`, refers to the weights of the run.

    A finished run's weights are in `weights/`. Those of an interrupted run are in `checkpoints/best.ckpt`.

    Args:
        source: a name or a path. A `Path` is never taken for a name.
        prefers_paths: what to do if a folder in the working directory has the name of a network. By default, the
            network is meant, because the meaning of `create_model("resnet18")` must not depend on the directory.
            Functions that need weights rather than a network pass True and get the folder.

    Raises:
        NotFoundError: there is nothing of this name. The error lists the closest names.
    """
    name = str(source)
    if isinstance(source, str):
        if name.startswith(HUB_PREFIX):
            return Located(name, Kind.REPOSITORY, repository=parse_repository(name))
        if is_network_name(name) and not (prefers_paths and _locate_path(Path(name), name)):
            architecture, _, tag = name.partition(".")
            return Located(name, Kind.NETWORK, architecture=architecture, tag=tag)
    if located := _locate_path(Path(source), name):
        return located
    if isinstance(source, str) and _is_repository(name):
        return Located(name, Kind.REPOSITORY, repository=parse_repository(name))
    raise _not_found(source)


def locate_weights(architecture: str, source: str | PathLike[str]) -> Located:
    """Return what `source` refers to as the weights of a network: one of its tags, or anything that `locate` finds.

    Raises:
        NotFoundError: there are no such weights. The error lists the network's tags.
    """
    if isinstance(source, str) and is_network_name(f"{architecture}.{source}"):
        return Located(f"{architecture}.{source}", Kind.NETWORK, architecture=architecture, tag=source)
    try:
        return locate(source, prefers_paths=True)
    except NotFoundError:
        if _reads_as_path(source):
            raise
        raise _no_such_tag(architecture, str(source)) from None


def parse_repository(name: str) -> Repository:
    """Return the repository that `org/name` or `org/name@revision` stands for, with or without the prefix `hf-hub:`.

    Raises:
        ValueError: no repository can have this name.
    """
    repo, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
    if repo.count("/") != 1:
        raise ValueError(
            f"{name!r} is not the name of a repository on the Hugging Face Hub. Expected org/name or org/name@revision"
        )
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"the Hugging Face Hub does not allow the name {name!r}: {error}") from error
    return Repository(repo, revision or None)


def _locate_path(path: Path, name: str) -> Located | None:
    """Return the weights that exist at `path`, or None."""
    run = path.parent if path.name == "config.yaml" else path
    for place in (path, run / "weights", run / "checkpoints" / "best.ckpt"):
        if kind := _kind_of(place):
            is_part = kind is Kind.WEIGHT_FOLDER and place.is_file()  # the model.safetensors in it
            weights = place.parent if is_part else place
            return Located(name, kind, weights, _run_that_contains(weights) if place == path else run)
    return None


def _kind_of(path: Path) -> Kind | None:
    """Return the kind of the weights at a path, or None if there are none."""
    if (path / "config.json").is_file():
        return Kind.WEIGHT_FOLDER
    if (path / ".metadata").is_file():
        return Kind.SHARDED_CHECKPOINT
    if not path.is_file() or path.name == "config.yaml":
        return None
    is_part = path.name == "model.safetensors" and has_config(path.parent)
    return Kind.WEIGHT_FOLDER if is_part else Kind.CHECKPOINT


def _run_that_contains(path: Path) -> Path | None:
    """Return the run folder of which `path` is the `weights/` or a file in `checkpoints/`, or None."""
    parent = path.absolute().parent
    if path.name == "weights" and ((parent / "config.yaml").is_file() or (parent / "checkpoints").is_dir()):
        return parent
    return parent.parent if path.suffix == ".ckpt" and parent.name == "checkpoints" else None


def _reads_as_path(source: str | PathLike[str]) -> bool:
    """Return whether a name that was not found is probably a misspelt path rather than a misspelt model."""
    name = str(source)
    separators = {"/", os.sep, os.altsep or os.sep}
    return isinstance(source, PathLike) or bool(separators & set(name)) or Path(name).suffix in _FILE_SUFFIXES


def _could_be_repository(name: str) -> bool:
    """Return whether a name has the form `org/name` or `org/name@revision`."""
    if name.startswith((".", "~")) or Path(name.partition("@")[0]).suffix in _FILE_SUFFIXES:
        return False
    try:
        parse_repository(name)
    except ValueError:
        return False
    return True


def _is_repository(name: str) -> bool:
    """Return whether an unknown name is probably a Hub repository rather than a mistyped path."""
    path = Path(name)
    return _could_be_repository(name) and not path.exists() and ("@" in name or not path.parent.is_dir())


def _not_found(source: str | PathLike[str]) -> NotFoundError:
    """Return the error for a name that refers to nothing."""
    name, path = str(source), Path(source)
    architecture, _, tag = name.partition(".")
    if path.is_dir():
        return NotFoundError(
            f"{name} is a folder without weights. Expected a weight folder, which has a config.json, or a run folder "
            "with weights/ or checkpoints/best.ckpt"
        )
    if not _reads_as_path(source):
        if timm.is_model(architecture):
            return _no_such_tag(architecture, tag)
        near = closest_models(name) + _closest_paths(path)
        hint = f"The closest names are {', '.join(near)}" if near else "`acmix-zoo list` shows the networks"
        return NotFoundError(
            f"unknown model {name!r}. Expected the name of a network or of weights, the path of a weight folder, run "
            f"folder or checkpoint, or org/name on the Hugging Face Hub. {hint}"
        )
    near = _closest_paths(path)
    hint = f". The closest names are {', '.join(near)}" if near else ""
    if path.parent.is_dir() and _could_be_repository(name):
        hint += f". For a repository of the Hugging Face Hub, write {HUB_PREFIX}{name}"
    return NotFoundError(f"{name} does not exist. Expected a weight folder, a run folder or a checkpoint file{hint}")


def _no_such_tag(architecture: str, tag: str) -> NotFoundError:
    tags = [name.partition(".")[2] for name in timm.models.get_arch_pretrained_cfgs(architecture) if "." in name]
    return NotFoundError(
        f"{architecture} has no tag {tag!r}. Expected {' or '.join(tags) or 'no tag, because it has none'}, or the "
        "path of a weight folder, a run folder or a checkpoint file"
    )


def _closest_paths(path: Path) -> list[str]:
    """Return up to three paths with weights in the same folder whose names are similar."""
    folder = path.parent
    try:
        beside = os.listdir(folder)
    except OSError:
        return []
    near = [folder / name for name in difflib.get_close_matches(path.name, beside, n=8)]
    return [str(found) for found in near if _locate_path(found, str(found))][:3]
