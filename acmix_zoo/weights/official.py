"""The authors' own weights: ACmix-Swin-T and -S, fetched from the links in their README, read safely, kept as a folder.

Their repository has no licence, so nothing of theirs is hosted here: `pretrained="official_in1k"` downloads the file,
reads it with `weights_only`, converts it to a weight folder in torch.hub's cache and answers from there the next time.
A file downloaded by hand becomes the same folder by `acmix-zoo convert FILE --model acmix_swin_t.official_in1k`.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # public, but exported lazily

from acmix_zoo.checksum import check_sha256
from acmix_zoo.models.registry import register_weights
from acmix_zoo.weights.convert import convert

TAG = "official_in1k"
# Besides the first link, which is the cfg's `url`: Google Drive's direct form, and what the authors published.
_DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
LINKS = {
    "acmix_swin_t": [_DRIVE.format("1qJnYhtQ65rWd0zUuV9eZQW5Wxj-TiiSg")],
    "acmix_swin_s": [_DRIVE.format("12PhN5YOEtWAgO8eSLhopfCVZ7JozMf9T")],
}
_PUBLISHED = {"acmix_swin_t": 0.819, "acmix_swin_s": 0.835}
_LARGEST = 4 * 2**30  # bytes: an optimiser's state triples the 200 MB of Swin-S
_TRIES, _TIMEOUT, _CHUNK = 3, 60.0, 2**20


def official_record(model: str) -> dict[str, Any]:
    """What a record says of the authors' weights of `model`; what is not ours is marked so."""
    return {
        "origin": "the authors' file; published without a licence, so it may not be passed on",
        "metrics": [
            {
                "dataset": "ILSVRC/imagenet-1k", "split": "val", "name": "top1", "value": _PUBLISHED[model],
                "note": "published by the authors, not measured again",
            }
        ],
        "dataset": {"name": "ILSVRC/imagenet-1k"},
    }  # fmt: skip


def official_folder(model: str) -> Path:
    """Where the converted weights of `model` are kept: beside torch.hub's own downloads."""
    return Path(torch.hub.get_dir()) / "acmix_zoo" / f"{model}.{TAG}"


def fetch(model: str) -> Path:
    """The path of the authors' weights of `model` as safetensors: from the cache, else downloaded and converted.

    Raises:
        OSError: no link could be read (says how to go on by hand). ValueError: what came is not the model's weights.
        In both cases nothing is left behind, and what the cache held is as it was.
    """
    folder = official_folder(model)
    if _is_whole(folder):
        return folder / "model.safetensors"
    folder.parent.mkdir(parents=True, exist_ok=True)
    # With several processes, as in a DDP run, one downloads and the others wait for the file. huggingface_hub's lock is
    # based on filelock and also works on file systems without locks.
    with WeakFileLock(folder.parent / f".{folder.name}.lock"):
        if not _is_whole(folder):
            _download_and_convert(model, folder)
    return folder / "model.safetensors"


def _is_whole(folder: Path) -> bool:
    """Return whether the folder has weights with the recorded hash. It was fully verified when it was written."""
    if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
        return False
    try:
        check_sha256(folder)
    except ValueError as error:
        warnings.warn(f"{error}. Fetching it again", stacklevel=3)
        return False
    return True


def _download_and_convert(model: str, folder: Path) -> None:
    """Fetch the authors' file for `model` from the first link that works, and convert it to a weight folder."""
    failures, cfg = [], timm.get_pretrained_cfg(f"{model}.{TAG}")
    assert cfg is not None and isinstance(cfg.url, str)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as space:  # the disk that the weights will be on
        for link in [cfg.url, *LINKS[model]]:
            print(f"{model}.{TAG}: fetching {link}, once; the weights will be in {folder}", file=sys.stderr, flush=True)
            file = Path(space) / f"{model}.pth"
            try:
                download(link, file)
                with file.open("rb") as stream:
                    sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
                source = {"link": link, "bytes": file.stat().st_size, "sha256": sha256}
                convert(file, f"{model}.{TAG}", folder, {**official_record(model), "source": source})
                return
            except (OSError, ValueError) as error:
                failures.append(f"  {link}: {error}")
    raise OSError(
        f"{model}.{TAG}: none of the authors' links gave its weights:\n" + "\n".join(failures) + "\n"
        f"Download the file with a browser, then: acmix-zoo convert FILE --model {model}.{TAG}"
    )


def download(link: str, file: Path) -> None:
    """Read a link into a file; a broken connection is tried again.

    Raises:
        OSError: it could not be read, or not to its end. ValueError: it is a web page, or too large to be weights.
    """
    for attempt in range(_TRIES):
        try:
            return _read(link, file)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise OSError(f"the server answered {error.code} {error.reason}") from error
            failure: OSError = OSError(f"the server answered {error.code} {error.reason}")
        except OSError as error:  # no connection, or it broke off
            failure = error
        if attempt + 1 < _TRIES:
            time.sleep(2.0**attempt)
    raise failure


def _read(link: str, file: Path) -> None:
    request = urllib.request.Request(link, headers={"User-Agent": "acmix_zoo"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer, file.open("wb") as out:
        if answer.headers.get_content_type() == "text/html":
            raise ValueError("a web page came instead of a file; the link may have expired, or asks for a click")
        expected = answer.headers.get("Content-Length")
        if expected is not None and int(expected) > _LARGEST:
            raise ValueError(f"the file has {int(expected):,} bytes; weights with their optimiser have far fewer")
        size = 0
        while chunk := answer.read(_CHUNK):
            size += len(chunk)
            if size > _LARGEST:
                raise ValueError(f"the file has more than {_LARGEST:,} bytes; weights have far fewer")
            out.write(chunk)
    if expected is not None and size != int(expected):
        raise OSError(f"the connection broke off after {size:,} of {int(expected):,} bytes")


class OfficialFile(os.PathLike[str]):
    """The path of the authors' weights of `model`, which are downloaded when the path is asked for."""

    def __init__(self, model: str) -> None:
        self.model = model

    def __fspath__(self) -> str:
        return str(fetch(self.model))

    def __repr__(self) -> str:
        return f"OfficialFile({self.model!r})"


def register_official_weights() -> None:
    """Make the authors' weights available as the tag `official_in1k` of timm's models."""
    register_weights({f"{model}.{TAG}": {"file": OfficialFile(model)} for model in LINKS})
