"""Networks and images for the tests of `acmix_zoo.explain`, in float64."""

from __future__ import annotations

import torch
from support.networks import SHALLOW, perturbed
from torch import Tensor, nn

FAMILIES = ["acmix_resnet_pico", "acmix_swin_pico", "acmix_san_pico", "acmix_pvt_pico"]


def explained_network(name: str, **arguments: object) -> nn.Module:
    """Return a shallow network of a family in float64, in which all blocks and both paths matter."""
    return perturbed(name, **{**SHALLOW[name], **arguments}).double()


def smooth_image(height: int = 24, width: int = 24) -> Tensor:
    """Return an image (1, 3, height, width) in float64 with structure at several scales.

    At 24×24, the feature maps of Swin are padded to whole windows.
    """
    generator = torch.Generator().manual_seed(1)
    image = torch.zeros(1, 3, height, width, dtype=torch.float64)
    for side in (4, 8, 16):
        noise = torch.randn(1, 3, side, side, generator=generator, dtype=torch.float64)
        image += nn.functional.interpolate(noise, size=(height, width), mode="bilinear")
    return image
