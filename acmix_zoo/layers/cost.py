"""What ACmix costs by its definition: the multiplications of the paper's table, not those of one implementation.

The fast forms compute the same function with other arithmetic (every query of a tile meets the keys of the whole halo;
`fc` and the grouped convolution are composed), so a counter that watches the machine would report numbers that change
with the tile size and compare with no published table.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from acmix_zoo.layers.acmix2d import ACmix2d
from acmix_zoo.layers.san import PairwiseSAM, PatchwiseSAM
from acmix_zoo.layers.shift_conv import ShiftConv


def definition_macs(layer: ACmix2d | ShiftConv | PairwiseSAM | PatchwiseSAM, x: Tensor) -> int:
    """Multiply-accumulates of one layer for the input x, all images of the batch together.

    A pixel of ACmix2d costs 3·in·out (stage I), 2·kernel_att²·out (attention), 3·kernel_conv²·out (the mixing) and
    kernel_conv⁴·out (shift and sum); the attention and the last one run on the strided map, the others on the full one.
    The position term (2 multiplications a pixel and head channel, shared by the batch) is left out, as in the paper.

    Args:
        layer: ACmix2d or SAN's module with x of (B, in, H, W), or ShiftConv with x of (B, H, W, d, 3·heads).
    """
    if isinstance(layer, PairwiseSAM | PatchwiseSAM):
        return layer.macs(x)
    if isinstance(layer, ShiftConv):
        b, h, w, d, inputs = x.shape
        taps = layer.kernel**2
        strided = -(-h // layer.stride) * -(-w // layer.stride)
        return b * d * (h * w * taps * inputs + strided * inputs // 3 * taps**2)
    b, _, h, w = x.shape
    out, s = layer.out_channels, layer.stride
    full, strided = h * w, -(-h // s) * -(-w // s)
    macs = full * 3 * layer.in_channels * out
    if layer.paths != "convolution":
        macs += strided * 2 * layer.kernel_att**2 * out
    if layer.paths != "attention":
        macs += full * 3 * layer.kernel_conv**2 * out + strided * layer.kernel_conv**4 * out
    return b * macs


def input_size_of(model: nn.Module) -> tuple[int, int, int] | None:
    """(C, H, W) that the model's timm cfg names, or None."""
    for name in ("pretrained_cfg", "default_cfg"):
        size = (getattr(model, name, None) or {}).get("input_size")
        if size:
            c, h, w = size
            return int(c), int(h), int(w)
    return None


def run_once(model: nn.Module, input_size: Sequence[int], *contexts: object) -> None:
    """One forward pass over zeros of (1, *input_size) in eval mode, without gradients, within the given contexts.

    Every module's training flag is put back, so a frozen batch norm stays frozen and no statistic changes.
    """
    example = next(model.parameters(), torch.empty(0))
    x = torch.zeros(1, *input_size, device=example.device, dtype=example.dtype)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with ExitStack() as stack:
            for context in (torch.no_grad(), *contexts):
                stack.enter_context(context)  # type: ignore[arg-type]
            model(x)
    finally:
        for module, training in modes:
            module.training = training
