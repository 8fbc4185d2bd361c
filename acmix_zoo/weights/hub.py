"""Push weight folders to the Hugging Face Hub and pull them from it, each as a single commit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub as hf
from huggingface_hub import errors

from acmix_zoo.models.task_kinds import CLASSIFICATION, config_task
from acmix_zoo.weights.description import read_config
from acmix_zoo.weights.fetch import WEIGHT_FOLDER_FILES, download_folder, weight_folder
from acmix_zoo.weights.hub_requests import request
from acmix_zoo.weights.locate import Repository, parse_repository
from acmix_zoo.weights.replace import check_target, copy_weights_folder, replace_folder, temporary_sibling
from acmix_zoo.weights.verification import check_folder


def pull(name: str, folder: str | Path | None = None, *, token: str | None = None) -> Path:
    """Download a weight folder from the Hub. It is verified before anything is replaced.

    Args:
        name: "org/name" or "org/name@revision".
        folder: where to write it; by default the repository's name, in the working directory. An existing weight folder
            is replaced.
        token: for private repositories; by default the one of `hf auth login` or HF_TOKEN.

    Returns:
        The folder.

    Raises:
        FileExistsError: `folder` exists and is not a weight folder. Other errors are those of `from_pretrained`.
    """
    repository = parse_repository(name)
    target = check_target(folder or repository.id.partition("/")[2])
    with temporary_sibling(target) as new:
        copy_weights_folder(download_folder(repository, token), new)
        replace_folder(target, new)
    return target


def push(
    folder: str | Path, name: str, *, private: bool = False, revision: str | None = None, token: str | None = None
) -> str:
    """Publish a weight folder as one commit. An interrupted upload can be resumed, and nothing is half-published.

    Args:
        folder: a weight folder that verifies, or the run folder that contains it. It is not modified.
        name: "org/name". The repository is created if necessary.
        private: whether a new repository is private.
        revision: the branch to commit to, created if necessary; by default the main branch.
        token: token of the Hub. The default is the one of `hf auth login` or HF_TOKEN.

    Returns:
        The address of the commit.

    Raises:
        ValueError: the folder does not verify, it holds the authors' weights, which have no licence, or the repository
            holds a different model.
        PermissionError: there is no token, or it has no write permission.
        ConnectionError: the Hub cannot be reached, or it failed repeatedly.
        OSError: the Hub rejected the push for a different reason.
    """
    repository = check_push(name, token)
    branch = revision or repository.revision
    repository = Repository(repository.id, branch)
    folder = weight_folder(folder)
    config = read_config(folder)
    if problems := check_folder(folder):
        raise ValueError(f"{folder} does not verify and was not pushed: {'; '.join(problems)}")
    record = config["acmix_zoo"]
    if str(record.get("origin", "")).startswith("the authors"):
        raise ValueError(
            f"{folder} holds the authors' weights, which must not be redistributed, because they have no licence. "
            f'Others can download them with acmix_zoo.create_model("{record["name"]}", pretrained=True)'
        )
    api = hf.HfApi(token=token)

    def upload() -> str:
        api.create_repo(repository.id, private=private or None, exist_ok=True)
        if branch:
            api.create_branch(repository.id, branch=branch, exist_ok=True)
        _check_network(api, repository, config)
        # Large files go first. The Hub keeps them even if the commit does not follow, so a second try finds them.
        commit = api.upload_folder(
            repo_id=repository.id, folder_path=folder, revision=branch, allow_patterns=WEIGHT_FOLDER_FILES,
            delete_patterns=[pattern for pattern in WEIGHT_FOLDER_FILES if "/" in pattern],
            commit_message=f"{record['name']}, by acmix_zoo",
        )  # fmt: skip
        return str(commit.commit_url)

    return request(upload, repository, is_push=True)


def check_push(name: str, token: str | None = None) -> Repository:
    """Check what can be checked before a push without the Hub: that the name is valid and that there is a token.

    Returns:
        The repository.

    Raises:
        ValueError: the name is not a valid name of a repository.
        PermissionError: there is no token.
    """
    repository = parse_repository(name)
    if not (token or hf.get_token()):
        raise PermissionError(
            "push: there is no token for the Hub. Run `hf auth login`, or set HF_TOKEN to a token with write permission"
        )
    return repository


def _check_network(api: hf.HfApi, repository: Repository, config: Mapping[str, Any]) -> None:
    """Check that a push would not replace the weights of a different network.

    Raises:
        ValueError: the repository holds a different network, or something else.
    """
    try:
        path = api.hf_hub_download(repository.id, "config.json", revision=repository.revision)
    except errors.RemoteEntryNotFoundError:
        return
    try:
        existing = _describe_network(json.loads(Path(path).read_text(encoding="utf-8")))
    except (ValueError, AttributeError, KeyError):
        existing = "something else"
    if existing != (own := _describe_network(config)):
        raise ValueError(
            f"{repository.id} exists and holds {existing}. Expected {own}. Choose a different name, or a separate "
            "branch with --revision"
        )


def _describe_network(config: Mapping[str, Any]) -> str:
    """Return the network of a config.json as text: its architecture and, for other tasks, what is built on it."""
    task, options = config_task(config), config.get("task_options", {})
    if task is CLASSIFICATION:
        return str(config["architecture"])
    method = options.get("detector") or options.get("decoder")
    return f"{config['architecture']} with {method} for {task.title}"
