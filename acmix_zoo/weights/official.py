"""Links, scores and licence of the weights that the authors published: ACmix-Swin-T and ACmix-Swin-S.

Their repository has no licence, so their files are not hosted here. `pretrained="official_in1k"` downloads the file
from the authors' links (see `official_download.py`), and `acmix-zoo convert FILE --model acmix_swin_t.official_in1k`
does the same with a file that was downloaded by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

TAG = "official_in1k"
_GOOGLE_DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
FURTHER_LINKS = {
    "acmix_swin_t": [_GOOGLE_DRIVE.format("1qJnYhtQ65rWd0zUuV9eZQW5Wxj-TiiSg")],
    "acmix_swin_s": [_GOOGLE_DRIVE.format("12PhN5YOEtWAgO8eSLhopfCVZ7JozMf9T")],
}
"""Links to try after the first one, which is the `url` of the network's configuration."""
_PUBLISHED_TOP1 = {"acmix_swin_t": 0.819, "acmix_swin_s": 0.835}


def is_official(name: str) -> bool:
    """Return whether `architecture.tag` is the name of the authors' weights."""
    architecture, _, tag = name.partition(".")
    return tag == TAG and architecture in FURTHER_LINKS


def official_record(architecture: str) -> dict[str, Any]:
    """Return the record of the authors' weights, which states that the score is published and was not measured here."""
    return {
        "origin": "the authors' file; published without a licence, so it must not be redistributed",
        "metrics": [
            {
                "dataset": "ILSVRC/imagenet-1k", "split": "val", "name": "top1", "value": _PUBLISHED_TOP1[architecture],
                "note": "published by the authors, not measured again",
            }
        ],
        "dataset": {"name": "ILSVRC/imagenet-1k"},
    }  # fmt: skip


def official_folder(name: str) -> Path | None:
    """Return the folder in which the authors' weights `architecture.official_in1k` are cached after conversion.

    It is in torch.hub's cache, and may not exist yet. Return None for weights that are not the authors'.
    """
    return Path(torch.hub.get_dir()) / "acmix_zoo" / name if is_official(name) else None
