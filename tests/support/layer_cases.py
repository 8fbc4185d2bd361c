"""Every kind of layer with inputs for its `forward`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from acmix_zoo.layers import ACmix2d, PairwiseSAM, PatchwiseSAM, ReducedACmix, WindowACmix

LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple]]] = {
    "acmix2d": (lambda: ACmix2d(8, 16, stride=2, heads=4), lambda: (torch.randn(3, 8, 9, 11),)),
    "acmix2d-8-heads": (lambda: ACmix2d(8, 16, heads=8), lambda: (torch.randn(2, 8, 9, 11),)),
    "acmix2d-attention": (lambda: ACmix2d(8, 16, paths="attention"), lambda: (torch.randn(2, 8, 9, 11),)),
    "acmix2d-convolution": (lambda: ACmix2d(8, 16, paths="convolution"), lambda: (torch.randn(2, 8, 9, 11),)),
    "window": (lambda: WindowACmix(16, 4, (4, 4), (2, 2)), lambda: (torch.randn(2, 9, 11, 16),)),
    "reduced": (lambda: ReducedACmix(16, 4, 2), lambda: (torch.randn(2, 99, 16), (9, 11))),
    "pairwise": (lambda: PairwiseSAM(64, 3, paths="both"), lambda: (torch.randn(2, 64, 7, 8),)),
    "patchwise": (lambda: PatchwiseSAM(64, 3, paths="both"), lambda: (torch.randn(2, 64, 7, 8),)),
}


def layer_and_inputs(kind: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple]:
    layer = LAYERS[kind][0]().to(dtype).eval()  # batch norm of SAN must not move between two calls
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    x, *rest = LAYERS[kind][1]()
    return layer, (x.to(dtype), *rest)
