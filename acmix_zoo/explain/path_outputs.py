"""The outputs of the two paths of ACmix layers within a network, and a way to replace what the layers return.

A layer returns `alpha · attention + beta · convolution`. It is linear in both factors, so running it with beta = 0
gives the attention path, including alpha, and with alpha = 0 the convolution path. This works for every layer and on
every backend, and needs no access to what happens within a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from acmix_zoo.layers import ACmix2d, PairwiseSAM, PatchwiseSAM, ReducedACmix, WindowACmix
from acmix_zoo.layers.cost import forward_inputs
from acmix_zoo.layers.deploy import DeployedACmix2d

ACmixLayer = ACmix2d | WindowACmix | ReducedACmix | PairwiseSAM | PatchwiseSAM


class PathOutputs(NamedTuple):
    """What each path adds to the output of a layer, in the shape of that output. None for a path it does not have.

    Attributes:
        attention: alpha · attention.
        convolution: beta · convolution.
    """

    attention: Tensor | None
    convolution: Tensor | None


class LayerCall(NamedTuple):
    """One call of an ACmix layer while the network runs.

    Attributes:
        name: the name of the layer in the network.
        layer: the layer.
        inputs: its positional inputs: a feature map, or tokens and the size of their feature map.
        output: what it returned.
        paths: the parts of the output, without gradients.
    """

    name: str
    layer: ACmixLayer
    inputs: tuple[Any, ...]
    output: Tensor
    paths: PathOutputs


class PositionSums(NamedTuple):
    """Values of a layer's output, summed over channels.

    Attributes:
        positions: (B, H, W), one for each position of the feature map.
        tokens: (B,), the sum over tokens without a position, such as PVT's class token. Zero for other layers.
    """

    positions: Tensor
    tokens: Tensor


def acmix_layers(model: nn.Module) -> dict[str, ACmixLayer]:
    """Return the ACmix layers of a network by name, including those that have only one path.

    Raises:
        ValueError: the network is deployed, so that alpha and beta are folded into other weights.
    """
    layers = {}
    for name, module in model.named_modules():
        is_folded = isinstance(module, WindowACmix) and module.paths == "both" and module.alpha is None
        if is_folded or isinstance(module, DeployedACmix2d):
            raise ValueError(
                f"{name} is folded for inference, and its paths can no longer be separated. Expected a network that "
                "is not deployed. Create it again and do not call deploy()"
            )
        if isinstance(module, ACmixLayer):
            layers[name.replace("_orig_mod.", "")] = module  # added by torch.compile(block)
    return layers


@contextmanager
def replaced_outputs(model: nn.Module, replace: Callable[[LayerCall], Tensor]) -> Iterator[None]:
    """Within this context, every ACmix layer of a network returns `replace(call)` instead of its output.

    The layers themselves are not changed. A layer that the network uses several times is replaced in every call.
    """
    is_running_paths = False

    def hook(name: str, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        nonlocal is_running_paths
        if is_running_paths:  # these are calls of `_path_outputs` below, which need the layer's own output
            return None
        inputs = forward_inputs(layer, args, kwargs)
        is_running_paths = True
        try:
            paths = _path_outputs(layer, inputs, output)
        finally:
            is_running_paths = False
        # A copy, because an activation behind the layer may work in place, and the caller may have kept the tensor.
        return replace(LayerCall(name, layer, inputs, output, paths)).clone()

    handles = [
        layer.register_forward_hook(partial(hook, name), with_kwargs=True)
        for name, layer in acmix_layers(model).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def sum_channels(call: LayerCall, values: Tensor) -> PositionSums:
    """Sum values with the shape of a layer's output over channels, and separate positions from tokens without one."""
    if isinstance(call.layer, ReducedACmix):
        h, w = call.inputs[1]
        tokens = values.sum(2)  # (B, prefix + H·W)
        prefix = tokens.shape[1] - h * w
        return PositionSums(tokens[:, prefix:].unflatten(1, (h, w)), tokens[:, :prefix].sum(1))
    positions = values.sum(3 if isinstance(call.layer, WindowACmix) else 1)  # (B, H, W)
    return PositionSums(positions, positions.new_zeros(len(positions)))


@torch.no_grad()
def _path_outputs(layer: ACmixLayer, inputs: tuple[Any, ...], output: Tensor) -> PathOutputs:
    if layer.paths == "attention":
        return PathOutputs(output.detach(), None)
    if layer.paths == "convolution":
        return PathOutputs(None, output.detach())
    zero = torch.zeros_like(layer.alpha)
    return PathOutputs(functional_call(layer, {"beta": zero}, inputs), functional_call(layer, {"alpha": zero}, inputs))
