"""Download the authors' own weights when they are first used, and cache them as a weight folder.

`pretrained="official_in1k"` reads the file with `weights_only`, converts it to a weight folder in torch.hub's cache,
and uses that folder from then on. `official.py` says where the weights come from.
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

import timm
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # public, but exported lazily

from acmix_zoo.checksum import check_sha256
from acmix_zoo.models.registry import register_weights
from acmix_zoo.weights.convert_checkpoint import convert
from acmix_zoo.weights.official import FURTHER_LINKS, TAG, official_folder, official_record

_LARGEST_FILE = 4 * 2**30  # bytes; the optimiser's state triples the 200 MB of Swin-S
_TRIES, _TIMEOUT_SECONDS, _CHUNK_SIZE = 3, 60.0, 2**20


class OfficialFile(os.PathLike[str]):
    """The path of the authors' weights of a network, which are downloaded when the path is first asked for."""

    def __init__(self, architecture: str) -> None:
        self.architecture = architecture

    def __fspath__(self) -> str:
        return str(download_official(self.architecture))

    def __repr__(self) -> str:
        return f"OfficialFile({self.architecture!r})"


def register_official_weights() -> None:
    """Make the authors' weights available as the tag `official_in1k` of timm's models."""
    register_weights({f"{name}.{TAG}": {"file": OfficialFile(name)} for name in FURTHER_LINKS})


def download_official(architecture: str) -> Path:
    """Return the path of the authors' weights as safetensors. Download and convert them if they are not cached.

    Raises:
        OSError: no link worked. The error says how to download the file by hand. The cache is unchanged.
    """
    name = f"{architecture}.{TAG}"
    folder = official_folder(name)
    assert folder is not None
    if _is_complete(folder):
        return folder / "model.safetensors"
    folder.parent.mkdir(parents=True, exist_ok=True)
    # With several processes, as in a DDP run, one downloads and the others wait for the file. huggingface_hub's lock is
    # based on filelock and also works on file systems without locks.
    with WeakFileLock(folder.parent / f".{folder.name}.lock"):
        if not _is_complete(folder):
            _download_and_convert(architecture, folder)
    return folder / "model.safetensors"


def _is_complete(folder: Path) -> bool:
    """Return whether the folder has weights with the recorded hash. It was fully verified when it was written."""
    if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
        return False
    try:
        check_sha256(folder)
    except ValueError as error:
        warnings.warn(f"{error}. It is now downloaded again", stacklevel=3)
        return False
    return True


def _download_and_convert(architecture: str, folder: Path) -> None:
    """Download the authors' file from the first link that works, and convert it to a weight folder."""
    name = f"{architecture}.{TAG}"
    failures, cfg = [], timm.get_pretrained_cfg(name)
    assert cfg is not None and isinstance(cfg.url, str)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as space:  # on the disk of the final folder
        for link in [cfg.url, *FURTHER_LINKS[architecture]]:
            print(f"Downloading {name} from {link}, once. The weights will be in {folder}", file=sys.stderr, flush=True)
            file = Path(space) / f"{architecture}.pth"
            try:
                download(link, file)
                with file.open("rb") as stream:
                    sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
                source = {"link": link, "bytes": file.stat().st_size, "sha256": sha256}
                convert(file, name, folder, {**official_record(architecture), "source": source})
                return
            except (OSError, ValueError) as error:
                failures.append(f"  {link}: {error}")
    raise OSError(
        f"could not download {name} from the authors' links:\n" + "\n".join(failures) + "\n"
        f"Download the file with a browser, then run: acmix-zoo convert FILE --model {name}"
    )


def download(link: str, file: Path) -> None:
    """Download a link to a file. A broken connection is retried.

    Raises:
        OSError: the file could not be downloaded completely.
        ValueError: it is a web page, or too large for weights.
    """
    for attempt in range(_TRIES):
        try:
            return _download_once(link, file)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise OSError(f"the server answered {error.code} {error.reason}") from error
            failure: OSError = OSError(f"the server answered {error.code} {error.reason}")
        except OSError as error:  # there was no connection, or it broke
            failure = error
        if attempt + 1 < _TRIES:
            time.sleep(2.0**attempt)
    raise failure


def _download_once(link: str, file: Path) -> None:
    request = urllib.request.Request(link, headers={"User-Agent": "acmix_zoo"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer, file.open("wb") as out:
        if answer.headers.get_content_type() == "text/html":
            raise ValueError("the link leads to a web page instead of a file. It may have expired, or require a click")
        expected = answer.headers.get("Content-Length")
        if expected is not None and int(expected) > _LARGEST_FILE:
            raise ValueError(f"the file has {int(expected):,} bytes. Weights with their optimiser have far fewer")
        size = 0
        while chunk := answer.read(_CHUNK_SIZE):
            size += len(chunk)
            if size > _LARGEST_FILE:
                raise ValueError(f"the file has more than {_LARGEST_FILE:,} bytes. Weights have far fewer")
            out.write(chunk)
    if expected is not None and size != int(expected):
        raise OSError(f"the connection broke after {size:,} of {int(expected):,} bytes")
