"""Draw the figure of docs/decomposition.md: an edge filter as nine projections of a real image, shifted and summed.

python -m tools.decomposition_figure docs/decomposition.png
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure  # not pyplot: no global state, no display
from torch import Tensor, nn

from acmix_zoo.bench.decomposition import DecomposedConv2d
from acmix_zoo.data import open_source
from tools import make_parser

SOBEL = [[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]


def draw(image: Tensor, path: Path) -> float:
    """Draw the two stages for a grey image and an edge kernel.

    Args:
        image: grey values from 0 to 1, (H, W).
        path: file to write.

    Returns:
        The largest difference between the sum of the shifted maps and `conv2d`.
    """
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    conv.weight.data = torch.tensor([[SOBEL]])
    module = DecomposedConv2d.from_conv(conv, "tensor")
    with torch.no_grad():
        x = image[None, None]  # (1, 1, H, W)
        shifted, total, expected = module.shift_maps(module.projections(x)), module(x), conv(x)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels: Any = figure.subfigures(1, 3, width_ratios=(1, 2, 1), wspace=0.04)
    left, middle, right = panels

    left.suptitle("input")
    _show(left.subplots(), image, "x")
    middle.suptitle("stage I: times K[p, q].  stage II: shifted …")
    for m, axes in enumerate(middle.subplots(3, 3).flat):
        p, q = divmod(m, 3)
        _show(axes, shifted[m][0, 0], f"{SOBEL[p][q]:.0f} · x, by ({1 - p}, {1 - q})")
    right.suptitle("… and summed")
    top, bottom = right.subplots(2, 1)
    _show(top, total[0, 0], "projections, shift, sum")
    _show(bottom, expected[0, 0], "conv2d")
    figure.savefig(path, dpi=110)
    return float((total - expected).abs().max())


def _show(axes: Any, map_: Tensor, title: str) -> None:
    axes.imshow(map_, cmap="RdBu", vmin=-2, vmax=2)
    axes.set_title(title, fontsize=9)
    axes.axis("off")


if __name__ == "__main__":
    parser = make_parser("decomposition_figure", __doc__)
    parser.add_argument("file", type=Path, help="where to write the figure")
    options = parser.parse_args()
    grey = open_source("fashion_mnist").load()["train"].image(0).convert("L")
    pixels = torch.tensor(list(grey.tobytes()), dtype=torch.float32).view(grey.height, grey.width) / 255
    print(f"Saved {options.file}. Largest difference from conv2d: {draw(pixels, options.file):.1e}")
