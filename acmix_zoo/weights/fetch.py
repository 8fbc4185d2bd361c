"""Bring located weights onto this machine: find them in a cache, or download them from the Hugging Face Hub.

A repository of the Hub holds what a weight folder holds. Only these files are downloaded, and none of them is executed.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import huggingface_hub as hf
from huggingface_hub import errors

from acmix_zoo.weights.description import read_config
from acmix_zoo.weights.hub_requests import request
from acmix_zoo.weights.locate import Kind, Located, NotFoundError, Repository, locate
from acmix_zoo.weights.names import list_tags
from acmix_zoo.weights.official import official_folder
from acmix_zoo.weights.shipped import shipped_folder

WEIGHT_FOLDER_FILES = ["config.json", "model.safetensors", "README.md", "test/*", ".eval_results/*"]
_LARGEST_FILE = 64 * 2**30  # bytes, for repositories whose config.json states no size


def fetch(located: Located, token: str | None = None) -> Path:
    """Return the weight folder or file on this machine that holds located weights. Download them if necessary.

    Args:
        located: anything but a sharded checkpoint. Of a repository, only config.json and model.safetensors are
            downloaded. Of a network, the weights have to be on this machine already.
        token: for private repositories; by default the one of `hf auth login` or HF_TOKEN.

    Raises:
        ValueError: only training can read these weights. Otherwise as `request`.
    """
    if located.repository is not None:
        return download_weights(located.repository, token)
    if located.kind is Kind.NETWORK:
        return _installed_folder(located)
    if located.kind is Kind.SHARDED_CHECKPOINT:
        raise ValueError(
            f"{located.name} is a checkpoint in parts, which several processes wrote. Expected a single file or a "
            f"weight folder; run `acmix-zoo export {located.name} FOLDER` to make one"
        )
    assert located.path is not None
    return located.path


def weight_folder(source: str | PathLike[str], token: str | None = None) -> Path:
    """Return the complete weight folder that a name or path refers to, with its sample input and model card.

    Args:
        source: a weight folder, a run folder with weights/, a repository of the Hub, or the name of weights that are
            on this machine. For the name of a network, its first weights that are on this machine are used.
        token: as in `fetch`.

    Raises:
        NotFoundError: there are no such weights here. ValueError: `source` is a checkpoint. Otherwise as `request`.
    """
    located = locate(source, prefers_paths=True)
    if located.repository is not None:
        return download_folder(located.repository, token)
    if located.kind in (Kind.CHECKPOINT, Kind.SHARDED_CHECKPOINT):
        raise ValueError(
            f"{source} is not a weight folder: {located.path} is {located.kind.value}. Make a weight folder of it with "
            f"`acmix-zoo export {source} FOLDER`, or with `acmix-zoo convert` if it is not from `acmix-zoo fit`"
        )
    return fetch(located, token)


def installed_folder(name: str) -> Path | None:
    """Return the weight folder of `architecture.tag` on this machine: shipped with the package, or downloaded from the
    authors. None if there is none."""
    for folder in (shipped_folder(name), official_folder(name)):
        if folder is not None and (folder / "config.json").is_file():
            return folder
    return None


def _installed_folder(network: Located) -> Path:
    """Return the first weight folder of a network, or of its given tag, that is on this machine."""
    tags = [network.tag] if network.tag else list_tags(network.architecture)
    for tag in tags:
        if folder := installed_folder(f"{network.architecture}.{tag}"):
            return folder
    raise NotFoundError(
        f"there is no weight folder of {network.name} on this machine. Expected weights that are shipped or have been "
        "downloaded before, see `acmix-zoo list --pretrained`. To download weights, use "
        f'acmix_zoo.create_model("{network.name}", pretrained=True)'
    )


def download_weights(repository: Repository, token: str | None = None) -> Path:
    """Return a folder in the Hub's cache with config.json and model.safetensors of the same commit.

    config.json is downloaded first. The weights are only downloaded if they have the size that it states.

    Raises:
        ValueError: the weights have another size. Otherwise as `request`.
    """
    repo, revision = repository
    api = hf.HfApi(token=token)
    config = Path(request(lambda: api.hf_hub_download(repo, "config.json", revision=revision), repository))
    commit = config.parent.name  # the layout of the cache is snapshots/<commit>/config.json
    stated = read_config(config.parent).get("acmix_zoo", {}).get("file_size")
    try:
        api.hf_hub_download(repo, "model.safetensors", revision=commit, local_files_only=True)
    except errors.LocalEntryNotFoundError:
        url = hf.hf_hub_url(repo, "model.safetensors", revision=commit, endpoint=api.endpoint)
        size = request(lambda: api.get_hf_file_metadata(url=url), repository).size
        if size is None or size != (stated or size) or size > _LARGEST_FILE:
            raise ValueError(
                f"{repository}: model.safetensors has {size} bytes, but config.json says {stated}. It was not "
                "downloaded"
            ) from None
        request(lambda: api.hf_hub_download(repo, "model.safetensors", revision=commit), repository)
    return config.parent


def download_folder(repository: Repository, token: str | None = None) -> Path:
    """Return a folder in the Hub's cache with all files of a weight folder, of the same commit."""
    commit = download_weights(repository, token).name  # checks the size first
    api = hf.HfApi(token=token)
    return Path(
        request(
            lambda: api.snapshot_download(repository.id, revision=commit, allow_patterns=WEIGHT_FOLDER_FILES),
            repository,
        )
    )
