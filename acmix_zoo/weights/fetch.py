"""Get weights onto this machine: find them in the cache, or download them from the Hugging Face Hub.

A repository on the Hub has the same files as a weight folder. Only these files are downloaded, and none is executed.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import huggingface_hub as hf
from huggingface_hub import errors

from acmix_zoo.weights.description import read_config
from acmix_zoo.weights.hub_requests import request
from acmix_zoo.weights.locate import Kind, ModelLocation, Repository, locate
from acmix_zoo.weights.names import list_tags
from acmix_zoo.weights.not_found import NotFoundError
from acmix_zoo.weights.official import official_folder
from acmix_zoo.weights.shipped import shipped_folder

WEIGHT_FOLDER_FILES = ["config.json", "model.safetensors", "README.md", "test/*", "pictures/*", ".eval_results/*"]
_LARGEST_FILE = 64 * 2**30  # bytes, for repositories whose config.json states no size


def fetch(location: ModelLocation, token: str | None = None) -> Path:
    """Return the folder or file with these weights on this machine, after downloading them if necessary.

    Args:
        location: anything but a sharded checkpoint. From a repository, only config.json and model.safetensors are
            downloaded. The weights of a network have to be on this machine already.
        token: token for private repositories. The default is the one of `hf auth login` or HF_TOKEN.

    Raises:
        NotFoundError: the network has no weights on this machine.
        ValueError: this is a sharded checkpoint, which only training can read. Other errors are those of `request`.
    """
    if location.repository is not None:
        return download_weights(location.repository, token)
    if location.kind is Kind.NETWORK:
        return _installed_folder(location)
    if location.kind is Kind.SHARDED_CHECKPOINT:
        raise ValueError(
            f"{location.name} is a sharded checkpoint. Expected a single file or a weight folder. Run "
            f"`acmix-zoo export {location.name} FOLDER` to make a weight folder of it"
        )
    assert location.path is not None
    return location.path


def weight_folder(source: str | PathLike[str], token: str | None = None, *, is_complete: bool = True) -> Path:
    """Return the weight folder that a name or path refers to.

    Args:
        source: a weight folder, a run folder with weights/, a repository on the Hub, or the name of weights that are
            on this machine. The name of a network stands for the first of its tags whose weights are on this machine.
        token: as in `fetch`.
        is_complete: also download the sample input, the model card and its pictures.

    Raises:
        NotFoundError: there are no such weights on this machine.
        ValueError: `source` is a checkpoint. Other errors are those of `request`.
    """
    location = locate(source, prefers_paths=True)
    if location.repository is not None:
        download = download_folder if is_complete else download_weights
        return download(location.repository, token)
    if location.kind in (Kind.CHECKPOINT, Kind.SHARDED_CHECKPOINT):
        raise ValueError(
            f"{source} is not a weight folder: {location.path} is {location.kind.value}. Make a weight folder of it "
            f"with `acmix-zoo export {source} FOLDER`, or with `acmix-zoo convert` if `acmix-zoo fit` did not write it"
        )
    return fetch(location, token)


def installed_folder(name: str) -> Path | None:
    """Return the weight folder of `architecture.tag` that is shipped or was downloaded from the authors, or None."""
    for folder in (shipped_folder(name), official_folder(name)):
        if folder is not None and (folder / "config.json").is_file():
            return folder
    return None


def _installed_folder(network: ModelLocation) -> Path:
    """Return the weight folder of a network's tag. Without a tag, return the first that is on this machine."""
    tags = [network.tag] if network.tag else list_tags(network.architecture)
    for tag in tags:
        if folder := installed_folder(f"{network.architecture}.{tag}"):
            return folder
    if not tags:
        raise NotFoundError(f"there are no weights for {network.name}. Run `acmix-zoo list --pretrained` to see all")
    raise NotFoundError(
        f"the weights of {network.name} are not on this machine. Expected weights that are shipped or have been "
        "downloaded before (see `acmix-zoo list --pretrained`). To download them, call "
        f'acmix_zoo.create_model("{network.name}", pretrained=True)'
    )


def download_weights(repository: Repository, token: str | None = None) -> Path:
    """Return a folder in the Hub's cache with config.json and model.safetensors of the same commit.

    config.json is downloaded first. The weights are only downloaded if they have the size that it states.

    Raises:
        ValueError: the weights have a different size. Other errors are those of `request`.
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
                "downloaded. Use another revision, or ask the owner to push the weights again"
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
