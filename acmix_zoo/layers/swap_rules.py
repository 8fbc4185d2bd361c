"""Rules for the 3×3 convolutions that `swap_conv3x3` keeps, because ACmix2d cannot or should not replace them.

Each rule returns the reason as text for the report.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules import activation
from torch.nn.utils import parametrize

# Inputs with fewer channels are mostly images (RGB, depth, satellite bands), not features to attend to. There, ACmix is
# also far more expensive: about 206 multiplications per output value after the projections, not 9 per input channel.
_MIN_INPUTS = 16
# Methods of blocks that merge a convolution with others or with its norm. ACmix2d has no single kernel to merge.
_MERGES = ("fuse_convs", "fuse_model", "reparameterize", "switch_to_deploy", "get_equivalent_kernel_bias")
# Activations that follow a hidden layer. Sigmoid, tanh and softmax follow an output layer at least as often.
_HIDDEN = tuple(
    getattr(activation, name)
    for name in activation.__all__
    if not name.startswith(("Log", "Multihead", "Sigmoid", "Softmax", "Softmin")) and name != "Tanh"
)


def why_unfit(model: nn.Module, name: str, conv: nn.Conv2d, heads: int | str) -> str | None:
    """Return why an ACmix2d cannot replace a convolution, or None if it can."""
    if conv is model:
        return "the model itself, which has no parent module in which to replace it"
    if type(conv) is not nn.Conv2d:
        if parametrize.is_parametrized(conv):
            return "parametrized (for example weight norm), which would be lost with ACmix2d"
        return f"a {type(conv).__name__}, not a plain Conv2d"
    if conv._forward_pre_hooks or conv._forward_hooks or conv._backward_pre_hooks or conv._backward_hooks:
        return "has hooks (pruning, weight norm, recorded features), which would be lost with ACmix2d"
    if not {"forward", "_conv_forward"}.isdisjoint(conv.__dict__):  # seamless tiling, offloading
        return "has its own forward, which would be lost with ACmix2d"
    if sum(parameter is conv.weight for module in model.modules() for parameter in module._parameters.values()) > 1:
        return "shares its weight with another module, and would no longer do so as ACmix2d"
    if conv.groups != 1:
        return f"groups={conv.groups}, not dense"
    if conv.stride[0] != conv.stride[1] or conv.dilation[0] != conv.dilation[1]:
        return f"stride={conv.stride}, dilation={conv.dilation} differ by axis"
    same = conv.padding == conv.dilation or (conv.padding == "same" and conv.stride == (1, 1))
    if not same or conv.padding_mode != "zeros":
        return f"padding={conv.padding} ({conv.padding_mode}), but ACmix needs zeros and padding={conv.dilation}"
    if isinstance(heads, int) and heads > 0 and conv.out_channels % heads:  # ACmix2d itself rejects invalid heads
        return f"{conv.out_channels} output channels are not divisible by heads={heads}"
    return _merging_block(model, name)


def why_protected(model: nn.Module, name: str, conv: nn.Conv2d) -> str | None:
    """Return why the convolution is only replaced if a filter names it, or None if it is an ordinary hidden layer."""
    how = "; name it in the filter to replace it"
    if conv.in_channels < _MIN_INPUTS:
        return f"a stem or very narrow (in_channels={conv.in_channels}){how}"
    for part in name.split(".")[:-1]:
        if part in ("head", "heads") or part.endswith("_head"):
            return f"part of a prediction head ({part}){how}"
    following = _next_module(model, name)
    if conv.bias is not None and not isinstance(following, _HIDDEN) and not _is_norm(following):
        return f"an output layer (it has a bias, and no norm or activation follows){how}"
    return None


def _is_norm(module: nn.Module | None) -> bool:
    """Return whether a module is a norm, judged by its name. torchvision's `Conv2dNormActivation` is not."""
    if module is None or "Norm" not in type(module).__name__:
        return False
    return not any(isinstance(m, nn.Conv2d) for m in module.modules())


def _merging_block(model: nn.Module, name: str) -> str | None:
    """Return why a block around the convolution needs its kernel, or None if no block does."""
    for path in _ancestors(name):
        block = model.get_submodule(path)
        is_parent = path == name.rpartition(".")[0]
        for method in (*_MERGES, *["fuse"] * is_parent):  # whole models have a `fuse`, too, that calls their blocks
            if callable(getattr(type(block), method, None)):  # not a submodule of this name
                return f"{type(block).__name__}.{method} merges it with other layers"
    return None


def _ancestors(name: str) -> list[str]:
    """Return the paths of the modules around `name`, innermost first, without the model itself."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(len(parts) - 1, 0, -1)]


def _next_module(model: nn.Module, name: str) -> nn.Module | None:
    """Return the module registered after `name`. If `name` is the last in an nn.Sequential, look after that one."""
    while name:
        parent, _, child = name.rpartition(".")
        siblings = list(model.get_submodule(parent)._modules)
        following = siblings[siblings.index(child) + 1 :]
        if following:
            return model.get_submodule(parent)._modules[following[0]]
        if not isinstance(model.get_submodule(parent), nn.Sequential):
            return None
        name = parent
    return None
