"""The observation behind ACmix as runnable code: a k×k convolution is k² projections, shifted and summed.

    conv(x)(i) = Σ_{p,q} K[p, q] · x(i + (p, q) − k//2)  =  Σ_{p,q} Shift(K[p, q] · x, by k//2 − (p, q))

Stage I multiplies the map with the k² matrices K[p, q], each a 1×1 convolution; stage II moves every result by its
offset and adds them up. Source: ACmix, CVPR 2022, section 3.1, and figure 3 for the three ways to shift.

    python -m acmix_zoo.bench.decomposition docs/decomposition.png     draws it on a real image
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix_zoo.ops.shift_conv import shift_kernels

Shift = Literal["tensor", "frozen", "learnable"]


class DecomposedConv2d(nn.Module):
    """`nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)` in two stages, for study; it is slower.

    Args:
        in_channels, out_channels: of the convolution.
        kernel: its odd side.
        shift: how stage II moves the k² maps of every output channel.
            "tensor": slices of the padded maps are added, one after the other.
            "frozen": one grouped convolution, whose kernels are the k² shifts and stay so.
            "learnable": the same with kernels that only start as shifts: what ACmix has, on fewer maps.

    Shape:
        (B, in_channels, H, W) → (B, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, *, shift: Shift = "tensor") -> None:
        super().__init__()
        if shift not in get_args(Shift) or kernel % 2 == 0:
            raise ValueError(
                f"DecomposedConv2d: expected shift of {', '.join(get_args(Shift))} and an odd kernel, "
                f"got {shift!r} and {kernel}"
            )
        self.kernel, self.out_channels, self.shift = kernel, out_channels, shift
        self.projections = nn.Conv2d(in_channels, out_channels * kernel**2, 1, bias=False)  # rows ordered (out, k²)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.shifts = nn.Parameter(shift_kernels(out_channels, kernel)) if shift == "learnable" else None

    def init_non_persistent_buffers(self) -> None:
        """Compute the frozen kernels, which are not stored in checkpoints. timm's loaders call this."""
        if self.shift == "frozen":
            self.frozen = shift_kernels(self.out_channels, self.kernel).to(self.bias)

    @classmethod
    @torch.no_grad()
    def of(cls, conv: nn.Conv2d, shift: Shift) -> DecomposedConv2d:
        """The two stages of a convolution (odd square kernel, stride 1, no groups, zeros around the map)."""
        module = cls(conv.in_channels, conv.out_channels, conv.kernel_size[0], shift=shift)
        rows = conv.weight.flatten(2).transpose(1, 2).flatten(0, 1)  # (out·k², in)
        module.projections.weight.copy_(rows.unflatten(1, (-1, 1, 1)))
        if conv.bias is not None:
            module.bias.copy_(conv.bias)
        return module.to(conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.projections(x)  # (B, out·k², H, W)
        if self.shift == "tensor":
            return sum(self.shifted(maps)) + self.bias[:, None, None]
        # Frozen kernels are computed at every call, since a buffer that is in no checkpoint is lost on the meta device.
        kernels = self.shifts if self.shifts is not None else shift_kernels(self.out_channels, self.kernel).to(maps)
        return F.conv2d(maps, kernels, self.bias, padding=self.kernel // 2, groups=self.out_channels)

    def shifted(self, maps: Tensor) -> list[Tensor]:
        """(B, out·k², H, W) → k² × (B, out, H, W), each moved by its offset, zeros moving in."""
        h, w = maps.shape[2:]
        padded = F.pad(maps.unflatten(1, (self.out_channels, -1)), (self.kernel // 2,) * 4)  # (B, out, k², H′, W′)
        places = [divmod(m, self.kernel) for m in range(self.kernel**2)]
        return [padded[:, :, m, y : y + h, x : x + w] for m, (y, x) in enumerate(places)]


def draw(image: Tensor, path: Path) -> float:
    """Draw the stages for one grey image (H, W) and an edge kernel; returns the largest difference from `conv2d`."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    conv.weight.data = torch.tensor([[[[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]]])  # Sobel's
    module = DecomposedConv2d.of(conv, "tensor")
    with torch.no_grad():
        x = image[None, None]  # (1, 1, H, W)
        maps = module.projections(x)
        moved, whole, expected = module.shifted(maps), module(x), conv(x)
    error = float((whole - expected).abs().max())
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    parts: Any = figure.subfigures(1, 3, width_ratios=(1, 2, 1), wspace=0.04)
    left, middle, right = parts

    def show(ax: Any, picture: Tensor, title: str) -> None:
        ax.imshow(picture, cmap="RdBu", vmin=-2, vmax=2)
        ax.set_title(title, fontsize=9)
        ax.axis("off")

    left.suptitle("input")
    show(left.subplots(), image, "x")
    middle.suptitle("stage I: times K[p, q].  stage II: shifted …")
    for m, ax in enumerate(middle.subplots(3, 3).flat):
        y, z = divmod(m, 3)
        show(ax, moved[m][0, 0], f"{conv.weight[0, 0, y, z]:.0f} · x, by ({1 - y}, {1 - z})")
    right.suptitle("… and summed")
    for ax, (picture, title) in zip(
        right.subplots(2, 1), ((whole, "projections, shift, sum"), (expected, "conv2d")), strict=True
    ):
        show(ax, picture[0, 0], title)
    figure.savefig(path, dpi=110)
    return error


if __name__ == "__main__":
    from acmix_zoo.data import open_source

    picture = open_source("fashion_mnist").load()["train"].image(0).convert("L")
    pixels = torch.tensor(list(picture.tobytes()), dtype=torch.float32).view(picture.height, picture.width) / 255
    print(f"largest difference from conv2d: {draw(pixels, Path(sys.argv[1])):.1e}")
