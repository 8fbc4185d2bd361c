"""Build the model of a weight folder, with its weights. The folder may come from anyone.

The network that config.json describes is compared with the header of model.safetensors before any memory is allocated,
so that neither file can claim an absurd size. The sha256 is checked before the weights are used.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from acmix_zoo.checksum import check_sha256
from acmix_zoo.models.task_kinds import CLASSIFICATION
from acmix_zoo.weights.build_network import build_network, build_task_network
from acmix_zoo.weights.description import describe_config, read_config
from acmix_zoo.weights.match import mismatch_report


def build_folder(folder: str | Path, **kwargs: Any) -> nn.Module:
    """Build the model of a weight folder, with its weights.

    Args:
        folder: the weight folder.
        kwargs: arguments of `timm.create_model`, such as num_classes or in_chans. For other tasks than classification,
            only num_classes.

    Raises:
        ModuleNotFoundError: the network needs a package of an extra. The message names it.
        ValueError: config.json names an unknown model or something that is not allowed, or the weights are not those
            that it describes.
        FileNotFoundError: this is not a weight folder.
    """
    folder = Path(folder)
    network = describe_config(read_config(folder), folder)
    cfg = dataclasses.replace(network.pretrained_cfg, source="local-dir", file=str(folder))
    network = dataclasses.replace(network, pretrained_cfg=cfg)
    stored = _read_header(folder / "model.safetensors")
    _check_depth(network.arguments, len(stored), folder)
    check_sha256(folder)
    with torch.device("meta"):
        shell = build_network(network)
    report = mismatch_report(shell.state_dict(), stored, str(folder), type(shell).__name__)
    if report:
        raise ValueError(f"{report}; nothing was loaded")
    if kwargs and network.task is CLASSIFICATION:  # timm adapts the classifier and the first convolution
        return timm.create_model(
            network.architecture, pretrained=True, pretrained_cfg=cfg, **{**network.arguments, **kwargs}
        )
    state = safetensors.torch.load_file(folder / "model.safetensors")
    if network.task is not CLASSIFICATION:
        return build_task_network(network, state, folder, **kwargs)
    model = build_network(network)
    model.load_state_dict(state)
    return model


def _read_header(weights: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name, with their shapes but without memory.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged.
    """
    if not weights.is_file():
        raise FileNotFoundError(
            f"{weights.parent} is not a weight folder, because it has no {weights.name}. Download or write it again"
        )
    try:
        with safe_open(weights, "pt") as file:
            return {key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{weights} is damaged or not safetensors ({error}). Download or write it again") from error


def _check_depth(arguments: dict[str, Any], tensors: int, folder: Path) -> None:
    """Check that a network has no more blocks than stored tensors. Building it would take long, even without memory."""
    for name in arguments.keys() & {"layers", "depths", "depth"}:
        blocks = arguments[name] if isinstance(arguments[name], list) else [arguments[name]]
        if not all(isinstance(n, int) for n in blocks) or sum(blocks) > tensors:
            raise ValueError(
                f"{folder}: {name}={str(blocks)[:60]} in config.json are more blocks than model.safetensors has "
                f"tensors ({tensors}). Write the weight folder again"
            )
