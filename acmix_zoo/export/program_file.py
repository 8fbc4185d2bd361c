"""Write a network as a `.pt2` file of torch.export, and read such a file."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch

from acmix_zoo.export.exportable import Exportable, Network

METADATA_FILE = "metadata.json"
"""The name of the metadata among the extra files of a `.pt2` file."""


def write_program(network: Exportable, path: Path) -> None:
    """Write a network as a file for `torch.export.load`, with its metadata as the extra file `METADATA_FILE`."""
    dynamic = torch.export.Dim.DYNAMIC
    sizes = {0: dynamic, **({2: dynamic, 3: dynamic} if network.any_size else {})}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(network.model, (network.example,), dynamic_shapes=(sizes,))
        text = json.dumps(network.metadata, ensure_ascii=False)
        torch.export.save(program, path, extra_files={METADATA_FILE: text})


def load_program(path: Path) -> Network:
    """Return a function that runs a `.pt2` file: images (B, C, H, W) → logits (B, classes)."""
    module: Network = torch.export.load(path).module()
    return module
