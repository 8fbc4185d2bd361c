"""Put ACmix2d where a network has its dense 3×3 convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from acmix_zoo.layers.acmix2d import ACmix2d
from acmix_zoo.layers.cost import definition_macs, input_size_of, run_once

Filter = str | Callable[[str, nn.Conv2d], bool]


@dataclass(frozen=True)
class SwapReport:
    """What `swap_conv3x3` did. Print it.

    Attributes:
        replaced: name → the new layer, for every place that holds an ACmix2d now.
        skipped: name → reason, for the 3×3 convolutions that the filter took and that stayed.
        params: of the whole model, (before, after).
        macs: of the replaced layers for one image, (before, after); None when no input size was known.
        input_size: (C, H, W) that the MACs are for.
    """

    replaced: dict[str, ACmix2d]
    skipped: dict[str, str]
    params: tuple[int, int]
    macs: tuple[int, int] | None = None
    input_size: tuple[int, ...] | None = None

    def __str__(self) -> str:
        lines = [f"replaced {len(self.replaced)} of {len(self.replaced) + len(self.skipped)} 3×3 convolutions"]
        lines += [f"  {name}: ACmix2d({layer.extra_repr()})" for name, layer in self.replaced.items()]
        lines += [f"  {name}: kept, {reason}" for name, reason in self.skipped.items()]
        lines.append(f"parameters of the model: {_change(*self.params)}")
        if self.macs and self.input_size:
            size = "×".join(map(str, self.input_size))
            lines.append(f"MACs of the replaced layers at {size}: {_change(*self.macs)}")
        return "\n".join(lines)


def swap_conv3x3(
    model: nn.Module, filter: Filter | None = None, *, input_size: Sequence[int] | None = None, **acmix: Any
) -> SwapReport:
    """Replace, in place, the dense 3×3 `nn.Conv2d` of any network by freshly initialised `ACmix2d`.

    A convolution fits when it is an `nn.Conv2d` itself (not a subclass, which computes something else), has kernel 3,
    one group, zero padding equal to its dilation, equal strides, and output channels that `heads` divides. Channels,
    stride, dilation, device and dtype are carried over; the weights are not, so train the network afterwards.

    Args:
        model: any network; a convolution that stands in several places is replaced in all of them.
        filter: which 3×3 convolutions: a pattern on their names ("layer4.*"), or a function of (name, convolution).
            All by default.
        input_size: (C, H, W) for the MACs; by default that of the model's timm cfg.
        **acmix: heads, kernel_att, kernel_conv, paths of `ACmix2d`.

    Returns:
        SwapReport: what was replaced, what was kept and why, parameters and MACs before and after.

    Raises:
        ValueError: the filter takes no 3×3 convolution, or ACmix2d refuses an argument. Nothing is replaced then.
    """
    candidates = _candidates(model, filter)
    if not candidates:
        names = [name for name, m in model.named_modules() if _is_3x3(m)]
        have = f"it has {', '.join(names[:4])}{' …' if len(names) > 4 else ''}" if names else "it has none"
        raise ValueError(f"swap_conv3x3: no 3×3 convolution of {type(model).__name__} fits filter={filter!r}; {have}")
    heads = acmix.get("heads", 4)
    before = _count(model)
    layers: dict[nn.Conv2d, ACmix2d] = {}
    skipped: dict[str, str] = {}
    for name, conv in candidates.items():
        reason = "the model itself, which has no place to put another" if conv is model else _unfit(conv, heads)
        if reason:
            skipped[name] = reason
        elif conv not in layers:
            layers[conv] = _like(conv, acmix)
    replaced = {name: layers[conv] for name, conv in candidates.items() if name not in skipped}
    for name, layer in replaced.items():  # only now: everything could be built
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    size = tuple(input_size) if input_size is not None else input_size_of(model)
    return SwapReport(
        replaced=replaced,
        skipped=skipped,
        params=(before, _count(model)),
        macs=_macs(model, layers, size) if size else None,
        input_size=size,
    )


def _is_3x3(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)


def _candidates(model: nn.Module, filter: Filter | None) -> dict[str, nn.Conv2d]:
    found = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Conv2d) and _is_3x3(module):
            if filter is None or (fnmatchcase(name, filter) if isinstance(filter, str) else filter(name, module)):
                found[name] = module
    return found


def _unfit(conv: nn.Conv2d, heads: int) -> str | None:
    """Why the convolution cannot become an ACmix2d; None when it can."""
    if type(conv) is not nn.Conv2d:
        return f"a {type(conv).__name__}, not a plain Conv2d"
    if conv.groups != 1:
        return f"groups={conv.groups}, not dense"
    if conv.stride[0] != conv.stride[1] or conv.dilation[0] != conv.dilation[1]:
        return f"stride={conv.stride}, dilation={conv.dilation} differ by axis"
    same = conv.padding == conv.dilation or (conv.padding == "same" and conv.stride == (1, 1))
    if not same or conv.padding_mode != "zeros":
        return f"padding={conv.padding} ({conv.padding_mode}), where ACmix stands for zeros and padding={conv.dilation}"
    if heads > 0 and conv.out_channels % heads:  # ACmix2d itself refuses other heads
        return f"{conv.out_channels} output channels are not divisible by heads={heads}"
    return None


def _like(conv: nn.Conv2d, acmix: dict[str, Any]) -> ACmix2d:
    layer = ACmix2d(conv.in_channels, conv.out_channels, stride=conv.stride[0], dilation=conv.dilation[0], **acmix)
    return layer.to(device=conv.weight.device, dtype=conv.weight.dtype).train(conv.training)


def _macs(model: nn.Module, layers: dict[nn.Conv2d, ACmix2d], input_size: Sequence[int]) -> tuple[int, int]:
    """Of the convolutions and of the layers in their places; a layer that runs twice counts twice."""
    total = [0, 0]

    def count(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        assert isinstance(layer, ACmix2d)
        total[0] += 9 * layer.in_channels * out.numel()
        total[1] += definition_macs(layer, args[0])

    hooks = [layer.register_forward_hook(count) for layer in layers.values()]
    try:
        run_once(model, input_size)
    finally:
        for hook in hooks:
            hook.remove()
    return total[0], total[1]


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _change(before: int, after: int) -> str:
    return f"{before:,} → {after:,}" + (f" ({after / before - 1:+.1%})" if before else "")
