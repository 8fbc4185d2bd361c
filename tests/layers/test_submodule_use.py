"""Submodules of the layers are called whenever they have hooks. The fast paths, which read weights directly, must not
bypass them."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import timm
import torch
from support.layer_cases import LAYERS, layer_and_inputs
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import acmix_zoo  # noqa: F401 (registers the networks)
from acmix_zoo.layers import ACmix2d
from acmix_zoo.layers.convolution_path import ShiftConv
from acmix_zoo.layers.submodule_use import can_skip_call, is_plain

EVERY_LAYER = pytest.mark.parametrize("kind", LAYERS)


def output_and_gradients(layer: nn.Module, inputs: tuple) -> list[Tensor]:
    x = inputs[0].detach().clone().requires_grad_()
    out = layer(x, *inputs[1:])
    seed = torch.linspace(0, 9, out.numel(), dtype=out.dtype).sin().reshape(out.shape)
    return [out.detach(), *torch.autograd.grad((out * seed).sum(), [x, *layer.parameters()])]


@EVERY_LAYER
@pytest.mark.parametrize("autocast", [False, True], ids=["float64", "autocast"])
def test_a_hook_on_any_submodule_is_called(kind: str, autocast: bool) -> None:
    layer, inputs = layer_and_inputs(kind, torch.float32 if autocast else torch.float64)
    seen: set[str] = set()
    for name, module in layer.named_modules():
        module.register_forward_hook(lambda *args, name=name: seen.add(name))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        layer(*inputs)
    assert seen == {name for name, _ in layer.named_modules()}


@EVERY_LAYER
def test_hooks_do_not_change_the_result(kind: str) -> None:
    layer, inputs = layer_and_inputs(kind)
    expected = output_and_gradients(layer, inputs)
    for module in layer.modules():
        module.register_forward_hook(lambda *args: None)
    for actual, wanted in zip(output_and_gradients(layer, inputs), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-11 * float(wanted.abs().max().clamp(min=1)))


@EVERY_LAYER
def test_hooks_on_all_modules_and_backward_hooks_see_the_projections(kind: str) -> None:
    layer, inputs = layer_and_inputs(kind)
    seen: set[nn.Module] = set()
    handle = register_module_forward_hook(lambda module, args, out: seen.add(module) and None)
    try:
        layer(*inputs)
    finally:
        handle.remove()
    assert seen == set(layer.modules())
    # A full backward hook makes a view of the output, which an in-place module behind it must not change. torchvision
    # and timm have the same limit, and its remedy is the same.
    calls: set[str] = set()
    for name, module in layer.named_modules():
        if hasattr(module, "inplace"):
            module.inplace = False
        module.register_full_backward_hook(lambda *args, name=name: calls.add(name))
    layer(inputs[0].requires_grad_(), *inputs[1:]).sum().backward()
    # conv_p reads coordinates, which need no gradient. torch calls its hook anyway, because its parameters do.
    assert calls == {name for name, _ in layer.named_modules()}


@EVERY_LAYER
def test_hooks_on_all_modules_do_not_change_the_result(kind: str) -> None:
    layer, inputs = layer_and_inputs(kind)
    expected = output_and_gradients(layer, inputs)
    handle = register_module_forward_hook(lambda *args: None)
    try:
        assert not can_skip_call(nn.Linear(2, 2), nn.Linear)
        found = output_and_gradients(layer, inputs)
    finally:
        handle.remove()
    assert can_skip_call(nn.Linear(2, 2), nn.Linear)
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-11 * float(wanted.abs().max().clamp(min=1)))


def saved_bytes(layer: nn.Module, x: Tensor) -> int:
    """Return the size of what autograd keeps for the backward pass."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        return kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_memory_with_hooks_is_as_documented() -> None:
    """A layer that has to call its submodules keeps their outputs. Without hooks, it uses little memory again."""
    layer, x = ACmix2d(64, 64), torch.randn(8, 64, 56, 56)
    plain = saved_bytes(layer, x)
    assert plain < 1.5 * x.nbytes  # the input, the weights and the position encoding
    handle = register_module_forward_hook(lambda *args: None)
    try:
        assert saved_bytes(layer, x) > 4 * x.nbytes  # also q, k and v, each as large as the input
    finally:
        handle.remove()
    assert saved_bytes(layer, x) == plain


@pytest.mark.parametrize("name", ["acmix_resnet_pico", "acmix_swin_pico"])
def test_hooks_on_all_modules_do_not_prevent_deploying(name: str) -> None:
    """Such hooks watch calls, for example to profile, and belong to no module that folding could remove."""
    model = timm.create_model(name).eval()
    expected = copy.deepcopy(model).deploy().state_dict().keys()
    handle = register_module_forward_hook(lambda *args: None)
    try:
        assert model.deploy().state_dict().keys() == expected
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind in ("acmix2d", "patchwise") else pytest.mark.slow)
        for kind in LAYERS
        if kind not in ("window", "reduced")  # these call every submodule
    ],
)
def test_non_strict_export_records_the_same_graph(kind: str) -> None:
    """The parameters are FakeTensors there, which must not be mistaken for weights with their own arithmetic."""
    layer, inputs = layer_and_inputs(kind)
    operators = []
    for strict in (True, False):
        program = torch.export.export(layer, inputs, strict=strict)
        torch.testing.assert_close(program.module()(*inputs), layer(*inputs), rtol=1e-11, atol=1e-11)
        graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
        targets = [str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"]
        # The non-strict exporter also records the question which dtype results from two others. It has no effect.
        operators.append(Counter(target for target in targets if "promote_types" not in target))
    assert operators[0] == operators[1]


def test_is_plain() -> None:
    assert is_plain(nn.Linear(2, 2), nn.Linear) and is_plain(nn.Linear(2, 2, bias=False), nn.Linear)
    assert is_plain(ShiftConv(8, 4), ShiftConv)
    replaced = nn.Linear(2, 2)
    replaced.forward = lambda x: x  # as accelerate does
    assert not is_plain(replaced, nn.Linear)

    class Quantised(Tensor):
        """A weight with its own arithmetic, as in torchao."""

    subclassed = nn.Linear(2, 2)
    subclassed.weight = nn.Parameter(subclassed.weight.detach().as_subclass(Quantised))
    assert not is_plain(subclassed, nn.Linear)
    for register in ("forward_pre", "forward", "full_backward", "full_backward_pre"):
        hooked = nn.Linear(2, 2)
        handle = getattr(hooked, f"register_{register}_hook")(lambda *args: None)
        assert not is_plain(hooked, nn.Linear)
        handle.remove()
        assert is_plain(hooked, nn.Linear)


@pytest.mark.parametrize("name", ["acmix_resnet_pico", "acmix_swin_pico", "acmix_pvt_pico", "acmix_san_pico"])
def test_full_backward_hooks_on_a_whole_network(name: str) -> None:
    """As for torchvision's and timm's networks, once their in-place activations are switched off."""
    model = timm.create_model(name)
    calls: set[str] = set()
    for path, module in model.named_modules():
        if hasattr(module, "inplace"):
            module.inplace = False
        module.register_full_backward_hook(lambda *args, path=path: calls.add(path))
    model(torch.randn(2, *model.pretrained_cfg["input_size"])).sum().backward()
    missed = {path for path, _ in model.named_modules()} - calls
    assert not [path for path in missed if isinstance(model.get_submodule(path), nn.Linear | nn.Conv2d | ShiftConv)]
