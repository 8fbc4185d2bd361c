"""Replace 3×3 convolutions of any network with ACmix2d layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from acmix_zoo.layers.acmix2d import ACmix2d
from acmix_zoo.layers.argument_checks import reject_unknown_arguments
from acmix_zoo.layers.complexity import default_input_size, run_once
from acmix_zoo.layers.swap_rules import why_protected, why_unfit

# Arguments of ACmix2d that are not taken from the convolution.
_ARGUMENTS = ("heads", "kernel_att", "kernel_conv", "paths")
Filter = str | Callable[[str, nn.Conv2d], bool]


@dataclass(frozen=True)
class SwapReport:
    """The result of `swap_conv3x3`. Print it to see a summary.

    Attributes:
        replaced: name → the new layer, for every convolution that was replaced.
        skipped: name → reason, for the 3×3 convolutions that match the filter but were kept.
        params: number of parameters of the whole model, (before, after).
        macs: MACs of the replaced layers for one image, (before, after), or None without an input size.
        input_size: (C, H, W) of that image, or None if no size is known that the model can process.
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
        elif self.replaced:
            lines.append(
                "MACs were not counted: no size is known that the model can process. Pass input_size=(C, H, W)"
            )
        return "\n".join(lines)


def swap_conv3x3(
    model: nn.Module, filter: Filter | None = None, *, input_size: Sequence[int] | None = None, **acmix: Any
) -> SwapReport:
    """Replace dense 3×3 `nn.Conv2d` layers of any network with newly initialised `ACmix2d` layers, in place.

    A convolution can be replaced if it is a plain `nn.Conv2d` (not a subclass, which may compute something else)
    without hooks or tied weights, has kernel size 3, one group, zero padding equal to its dilation and equal strides,
    and if no block around it merges it with other layers (RepVGG, RepConv, LeViT). Channels, stride, dilation, device
    and dtype are carried over. The weights are not, so train the network afterwards.

    Without a filter, three kinds of layers that rarely benefit are kept, and reported with the reason:

    - stems and very narrow layers: fewer than 16 input channels, where ACmix costs far more than the convolution;
    - output layers: convolutions with a bias that are not followed by a norm or a hidden activation. Their bias is
      often initialised to a prior, as in RetinaNet;
    - everything within a module called head, heads or *_head. Networks whose decoder has such a name need a filter.

    Args:
        model: any network. A convolution that is used in several places is replaced in all of them.
        filter: the 3×3 convolutions to replace, as a pattern for their names ("layer4.*") or a function of (name,
            convolution). A filter also replaces stems, output layers and heads. None replaces all except these.
        input_size: (C, H, W) of the image for which MACs are counted. By default, that of the model's timm
            configuration.
        **acmix: the arguments heads, kernel_att, kernel_conv and paths of `ACmix2d`.

    Returns:
        SwapReport: the convolutions that were replaced or kept, with reasons, and the parameters and MACs before and
        after.

    Raises:
        ValueError: no 3×3 convolution matches the filter, ACmix2d rejects an argument, the network has lazy modules
            that have not been run, or an image of a known size does not pass through the new layers. Nothing is
            replaced then.
        TypeError: the filter has a different type, or `acmix` has an unknown argument. Channels, stride and dilation
            are those of each convolution.

    Note:
        Blocks of Ultralytics and YOLOv5 fold their batch norm into the convolution's kernel before inference. ACmix2d
        has no such kernel, so the convolution is replaced by `nn.Sequential(ACmix2d, norm)`, and `fuse()` skips the
        block. If a filter replaces the first convolution of such a model, `info()` prints no GFLOPs, because it infers
        the number of input channels from the shape of the first parameter. When training starts, Ultralytics builds
        the model again from its yaml, without the swap. Use `acmix_zoo.integrations.ultralytics.swap`, which repeats
        the swap in the new model.
    """
    others = {name: value for name, value in acmix.items() if name not in _ARGUMENTS}
    reject_unknown_arguments("swap_conv3x3", f"{', '.join(_ARGUMENTS[:-1])} or {_ARGUMENTS[-1]}", (), others)
    if not (filter is None or isinstance(filter, str) or callable(filter)):
        raise TypeError(
            f"swap_conv3x3: filter={filter!r} is a {type(filter).__name__}. Expected a pattern such as 'layer4.*', or "
            "a function of a name and a convolution"
        )
    if lazy := next((name for name, parameter in model.named_parameters() if is_lazy(parameter)), None):
        raise ValueError(
            f"swap_conv3x3: the shape of {lazy} is not known yet, because it belongs to a lazy module. Expected a "
            "network that has processed a batch. Run it once before the swap"
        )
    candidates = _candidates(model, filter)
    if not candidates:
        names = [name for name, m in model.named_modules() if _is_3x3(m)]
        if not names:
            raise ValueError(
                f"swap_conv3x3: {type(model).__name__} has no 3×3 convolution. Expected at least one nn.Conv2d with "
                "kernel size 3. Pass a different model"
            )
        raise ValueError(
            f"swap_conv3x3: filter={filter!r} matches no 3×3 convolution of {type(model).__name__}. Expected a filter "
            f"for names such as {', '.join(names[:4])}. Change the filter, or leave it out to replace all that can be"
        )
    heads = acmix.get("heads", "auto")
    params_before = _count_parameters(model)
    reasons: dict[nn.Conv2d, str] = {}  # a convolution used in several places is kept in all of them or in none
    for name, conv in candidates.items():
        reason = why_unfit(model, name, conv, heads) or (why_protected(model, name, conv) if filter is None else None)
        if reason:
            reasons.setdefault(conv, reason)
    layers = {conv: _replacement(conv, acmix) for conv in dict.fromkeys(candidates.values()) if conv not in reasons}
    replaced = {name: layers[conv] for name, conv in candidates.items() if conv in layers}
    skipped = {name: reasons[conv] for name, conv in candidates.items() if conv in reasons}
    size = tuple(input_size) if input_size is not None else default_input_size(model)
    if size:
        size = _usable_size(model, size, is_given=input_size is not None)
    before = [(module, dict(module.__dict__), dict(module._modules)) for module in model.modules()]
    for name, layer in replaced.items():  # not before all layers could be built
        parent, _, child = name.rpartition(".")
        _replace_child(model.get_submodule(parent), child, layer)
    try:
        macs = _macs(model, layers, size) if size else None
    except Exception as error:  # whatever the network raises, such as an AttributeError for `conv.weight`
        for module, attributes, children in before:
            module.__dict__ = attributes
            module._modules = children
        some = ", ".join([*list(replaced)[:5], *["…"] * (len(replaced) > 5)])
        raise ValueError(
            f"swap_conv3x3: {type(model).__name__} cannot run with ACmix2d in place of {some}: {error}. "
            "Expected a network that calls its convolutions. If it only reads their weights, leave them out with a "
            "filter. Nothing has been replaced"
        ) from error
    return SwapReport(
        replaced=replaced,
        skipped=skipped,
        params=(params_before, _count_parameters(model)),
        macs=macs,
        input_size=size,
    )


def _usable_size(model: nn.Module, size: tuple[int, ...], is_given: bool) -> tuple[int, ...] | None:
    """Return the size, or None if the model cannot process an image of it.

    Raises:
        ValueError: it cannot, and the caller gave the size.
    """
    try:
        run_once(model, size)
    except Exception as error:  # whatever the layers of any network raise
        if is_given:
            raise ValueError(
                f"swap_conv3x3: {type(model).__name__} cannot process an image of input_size={size}: {error}. Expected "
                "(C, H, W) of an image that it can process. Change the size, or leave it out"
            ) from error
        return None
    return size


def _is_3x3(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)


def _candidates(model: nn.Module, filter: Filter | None) -> dict[str, nn.Conv2d]:
    """Return the 3×3 convolutions that match the filter, by name. A shared one has several names."""
    found = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Conv2d) and _is_3x3(module):
            if filter is None or (fnmatchcase(name, filter) if isinstance(filter, str) else filter(name, module)):
                found[name] = module
    return found


def _replace_child(block: nn.Module, child: str, layer: ACmix2d) -> None:
    """Replace a convolution of a block, and put the norm in a Sequential after the new layer if the block would
    otherwise fold it into `conv`."""
    norm = block._modules.get("bn")
    if layer in block._modules[child].modules():  # type: ignore[union-attr]  # the block is used in several places
        return
    if child == "conv" and isinstance(norm, nn.Module) and hasattr(block, "forward_fuse"):
        block.conv = nn.Sequential(layer, norm)
        del block.bn
        block.forward = block.forward_fuse  # type: ignore[assignment]
    else:
        setattr(block, child, layer)


def _replacement(conv: nn.Conv2d, acmix: dict[str, Any]) -> ACmix2d:
    """Return a new layer with the channels, stride, dilation, device, dtype and mode of a convolution."""
    layer = ACmix2d(conv.in_channels, conv.out_channels, stride=conv.stride[0], dilation=conv.dilation[0], **acmix)
    return layer.to(device=conv.weight.device, dtype=conv.weight.dtype).train(conv.training)


def _macs(model: nn.Module, layers: dict[nn.Conv2d, ACmix2d], input_size: Sequence[int]) -> tuple[int, int]:
    """Return the MACs of the convolutions and of the layers that replace them. A layer that runs twice counts twice."""
    total = [0, 0]

    def count(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        assert isinstance(layer, ACmix2d)
        total[0] += 9 * layer.in_channels * out.numel()
        total[1] += layer.definition_macs(args[0])

    hooks = [layer.register_forward_hook(count) for layer in layers.values()]
    try:
        run_once(model, input_size)
    finally:
        for hook in hooks:
            hook.remove()
    return total[0], total[1]


def _count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _change(before: int, after: int) -> str:
    """Format two numbers and the change from one to the other in per cent."""
    return f"{before:,} → {after:,}" + (f" ({after / before - 1:+.1%})" if before else "")
