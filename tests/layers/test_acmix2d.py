"""ACmix2d gives the outputs of the authors' code, accepts any size, and can replace a convolution."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from support.gradients import named_gradients, relative
from torch import nn

from acmix_zoo import ACmix2d, load_weights
from acmix_zoo.ops.acmix import Geometry, runs_native
from acmix_zoo.ops.dispatch import BACKENDS, use_backend
from acmix_zoo.ops.local_attention import local_attention_reference
from acmix_zoo.ops.shift_conv import shift_conv_reference, shift_kernels
from acmix_zoo.ops.sliding_window import SlidingWindow
from acmix_zoo.weights.authors import translate_authors

GOLDEN = Path(__file__).parents[1] / "golden" / "acmix_layer.safetensors"


def reference(layer: ACmix2d, x: torch.Tensor) -> torch.Tensor:
    """Compute the layer as the paper describes it, with the reference operators."""
    d, heads = layer.out_channels // layer.heads, layer.heads
    projections = layer.qkv(x.permute(0, 2, 3, 1)).unflatten(3, (d, 3, heads))  # (B, H, W, d, 3, heads)
    q, k, v = (projections[..., i, :].transpose(3, 4) for i in range(3))
    out = torch.zeros(())
    if layer.paths != "convolution":
        h, w = x.shape[2:]
        x_at, y_at = torch.linspace(-1, 1, w, dtype=x.dtype), torch.linspace(-1, 1, h, dtype=x.dtype)
        grid = torch.stack([x_at.expand(h, w), y_at.unsqueeze(1).expand(h, w)], -1)  # (H, W, 2)
        pe = F.linear(grid, layer.position_weight, layer.position_bias)  # (H, W, d)
        attention = local_attention_reference(
            q, k, v, pe, SlidingWindow(layer.kernel_att, layer.stride, layer.dilation)
        ).flatten(3)
        out = out + (layer.alpha * attention if layer.paths == "both" else attention)
    if layer.paths != "attention":
        path = layer.shift_conv
        convolution = shift_conv_reference(
            projections.flatten(4), path.fc_weight, path.shift_weight, stride=layer.stride, dilation=layer.dilation
        )
        out = out + (layer.beta * convolution if layer.paths == "both" else convolution)
    return out.permute(0, 3, 1, 2)


@settings(max_examples=40, deadline=None)
@given(
    h=st.one_of(st.integers(1, 9), st.integers(16, 21)), w=st.one_of(st.integers(1, 9), st.integers(16, 21)),
    heads=st.sampled_from([1, 2, 4, 6]), d=st.integers(1, 3), kernel_att=st.sampled_from([1, 3, 5, 7]),
    kernel_conv=st.sampled_from([1, 3, 5, 7]), stride=st.integers(1, 2), dilation=st.integers(1, 3),
    paths=st.sampled_from(["both", "both", "attention", "convolution"]), channels_last=st.booleans(),
)  # fmt: skip
def test_equals_reference_in_float64(h, w, heads, d, kernel_att, kernel_conv, stride, dilation, paths, channels_last):
    torch.manual_seed(h * w)
    layer = ACmix2d(
        3, heads * d, heads=heads, kernel_att=kernel_att, kernel_conv=kernel_conv, stride=stride, dilation=dilation,
        paths=paths,
    ).double()  # fmt: skip
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    x = torch.randn(2, 3, h, w, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    out, grads = named_gradients(layer, x, layer)
    expected, expected_grads = named_gradients(lambda x: reference(layer, x), x, layer)
    assert out.shape == (2, heads * d, -(-h // stride), -(-w // stride))
    assert (out - expected).abs().max() <= 1e-10 * expected.abs().max().clamp(min=1)
    for name, wanted in expected_grads.items():
        if name == "position_bias":  # cancels in the softmax: noise in the reference, zero in the layer
            assert wanted.abs().max() < 1e-10 and (grads[name] == 0).all()
        else:
            assert (grads[name] - wanted).abs().max() <= 1e-10 * wanted.abs().max().clamp(min=1), name


@pytest.fixture(scope="module")
def golden():  # type: ignore[no-untyped-def]
    with safe_open(GOLDEN, "pt") as file:
        cases = json.loads(file.metadata()["cases"])
        return cases, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)


@pytest.mark.parametrize("case", ["basic", "stride2", "k3h2", "k5h8", "smallmap"])
def test_equals_the_authors_layer(golden, case):
    """The output and every gradient agree with the released code to within 1e-4."""
    arguments, tensors = golden[0][case], golden[1]
    layer = ACmix2d(
        arguments["in_planes"], arguments["out_planes"], heads=arguments["head"], stride=arguments["stride"],
        kernel_att=arguments["kernel_att"], kernel_conv=arguments["kernel_conv"],
    )  # fmt: skip
    load_weights(
        layer, {k.removeprefix(f"{case}.state."): v for k, v in tensors.items() if k.startswith(f"{case}.state.")}
    )
    x = tensors[f"{case}.x"].clone().requires_grad_()
    y = layer(x)
    y.backward(tensors[f"{case}.grad_y"])
    assert relative(y, tensors[f"{case}.y"]) < 1e-4
    assert relative(x.grad, tensors[f"{case}.grad_x"]) < 1e-4
    theirs = {k.removeprefix(f"{case}.grad."): v for k, v in tensors.items() if k.startswith(f"{case}.grad.")}
    noise = theirs["conv_p.bias"].abs().max()
    assert noise < 1e-5 * theirs["conv_p.weight"].abs().max()  # only rounding noise, because the bias cancels
    for name, wanted in translate_authors(theirs, layer).items():
        grad = layer.get_parameter(name).grad
        assert (grad == 0).all() if name == "position_bias" else relative(grad, wanted) < 1e-4, name


# ---- what fails in the released code


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", [(7, 9), (20, 18)], ids=["global", "tiles"])
def test_dtypes(dtype, size):
    torch.manual_seed(0)
    layer = ACmix2d(16, 16)
    x = torch.randn(2, 16, *size)
    exact = copy.deepcopy(layer).double()(x.double())
    cast = copy.deepcopy(layer).to(dtype)
    given = x.to(dtype).requires_grad_()
    out = cast(given)
    out.sum().backward()
    assert out.dtype == dtype and given.grad is not None and given.grad.isfinite().all()
    tolerance = {torch.float16: 5e-3, torch.bfloat16: 4e-2, torch.float64: 1e-6}[dtype]
    assert relative(out.double(), exact) < tolerance


def test_autocast():
    layer = ACmix2d(8, 8)
    x = torch.randn(2, 8, 20, 17)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
        assert out.dtype == torch.bfloat16  # like a convolution under autocast
        out.float().sum().backward()
    assert relative(out.float(), layer(x)) < 4e-2
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2), (3, 3), (15, 33), (57, 19)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_any_size_as_a_convolution_of_the_same_stride(size, stride):
    x = torch.randn(1, 4, *size)
    assert ACmix2d(4, 8, stride=stride)(x).shape == nn.Conv2d(4, 8, 3, stride, 1)(x).shape


def test_dilation_widens_both_paths():
    """On both paths, a pixel is affected by pixels up to dilation × half a kernel away."""
    for paths, reach in (("attention", 6), ("convolution", 2)):
        layer = ACmix2d(4, 4, heads=2, dilation=2, paths=paths)
        with torch.no_grad():
            layer.qkv.weight.normal_()
        x = torch.randn(1, 4, 31, 31, requires_grad=True)
        layer(x)[0, :, 15, 15].sum().backward()
        seen = x.grad.abs().sum((0, 1)).nonzero() - 15
        assert seen.abs().max() == reach and (seen % 2 == 0).all(), paths


def test_projection_without_a_bias_under_autocast():
    layer = ACmix2d(8, 8)
    layer.qkv = nn.Linear(8, 24, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(1, 8, 5, 5)).dtype == torch.bfloat16


# ---- what a convolution can do, too


def test_memory_format_follows_the_input():
    layer, x = ACmix2d(8, 16), torch.randn(2, 8, 12, 10)
    plain, last = layer(x), layer(x.contiguous(memory_format=torch.channels_last))
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(plain, last)
    assert plain.view(2, -1).shape == (2, 16 * 120)  # code behind a convolution may call view on its output
    torch.testing.assert_close(layer(torch.randn(2, 8, 10, 12).transpose(2, 3)).shape, plain.shape)


@pytest.mark.parametrize("size", [6, 20])
def test_empty_batch(size):
    layer, x = ACmix2d(8, 16, stride=2), torch.randn(0, 8, size, size, requires_grad=True)
    out = layer(x)
    assert out.shape == (0, 16, size // 2, size // 2)
    out.sum().backward()
    assert x.grad.shape == x.shape and all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("size", [(9, 7), (20, 18)], ids=["global", "tiles"])
def test_a_feature_map_without_a_batch_dimension(size):
    layer, x = ACmix2d(8, 16, stride=2), torch.randn(8, *size)
    out, grads = named_gradients(layer, x, layer)
    expected, expected_grads = named_gradients(layer, x[None], layer)
    assert out.shape == nn.Conv2d(8, 16, 3, 2, 1)(x).shape and torch.equal(out, expected[0])
    assert all(torch.equal(grads[name].view_as(wanted), wanted) for name, wanted in expected_grads.items())
    assert layer.stage_macs(x) == layer.stage_macs(x[None])
    for backend in BACKENDS:
        with use_backend(backend):
            torch.testing.assert_close(layer(x).detach(), out)
    traced = torch.jit.trace(layer, x, check_trace=False)
    torch.testing.assert_close(traced(x), out)
    layer.qkv.register_forward_hook(lambda *_: None)  # the layer now calls its submodules
    torch.testing.assert_close(layer(x), out)


def test_copies():
    layer, x = ACmix2d(8, 16), torch.randn(1, 8, 9, 9)
    layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))


def test_meta_device():
    with torch.device("meta"):
        layer = ACmix2d(8, 16, stride=2)
        for size in (9, 33):
            assert layer(torch.empty(2, 8, size, size)).shape == (2, 16, (size + 1) // 2, (size + 1) // 2)
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert torch.equal(layer.shift_conv.shift_weight, shift_kernels(16, 3)) and layer.alpha == 0.5
    assert layer(torch.randn(1, 8, 9, 9)).isfinite().all()


def test_deterministic_algorithms():
    layer, x = ACmix2d(8, 16), torch.randn(2, 8, 24, 20)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (named_gradients(layer, x, layer) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])


# ---- initialisation, and layers with one path


def test_initialisation():
    layer = ACmix2d(8, 16)
    assert layer.alpha.item() == layer.beta.item() == 0.5
    taps = layer.shift_conv.shift_weight.view(16, 9, 9)
    assert torch.equal(taps, torch.eye(9).expand(16, 9, 9))


def test_initialisation_survives_that_of_a_network():
    def init(module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight)

    network = nn.Sequential(nn.Conv2d(3, 8, 3), ACmix2d(8, 16)).apply(init)
    assert torch.equal(network[1].shift_conv.shift_weight, shift_kernels(16, 3))


def test_both_paths_are_the_sum_of_each_alone():
    torch.manual_seed(0)
    both = ACmix2d(8, 16)
    parts = {path: ACmix2d(8, 16, paths=path) for path in ("attention", "convolution")}
    state = both.state_dict()
    for part in parts.values():
        part.load_state_dict({key: state[key] for key in part.state_dict()})
    x = torch.randn(2, 8, 11, 9)
    alone = both.alpha * parts["attention"](x) + both.beta * parts["convolution"](x)
    torch.testing.assert_close(both(x), alone)
    assert {name for name, _ in parts["convolution"].named_parameters()}.isdisjoint(
        {"alpha", "beta", "position_weight"}
    )


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_feature_map_without_pixels_is_rejected(size, stride):
    """The native kernel divides by both sides."""
    layer = ACmix2d(8, 8, stride=stride)
    for x in (torch.randn(2, 8, *size), torch.randn(8, *size), torch.randn(0, 8, *size)):
        with pytest.raises(ValueError, match=r"Expected \(B, 8, H, W\) or \(8, H, W\) with at least one pixel"):
            layer(x)
    x, weight = torch.randn(2, 8, *size), torch.randn(24, 8)
    assert not runs_native(x, weight, None, (None, None, torch.randn(8, 1, 3, 3), None, None), Geometry(4, 7, 1, 1))


def test_one_channel_keeps_the_memory_format():
    """Such an input is contiguous and channels_last at the same time. `nn.Conv2d` returns a contiguous result, too."""
    y = ACmix2d(1, 32)(torch.randn(2, 1, 6, 5))
    assert y.is_contiguous() and y.view(2, -1).shape == (2, 32 * 30)
