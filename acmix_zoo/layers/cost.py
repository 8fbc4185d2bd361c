"""What ACmix costs by its definition: the multiplications of the paper's table, not those of one implementation.

The fast forms compute the same function with other arithmetic (every query of a tile meets the keys of the whole halo;
`fc` and the grouped convolution are composed), so a counter that watches the machine would report numbers that change
with the tile size and compare with no published table.

Stage I projects the map to q, k and v; stage II is the attention and the convolution on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from acmix_zoo.layers.acmix2d import ACmix2d
from acmix_zoo.layers.convolution_path import ShiftConv
from acmix_zoo.layers.reduced_acmix import ReducedACmix
from acmix_zoo.layers.san import PairwiseSAM, PatchwiseSAM
from acmix_zoo.layers.window_acmix import WindowACmix

LAYERS = (ACmix2d, WindowACmix, ReducedACmix, PairwiseSAM, PatchwiseSAM)
"""Every layer that has the two stages."""


def definition_macs(layer: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of one layer for the input x, all images of the batch together.

    Args:
        layer: ACmix2d or SAN's module with x of (B, in, H, W), or ShiftConv with x of (B, H, W, d, 3·heads).
    """
    if isinstance(layer, ShiftConv):
        b, h, w, d, _ = x.shape
        return b * _shift_conv(layer, d, h * w, -(-h // layer.stride) * -(-w // layer.stride))
    return sum(stage_macs(layer, x))


def stage_macs(layer: nn.Module, x: Tensor, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """(stage I, stage II): multiply-accumulates of one of `LAYERS`, for its inputs.

    A pixel of ACmix2d costs 3·in·out (stage I), 2·kernel_att²·out (attention), 3·kernel_conv²·out (the mixing) and
    kernel_conv⁴·out (shift and sum); the attention and the last one run on the strided map, the others on the full one.
    The position term (2 multiplications a pixel and head channel, shared by the batch) is left out, as in the paper;
    so is the projection behind the attention of the Swin and the PVT form, which belongs to neither stage.
    """
    attends, convolves = layer.paths != "convolution", layer.paths != "attention"
    if isinstance(layer, ACmix2d):
        b, _, h, w = x.shape
        full, strided = h * w, -(-h // layer.stride) * -(-w // layer.stride)
        first, second = full * 3 * layer.in_channels * layer.out_channels, 0
        if attends:
            second += strided * 2 * layer.kernel_att**2 * layer.out_channels
        if convolves:
            second += _shift_conv(layer.shift_conv, layer.out_channels // layer.heads, full, strided)
    elif isinstance(layer, WindowACmix):
        b, (wh, ww) = len(x), layer.window
        full = -(-x.shape[1] // wh) * wh * -(-x.shape[2] // ww) * ww  # of the padded map
        first = full * 3 * layer.dim**2
        second = full * 2 * wh * ww * layer.dim if attends else 0
        if convolves:  # on the map as it lies, or as it was rolled, which is padded
            seen = x.shape[1] * x.shape[2] if layer.conv_before_shift or not any(layer.shift) else full
            second += _shift_conv(layer.shift_conv, layer.dim // layer.heads, seen, seen)
    elif isinstance(layer, ReducedACmix):
        assert size is not None
        b, length, dim = x.shape
        (h, w), side = size, layer.reduction
        keys = -(-h // side) * -(-w // side) if side > 1 else length
        first = length * dim**2 + keys * 2 * dim**2 + (keys * side**2 * dim**2 if side > 1 else 0)
        second = 2 * length * keys * dim if attends else 0
        if convolves:
            second += _shift_conv(layer.shift_conv, dim // layer.heads, h * w, h * w)
    elif isinstance(layer, PairwiseSAM | PatchwiseSAM):
        b, channels, h, w = x.shape
        full, mid = h * w, layer.out
        first = full * channels * (2 * layer.relation + mid)
        second = full * (layer.kernel**2 * mid + layer.weight_macs()) if attends else 0
        if convolves:
            second += full * mid * (2 * layer.relation + layer.static_weight[0].numel())
    else:
        raise TypeError(f"stage_macs: {type(layer).__name__} has no two stages")
    return b * first, b * second


def stage_params(layer: nn.Module) -> tuple[int, int]:
    """(stage I, stage II): parameters of one of `LAYERS`, biases included, what belongs to neither stage left out."""
    counts = {True: 0, False: 0}
    for name, parameter in layer.named_parameters():
        if not name.startswith("proj."):
            counts[name.startswith(_STAGE_ONE[type(layer)])] += parameter.numel()
    return counts[True], counts[False]


_STAGE_ONE = {
    ACmix2d: ("qkv.",),
    WindowACmix: ("qkv.",),
    ReducedACmix: ("q.", "kv.", "sr.", "norm."),
    PairwiseSAM: ("conv1.", "conv2.", "conv3."),
    PatchwiseSAM: ("conv1.", "conv2.", "conv3."),
}


def _shift_conv(layer: ShiftConv, d: int, full: int, strided: int) -> int:
    """Of one image: mixing on the full map, shift and sum on the strided one, for d groups."""
    inputs = layer.fc_weight.shape[1]
    return d * (full * layer.kernel**2 * inputs + strided * inputs // 3 * layer.kernel**4)


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
