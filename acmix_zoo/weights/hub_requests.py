"""Send requests to the Hugging Face Hub: retry what may succeed later, and explain what went wrong.

The client and its settings are huggingface_hub's: HF_TOKEN or `hf auth login`, HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from huggingface_hub import errors

from acmix_zoo.weights.locate import Repository, closest_paths
from acmix_zoo.weights.not_found import closest_names_phrase, not_found_error

_TRIES = 3
T = TypeVar("T")


def request(call: Callable[[], T], repository: Repository, *, is_push: bool = False) -> T:
    """Return the result of `call`, which talks to the Hub. Temporary failures are retried.

    Raises:
        FileNotFoundError: the repository, revision or file does not exist.
        PermissionError: the token has no permission.
        ConnectionError: the Hub cannot be reached, or it failed repeatedly.
        OSError: the Hub rejected the request for a different reason.
    """
    for attempt in range(_TRIES):
        try:
            return call()
        except Exception as failure:
            # The client wraps what interrupted an upload in a RuntimeError.
            error = failure.__cause__ if isinstance(failure, RuntimeError) else failure
            error = error if isinstance(error, Exception) else failure
            # The client itself retries most requests, and waits a long time if there is no network. Only retry what it
            # gives up on.
            was_reached = is_push or _status(error) or "RemoteProtocol" in type(error).__name__
            if attempt + 1 == _TRIES or not (_is_temporary(error) and was_reached):
                _raise_explained(error, repository, is_push)
            time.sleep(2.0**attempt)
    raise AssertionError


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_temporary(error: BaseException) -> bool:
    status = _status(error)
    if status is not None:
        return status in (408, 412, 429) or status >= 500  # 412: somebody else committed in the meantime
    return _is_connection_error(error)


def _is_connection_error(error: BaseException) -> bool:
    # huggingface_hub passes on the errors of the HTTP library that it is built on.
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.startswith(("httpx", "requests"))


def _raise_explained(error: Exception, repository: Repository, is_push: bool) -> NoReturn:
    """Raise an error that states what was requested, what went wrong and what to do."""
    status = _status(error)
    if isinstance(error, errors.GatedRepoError):
        raise PermissionError(
            f"{repository} is gated. Request access on its page, then use a token of that account"
        ) from error
    if isinstance(error, errors.RevisionNotFoundError):
        raise FileNotFoundError(
            f"{repository.id} has no revision {repository.revision!r}. Expected one of its branches, tags or commits"
        ) from error
    if isinstance(error, errors.RepositoryNotFoundError):
        private = "If the repository is private, run `hf auth login`, or set HF_TOKEN to a token with access to it"
        path = Path(repository.id)
        if path.exists():  # given as hf-hub:org/name, or to `pull`
            raise not_found_error(f"{repository} is not a repository on the Hub", "org/name", advice=private) from error
        raise not_found_error(
            f"{repository} is neither a path on this machine nor a repository on the Hub",
            "org/name, a weight folder, a run folder or a checkpoint file",
            closest_paths(path),
            private,
        ) from error
    if status == 401 or isinstance(error, errors.LocalTokenNotFoundError):
        raise PermissionError(
            f"{repository}: the Hub does not accept the token. Run `hf auth login`, or set HF_TOKEN"
        ) from error
    if status == 403:
        right = "write" if is_push else "read"
        raise PermissionError(
            f"{repository}: the token has no {right} permission. Use a token with {right} permission for "
            f"{repository.id.partition('/')[0]}, or a different repository"
        ) from error
    if isinstance(error, errors.RemoteEntryNotFoundError):
        raise FileNotFoundError(f"{repository} is not a weight folder: {str(error).splitlines()[-1]}") from error
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        near = closest_paths(Path(repository.id))
        raise ConnectionError(
            f"{repository} is neither a path on this machine nor in the cache of the Hub, and the Hub cannot be "
            "reached. Check the network connection, and whether HF_HUB_OFFLINE is set"
            + (f". The {closest_names_phrase(near)}" if near else "")
        ) from error
    unchanged = "Nothing was published. The same command resumes the upload. " if is_push else ""
    if status == 429:
        raise ConnectionError(
            f"{repository}: too many requests to the Hub (429). {unchanged}Try again in a few minutes"
        ) from error
    if (status is not None and status >= 500) or _is_connection_error(error):
        reason = (
            f"the Hub answered with an error ({status})" if status else f"the connection to the Hub broke ({error})"
        )
        raise ConnectionError(f"{repository}: {reason}. {unchanged}Try again later") from error
    raise error
