"""The Hugging Face Hub: weight folders pulled from it, used from it, and pushed to it as they are.

A repository of the Hub holds what a weight folder holds, and nothing that is executed. The client and its settings are
huggingface_hub's: HF_TOKEN or `hf auth login`, HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import huggingface_hub as hf
from huggingface_hub import errors
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but exported lazily
from torch import nn

from acmix_zoo.weights.build import build, read_config
from acmix_zoo.weights.checkpoint import build_path
from acmix_zoo.weights.folder import beside, free_place, take_place
from acmix_zoo.weights.locate import locate
from acmix_zoo.weights.verify import check_folder

_FILES = ["config.json", "model.safetensors", "README.md", "test/*", ".eval_results/*"]
_LARGEST = 64 * 2**30  # bytes, where no record states the size
_TRIES = 3
T = TypeVar("T")


def from_pretrained(source: str | Path, *, token: str | None = None, **kwargs: Any) -> nn.Module:
    """Return the model of a weight folder on the Hub or on this machine, with its weights.

    Args:
        source: "org/name", "org/name@revision" (branch, tag or commit), or the path of a weight folder or a run
            folder. An existing folder takes precedence over a repository of the same name.
        token: for private repositories; by default the one of `hf auth login` or HF_TOKEN.
        kwargs: num_classes, in_chans, drop_path_rate, features_only, ...: timm's and the model's own.

    Returns:
        The model in training mode; call `.eval()` to classify. Its sha256 was checked before it was loaded.

    Raises:
        FileNotFoundError: no such folder, repository, revision or file. PermissionError: no right to read it.
        ConnectionError: the Hub cannot be reached and the cache does not have it. ValueError: not a weight folder, or
        the weights are not those that its config.json describes.
    """
    place = locate(source)
    if isinstance(source, Path) or place != Path(source) or (place / "config.json").is_file():
        return build_path(source, **kwargs)
    return build(snapshot(source, token), **kwargs)


def is_repository(name: str) -> bool:
    """Whether a name reads as "org/name" or "org/name@revision"."""
    repo = name.partition("@")[0]
    return repo.count("/") == 1 and not repo.startswith((".", "/", "~")) and not Path(name).exists()


def _parse(name: str) -> tuple[str, str | None]:
    repo, _, revision = name.partition("@")
    if repo.count("/") != 1:
        raise ValueError(f"{name!r} is neither a folder nor a repository; expected org/name or org/name@revision")
    try:
        validate_repo_id(repo)
    except errors.HFValidationError as error:
        raise ValueError(f"{name!r} is no name of the Hub: {error}") from error
    return repo, revision or None


def snapshot(name: str, token: str | None = None) -> Path:
    """config.json and model.safetensors of "org/name[@revision]", of one commit; from the cache if they are there.

    The config comes first; the weights are only fetched when their size is the one it states.
    """
    repo, revision = _parse(name)
    api = hf.HfApi(token=token)
    config = Path(_asked(lambda: api.hf_hub_download(repo, "config.json", revision=revision), repo, revision))
    commit = config.parent.name  # the cache's layout: snapshots/<commit>/config.json
    stated = read_config(config.parent).get("acmix_zoo", {}).get("file_size")
    try:
        api.hf_hub_download(repo, "model.safetensors", revision=commit, local_files_only=True)
    except errors.LocalEntryNotFoundError:
        url = hf.hf_hub_url(repo, "model.safetensors", revision=commit, endpoint=api.endpoint)
        size = _asked(lambda: api.get_hf_file_metadata(url=url), repo, revision).size
        if size is None or size != (stated or size) or size > _LARGEST:
            raise ValueError(
                f"{name}: model.safetensors has {size} bytes, config.json says {stated}; it is not downloaded"
            ) from None
        _asked(lambda: api.hf_hub_download(repo, "model.safetensors", revision=commit), repo, revision)
    return config.parent


def pull(name: str, folder: str | Path | None = None, *, token: str | None = None) -> Path:
    """Fetch a weight folder from the Hub, whole or not at all.

    Args:
        name: "org/name" or "org/name@revision".
        folder: where; by default the repository's name, here. A weight folder that is there is replaced once the new
            one verifies.
        token: as in `from_pretrained`.

    Returns:
        The folder.

    Raises:
        FileExistsError: something else is in the way. Else as `from_pretrained`.
    """
    repo, _ = _parse(name)
    place = free_place(folder or repo.partition("/")[2])
    with beside(place) as new:
        shutil.copytree(whole(name, token), new, dirs_exist_ok=True)
        take_place(new, place)
    return place


def whole(name: str, token: str | None = None) -> Path:
    """All files of a weight folder of the Hub, of one commit, in the Hub's cache."""
    repo, revision = _parse(name)
    commit = snapshot(name, token).name  # checks the size
    api = hf.HfApi(token=token)
    return Path(_asked(lambda: api.snapshot_download(repo, revision=commit, allow_patterns=_FILES), repo, revision))


def push(
    folder: str | Path, name: str, *, private: bool = False, revision: str | None = None, token: str | None = None
) -> str:
    """Publish a weight folder as one commit; what broke off goes on where it was, and nothing is half-published.

    Args:
        folder: a valid weight folder, or the run folder that contains it. It is not modified.
        name: "org/name"; the repository is made if it is missing.
        private: of a repository that is made.
        revision: branch to commit to, made if it is missing; by default the main one.
        token: by default the one of `hf auth login` or HF_TOKEN.

    Returns:
        The address of the commit.

    Raises:
        ValueError: the folder does not verify, holds the authors' weights (they have no licence), or the repository
            holds another model. PermissionError: no token, or one without the right. ConnectionError: the Hub could not
            be reached or went away. OSError: it refused otherwise.
    """
    repo, other = check_push(name, token)
    revision = revision or other
    folder = locate(folder)
    config = read_config(folder)
    if problems := check_folder(folder):
        raise ValueError(f"{folder} does not verify and is not pushed: {'; '.join(problems)}")
    record = config["acmix_zoo"]
    if str(record.get("origin", "")).startswith("the authors"):
        raise ValueError(
            f"{folder} holds the authors' weights, which no licence allows to pass on; tell people instead: "
            f'acmix_zoo.create_model("{record["name"]}", pretrained=True) fetches them from the authors'
        )
    api = hf.HfApi(token=token)

    def publish() -> str:
        api.create_repo(repo, private=private or None, exist_ok=True)
        if revision:
            api.create_branch(repo, branch=revision, exist_ok=True)
        _same_model(api, repo, revision, config["architecture"])
        # Large files go first and are kept by the Hub even if the commit does not follow: the next try finds them.
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, revision=revision, allow_patterns=_FILES,
            delete_patterns=[".eval_results/*", "test/*"], commit_message=f"{record['name']}, by acmix_zoo",
        )  # fmt: skip
        return str(commit.commit_url)

    return _asked(publish, repo, revision, writing=True)


def check_push(name: str, token: str | None = None) -> tuple[str, str | None]:
    """What can be known before a push without asking the Hub: the name reads as one, and there is a token.

    Returns:
        (repository, branch or None).

    Raises:
        ValueError: no such name is possible. PermissionError: no token.
    """
    repo, branch = _parse(name)
    if not (token or hf.get_token()):
        raise PermissionError(
            "push: there is no token for the Hub; run `hf auth login`, or set HF_TOKEN to one that may write"
        )
    return repo, branch


def _same_model(api: hf.HfApi, repo: str, revision: str | None, architecture: str) -> None:
    """Refuse to put a model over another one's weights."""
    try:
        path = api.hf_hub_download(repo, "config.json", revision=revision)
    except errors.RemoteEntryNotFoundError:
        return
    try:
        theirs = json.loads(Path(path).read_text(encoding="utf-8")).get("architecture")
    except (ValueError, AttributeError):
        theirs = None
    if theirs != architecture:
        raise ValueError(
            f"{repo} exists and holds {theirs or 'something else'}, not {architecture}; choose another name, or a "
            "branch of its own with --revision"
        )


def _asked(request: Callable[[], T], repo: str, revision: str | None, writing: bool = False) -> T:
    """The answer of the Hub to a request, tried again where that is sane, or an error in our words."""
    for attempt in range(_TRIES):
        try:
            return request()
        except Exception as failure:
            # The client hides what broke an upload behind a RuntimeError.
            error = failure.__cause__ if isinstance(failure, RuntimeError) else failure
            error = error if isinstance(error, Exception) else failure
            # The client tries most requests again itself, and waits long for a network that is not there; this is for
            # what it gives up on.
            again = _transient(error) and (writing or _status(error) or "RemoteProtocol" in type(error).__name__)
            if attempt + 1 == _TRIES or not again:
                _explain(error, repo, revision, writing)
            time.sleep(2.0**attempt)
    raise AssertionError


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _transient(error: BaseException) -> bool:
    status = _status(error)
    if status is not None:
        return status in (408, 412, 429) or status >= 500  # 412: somebody committed meanwhile
    return _no_network(error)


def _no_network(error: BaseException) -> bool:
    # huggingface_hub's transport errors are those of the HTTP library that it happens to be built on.
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.startswith(("httpx", "requests"))


def _explain(error: Exception, repo: str, revision: str | None, writing: bool) -> NoReturn:
    """Raise an error that says what was asked for, what came and what to do."""
    where = f"{repo}@{revision}" if revision else repo
    status = _status(error)
    if isinstance(error, errors.GatedRepoError):
        raise PermissionError(
            f"{where} is gated: ask for access on its page, then use a token of that account"
        ) from error
    if isinstance(error, errors.RevisionNotFoundError):
        raise FileNotFoundError(
            f"{repo} has no revision {revision!r}; give a branch, a tag or a commit of it"
        ) from error
    if isinstance(error, errors.RepositoryNotFoundError):
        raise FileNotFoundError(
            f"{where} is not on the Hub, or it is private: then run `hf auth login`, or set HF_TOKEN to a token "
            "that may see it"
        ) from error
    if status == 401 or isinstance(error, errors.LocalTokenNotFoundError):
        raise PermissionError(
            f"{where}: the Hub does not know the token; run `hf auth login`, or set HF_TOKEN"
        ) from error
    if status == 403:
        act = "write to" if writing else "read"
        raise PermissionError(
            f"{where}: the token may not {act} it; use one with the {'write' if writing else 'read'} permission for "
            f"{repo.partition('/')[0]}, or another name"
        ) from error
    if isinstance(error, errors.RemoteEntryNotFoundError):
        raise FileNotFoundError(f"{where} is not a weight folder: {str(error).splitlines()[-1]}") from error
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        raise ConnectionError(
            f"{where} is not in the cache and the Hub cannot be asked (no network, or HF_HUB_OFFLINE is set)"
        ) from error
    safe = "Nothing was published and the folder is as it was; the same command goes on. " if writing else ""
    if status == 429:
        raise ConnectionError(
            f"{where}: the Hub asks to wait (too many requests). {safe}Try again in some minutes"
        ) from error
    if (status is not None and status >= 500) or _no_network(error):
        what = f"answered {status}" if status else f"went away ({error})"
        raise ConnectionError(f"{where}: the Hub {what}. {safe}Try again later") from error
    raise error
