"""Prepare a network for export: fold it for inference, and decide which input sizes the file will accept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from acmix_zoo.export.file_metadata import file_metadata

Network = Callable[[Tensor], Tensor]
"""A function of images (B, C, H, W) that returns logits (B, classes)."""

# In pixels. torch.export turns sizes of 1 into constants, and the last feature maps may be 32 times smaller.
_SMALLEST_EXAMPLE = 64


@dataclass(frozen=True)
class Exportable:
    """A network that is ready for export.

    Attributes:
        model: the network in eval mode, with batch norms, alpha and beta folded if it has a method for this.
        original: the network as it was, to compare with.
        example: (2, C, H, W), an input to trace the network with.
        any_size: whether the file will accept any height and width. It accepts any batch size in either case.
        metadata: what the file states about itself, see `file_metadata`.
        cfg: timm's pretrained_cfg of the network.
    """

    model: nn.Module
    original: nn.Module
    example: Tensor
    any_size: bool
    metadata: dict[str, Any]
    cfg: dict[str, Any]

    @property
    def input_size(self) -> list[int]:
        """The (C, H, W) of the images that the network was trained on."""
        size: list[int] = self.metadata["input_size"]
        return size


def prepare(model: nn.Module) -> Exportable:
    """Prepare a network for export.

    Args:
        model: the network, on a CPU. It is converted to float32 and put into eval mode.
    """
    original = model.float().eval().requires_grad_(False)
    folded = copy.deepcopy(original)
    if callable(deploy := getattr(folded, "deploy", None)):
        deploy()
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]  # timm's contract
    metadata = file_metadata(model)
    any_size = not cfg.get("fixed_input_size")
    channels, *size = metadata["input_size"]
    if any_size:
        size = [max(side, _SMALLEST_EXAMPLE) for side in size]
    example = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))
    return Exportable(folded, original, example, any_size, metadata, cfg)
