"""Count the parameters and multiply-accumulates (MACs) of any network, as papers and timm print them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from acmix_zoo.layers.cost import forward_inputs


@dataclass(frozen=True)
class Complexity:
    """The result of `complexity`.

    Attributes:
        params: number of parameters.
        macs: multiply-accumulates of one image.
        input_size: the image's (C, H, W).
    """

    params: int
    macs: int
    input_size: tuple[int, ...]

    def __str__(self) -> str:
        size = "×".join(map(str, self.input_size))
        return f"{human(self.params)} parameters, {human(self.macs)} MACs at {size}"


def human(n: int) -> str:
    """Format a number with three digits: 1_234_567 → "1.23M"."""
    for unit, factor in (("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if abs(n) >= factor:
            return f"{n / factor:.3g}{unit}" if abs(n) < 100 * factor else f"{n / factor:.0f}{unit}"
    return str(n)


def complexity(model: nn.Module, input_size: Sequence[int] | None = None) -> Complexity:
    """Count the parameters and the MACs of one image, by running the model once in eval mode.

    torch.utils.flop_counter counts convolutions, matrix products and attention, and reports 2·MACs. Layers that have
    `definition_macs` are counted with it instead, see `acmix_zoo.layers.cost`. As usual, norms, activations and sums
    are not counted.

    Args:
        model: any module that takes one tensor (B, *input_size). It is not changed.
        input_size: (C, H, W). By default, that of the model's timm configuration.

    Raises:
        ValueError: no input size is given, and the model has no configuration with one.
    """
    size = tuple(input_size) if input_size is not None else default_input_size(model)
    if size is None:
        raise ValueError(f"complexity: {type(model).__name__} states no input size. Pass input_size=(C, H, W)")
    counter = FlopCounterMode(display=False)
    stated = _StatedMacs(counter)
    hooks = [hook for layer in model.modules() if hasattr(layer, "definition_macs") for hook in stated.watch(layer)]
    try:
        # Express attention as two matrix products, because torch's counter does not know the fused CPU kernel.
        run_once(model, size, sdpa_kernel(SDPBackend.MATH), counter)
    finally:
        for hook in hooks:
            hook.remove()
    params = sum(p.numel() for p in model.parameters())
    return Complexity(params, counter.get_total_flops() // 2 + stated.correction, size)


class _StatedMacs:
    """Computes the correction of a counter's result for layers that have `definition_macs`."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self.counter, self.correction, self.depth, self.flops_before = counter, 0, 0, 0

    def watch(self, layer: nn.Module) -> list[Any]:
        """Register hooks on a layer and return their handles."""
        leave = layer.register_forward_hook(self._leave, with_kwargs=True)
        return [layer.register_forward_pre_hook(self._enter), leave]

    def _enter(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        if self.depth == 0:  # the ShiftConv inside an ACmix2d is part of it
            self.flops_before = self.counter.get_total_flops()
        self.depth += 1

    def _leave(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        self.depth -= 1
        if self.depth == 0:
            counted = (self.counter.get_total_flops() - self.flops_before) // 2
            self.correction += layer.definition_macs(forward_inputs(layer, args, kwargs)[0]) - counted


def default_input_size(model: nn.Module) -> tuple[int, int, int] | None:
    """Return (C, H, W) from the model's timm configuration, or None. C is the number of channels that the model was
    built for."""
    for name in ("pretrained_cfg", "default_cfg"):
        cfg = getattr(model, name, None) or {}
        if cfg.get("input_size"):
            c, h, w = cfg["input_size"]
            name = cfg.get("first_conv") or ""
            first = dict(model.named_modules()).get(name if isinstance(name, str) else name[0])  # several for some
            c = getattr(model, "in_chans", None) or getattr(first, "in_channels", c)
            return int(c), int(h), int(w)
    return None


def run_once(model: nn.Module, input_size: Sequence[int], *contexts: object) -> None:
    """Run one forward pass over zeros (1, *input_size) in eval mode, without gradients, within the given contexts.

    Afterwards, every module has its previous mode, so that a frozen batch norm stays frozen.
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
