"""Parameters and multiply-accumulates (MACs) of any network, as papers and timm print them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from acmix_zoo.layers import ACmix2d, PairwiseSAM, PatchwiseSAM
from acmix_zoo.layers.convolution_path import ShiftConv
from acmix_zoo.layers.cost import definition_macs, input_size_of, run_once


@dataclass(frozen=True)
class Complexity:
    """What `complexity` measured: numbers, and the (C, H, W) that the MACs are for."""

    params: int
    macs: int
    input_size: tuple[int, ...]

    def __str__(self) -> str:
        size = "×".join(map(str, self.input_size))
        return f"{human(self.params)} parameters, {human(self.macs)} MACs at {size}"


def human(n: int) -> str:
    """1_234_567 → "1.23M"."""
    for unit, factor in (("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if abs(n) >= factor:
            return f"{n / factor:.3g}{unit}" if abs(n) < 100 * factor else f"{n / factor:.0f}{unit}"
    return str(n)


def complexity(model: nn.Module, input_size: Sequence[int] | None = None) -> Complexity:
    """Count parameters and the MACs of one image, by running the model once in eval mode.

    Convolutions, matrix products and attention are counted by torch.utils.flop_counter (which reports 2·MACs); ACmix
    layers by their definition, see `acmix_zoo.layers.cost` (so does thop, see `thop_rules`). Norms, activations and
    sums are not counted, as is usual.

    Args:
        model: any module that takes one tensor (B, *input_size); it is left as it was.
        input_size: (C, H, W); by default that of the model's timm cfg.

    Raises:
        ValueError: no input size given and the model names none.
    """
    size = tuple(input_size) if input_size is not None else input_size_of(model)
    if size is None:
        raise ValueError(f"complexity: {type(model).__name__} names no input size; pass input_size=(C, H, W)")
    counter = FlopCounterMode(display=False)
    macs = _ByDefinition(counter)
    hooks = [
        h
        for module in model.modules()
        if isinstance(module, ACmix2d | ShiftConv | PairwiseSAM | PatchwiseSAM)
        for h in macs.watch(module)
    ]
    try:
        # Express attention as two matrix products, because torch's counter does not know the fused CPU kernel.
        run_once(model, size, sdpa_kernel(SDPBackend.MATH), counter)
    finally:
        for hook in hooks:
            hook.remove()
    params = sum(p.numel() for p in model.parameters())
    return Complexity(params, counter.get_total_flops() // 2 + macs.correction, size)


class _ByDefinition:
    """While the counter runs, collects what must be added to it so that ACmix layers count by their definition."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self.counter, self.correction, self.depth, self.before = counter, 0, 0, 0

    def watch(self, layer: nn.Module) -> list[Any]:
        return [layer.register_forward_pre_hook(self._enter), layer.register_forward_hook(self._leave)]

    def _enter(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        if self.depth == 0:  # an ACmix2d's own ShiftConv is part of it
            self.before = self.counter.get_total_flops()
        self.depth += 1

    def _leave(self, layer: Any, args: tuple[Tensor, ...], out: Tensor) -> None:
        self.depth -= 1
        if self.depth == 0:
            self.correction += definition_macs(layer, args[0]) - (self.counter.get_total_flops() - self.before) // 2
