"""The published parameters, MACs and accuracies of the networks, for comparison with our own counts."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """Published results as they were printed, on ImageNet-1k. Empty strings where nothing was published.

    Attributes:
        params: number of parameters.
        macs: multiply-accumulates of one image of 224 pixels.
        top1: top-1 accuracy in per cent.
    """

    params: str
    macs: str
    top1: str


# ACmix and its baselines: ACmix, CVPR 2022, table 2 and its released code. SAN: its released code. PVT: its paper.
# AA-ResNet: its paper, which prints 8.3 GFLOP, two for each MAC. Container-Light: its released code.
PUBLISHED = {
    "acmix_resnet26": Published("10.6M", "2.3G", "76.1"),
    "acmix_resnet38": Published("14.6M", "2.9G", "77.4"),
    "acmix_resnet50": Published("18.6M", "3.6G", "77.8"),
    "acmix_swin_t": Published("30M", "4.6G", "81.9"),
    "acmix_swin_s": Published("51M", "9.0G", "83.5"),
    "acmix_san10": Published("12.1M", "1.9G", "77.6"),
    "acmix_san15": Published("16.6M", "2.7G", "78.4"),
    "acmix_san19": Published("21.2M", "3.4G", "78.7"),
    "acmix_pvt_t": Published("13M", "2.0G", "78.0"),
    "acmix_pvt_s": Published("25M", "3.9G", "81.7"),
    "san10_pairwise": Published("10.5M", "", "74.9"),
    "san15_pairwise": Published("14.1M", "", "76.6"),
    "san19_pairwise": Published("17.6M", "", "76.9"),
    "san10_patchwise": Published("11.8M", "1.9G", "77.1"),
    "san15_patchwise": Published("16.2M", "2.6G", "78.0"),
    "san19_patchwise": Published("20.5M", "3.3G", "78.2"),
    "pvt_tiny": Published("13.2M", "1.9G", "75.1"),
    "pvt_small": Published("24.5M", "3.8G", "79.8"),
    "aa_resnet50": Published("25.8M", "4.15G", "77.7"),
    "container_light": Published("21M", "", "82.3"),
}


def published(name: str) -> Published:
    """Return the published results of a network, or empty ones."""
    return PUBLISHED.get(name, Published("", "", ""))


def is_reconstruction(name: str) -> bool:
    """Return whether the design of a network was never released, so that ours was inferred from its published costs."""
    return name.startswith(("acmix_san", "acmix_pvt"))
