"""ACmix2d gives the outputs of the authors' code, accepts any size, and can replace a convolution."""

from __future__ import annotations

import copy
import json
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from acmix_zoo import ACmix2d, load_weights
from acmix_zoo.layers import ReducedACmix, WindowACmix
from acmix_zoo.ops.acmix import acmix
from acmix_zoo.ops.local_attention import local_attention_reference
from acmix_zoo.ops.shift_conv import shift_conv_reference, shift_kernels
from acmix_zoo.ops.sliding_window import SlidingWindow
from acmix_zoo.weights.authors import translate_authors

GOLDEN = Path(__file__).parents[1] / "golden" / "acmix_layer.safetensors"


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).detach().abs().max() / expected.detach().abs().max())


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


def output_and_gradients(function, x: torch.Tensor, layer: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:  # type: ignore[no-untyped-def]
    x = x.detach().clone().requires_grad_()
    out = function(x)
    seed = torch.linspace(0, 9, out.numel(), dtype=out.dtype).sin().reshape(out.shape)
    names = [name for name, _ in layer.named_parameters()]
    grads = torch.autograd.grad((out * seed).sum(), [x, *layer.parameters()], allow_unused=True)
    return out.detach(), dict(zip(["x", *names], grads, strict=True))


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
    out, grads = output_and_gradients(layer, x, layer)
    expected, expected_grads = output_and_gradients(lambda x: reference(layer, x), x, layer)
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"out_channels": 130, "heads": 4},
            'heads=4 does not divide out_channels=130. Use out_channels=128 or 132, or heads=5 or heads="auto"',
        ),
        ({"out_channels": 3, "heads": 4}, 'Use out_channels=4, or heads=3 or heads="auto"'),
        ({"heads": "four"}, "heads must be a positive integer or \"auto\", got 'four'"),
        (
            {"kernel_conv": 4},
            "kernel_conv=4 is even. Expected an odd size",
        ),
        ({"kernel_att": 6}, "kernel_att=6 is even. Expected an odd size"),
        ({"kernel_conv": 2}, "kernel_conv=2 is even"),
        ({"stride": 0}, "stride must be a positive integer, got 0"),
        ({"paths": "all"}, "paths must be"),
    ],
)
def test_impossible_arguments_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        ACmix2d(**{"in_channels": 8, "out_channels": 8, **arguments})


def test_projection_without_a_bias_under_autocast():
    layer = ACmix2d(8, 8)
    layer.qkv = nn.Linear(8, 24, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(1, 8, 5, 5)).dtype == torch.bfloat16


def test_compiled_under_autocast():
    layer, x = ACmix2d(8, 8), torch.randn(2, 8, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert relative(compiled(x).float(), layer(x).float()) < 1e-2 and compiled(x).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("channels", "heads"),
    [
        (8, 4), (16, 4), (64, 4), (96, 4), (128, 4), (256, 4), (320, 5), (384, 6), (512, 8), (1024, 16),
        (6, 3), (10, 2), (7, 1), (130, 2), (257, 1), (1, 1),
    ],
)  # fmt: skip
def test_auto_heads(channels, heads):
    """Four heads for up to 256 channels, then heads of 64 channels. Fewer if these do not divide the width."""
    layer = ACmix2d(4, channels)
    assert layer.heads == heads and f"heads={heads}" in repr(layer)
    assert ACmix2d(4, channels, heads="auto").state_dict().keys() == layer.state_dict().keys()


@pytest.mark.parametrize("arguments", [(8, 16), (8, 16, 3), (8, 16, 5, 2), (8, 10, 1, 3)])
def test_arguments_by_position_are_those_of_a_convolution(arguments):
    """The order (in, out, kernel, stride) is that of nn.Conv2d, Ultralytics' Conv and config files."""
    inputs, outputs, kernel, stride = (*arguments, *(3, 1)[len(arguments) - 2 :])
    layer, x = ACmix2d(*arguments), torch.randn(1, 8, 11, 8)
    assert layer(x).shape == nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)(x).shape
    assert (layer.kernel_conv, layer.stride, layer.kernel_att) == (kernel, stride, 7)


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((3, 1, 1), {}, r"too many positional arguments\. Expected at most four.* Omit the padding of nn\.Conv2d"),
        (
            (),
            {"kernel_size": 3},
            r"unknown argument kernel_size=3\. Expected kernel_conv.* or kernel_att.* Pass",
        ),
        ((), {"padding": 1}, r"unknown argument padding=1\. Padding is always same-style.* Omit the argument"),
        ((), {"groups": 2}, r"unknown argument groups=2\. The layer is always dense"),
        ((), {"head": 2}, r"unknown argument head=2\. Expected in_channels, .*, heads, .* Correct or omit"),
    ],
)
def test_other_arguments_of_a_convolution_are_explained(arguments, keywords, message):
    with pytest.raises(TypeError, match=f"ACmix2d: {message}"):
        ACmix2d(8, 16, *arguments, **keywords)


@pytest.mark.parametrize(
    "build", [partial(WindowACmix, 8, window=(2, 2)), partial(ReducedACmix, 8)], ids=["window", "reduced"]
)
def test_impossible_kernels_and_heads_of_the_other_layers(build):
    """Without the check, a layer with only the convolution path would return a map of another size."""
    with pytest.raises(ValueError, match=r"kernel_conv=4 is even\. Expected an odd size"):
        build(heads=2, kernel_conv=4, paths="convolution")
    with pytest.raises(ValueError, match=r"heads=0 is not positive\. Expected a divisor of dim=8"):
        build(heads=0)


def test_inputs_of_a_wrong_shape_are_rejected():
    with pytest.raises(ValueError, match=r"expected an input of \(B, 8, H, W\), got \(2, 4, 5, 5\)"):
        ACmix2d(8, 8)(torch.randn(2, 4, 5, 5))


def test_script_is_rejected_with_advice():
    with pytest.raises(TypeError, match=r"Use torch\.compile or torch\.export"):
        torch.jit.script(nn.Sequential(ACmix2d(8, 8)))


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
        first, second = (output_and_gradients(layer, x, layer) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])


@pytest.mark.parametrize(
    ("stride", "train"),
    [
        (2, True),
        pytest.param(1, True, marks=pytest.mark.slow),
        pytest.param(1, False, marks=pytest.mark.slow),
        pytest.param(2, False, marks=pytest.mark.slow),
    ],
)
def test_compiled_layer_is_one_operator(stride, train):
    """One graph serves all sizes, because the backend is chosen inside the operator."""
    layer = ACmix2d(8, 12, stride=stride)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    with torch.set_grad_enabled(train):
        for size in ((3, 9, 7), (2, 24, 31), (5, 64, 40)):
            x = torch.randn(size[0], 8, *size[1:])
            out, expected = compiled(x), layer(x)
            assert relative(out, expected) < 1e-6 and out.stride() == expected.stride()
            assert out.requires_grad == train
    (graph,) = counter.graphs
    assert sum("acmix_zoo.acmix" in str(node.target) for node in graph.graph.nodes) == 1
    assert counter.frame_count == 1


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("paths", ["both", "attention", "convolution"])
def test_the_operators_pass_opcheck(paths, keep, train):
    layer = ACmix2d(8, 12, paths=paths)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("acmix_zoo.layers.acmix2d.acmix", lambda *args: seen.append(args) or acmix(*args))
        layer(torch.randn(2, 8, 20, 19))
    ((x, weight, bias, paths, geometry),) = seen
    tensors = [t if t is None else t.detach().requires_grad_(train) for t in (x, weight, bias, *paths)]
    torch.library.opcheck(torch.ops.acmix_zoo.acmix, (*tensors, *geometry, keep))
    grad, wanted = torch.randn(2, 12, 20, 19), [i % 3 != 1 and t is not None for i, t in enumerate(tensors)]
    tensors = [t if t is None else t.detach() for t in tensors]
    _, kept = torch.ops.acmix_zoo.acmix(*tensors, *geometry, keep)
    torch.library.opcheck(torch.ops.acmix_zoo.acmix_backward, (grad, kept, *tensors, *geometry, wanted))


def test_compile_with_dynamic_sizes():
    torch.manual_seed(0)
    layer = ACmix2d(4, 8, stride=2)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((2, 4, 20, 24), (3, 4, 33, 17), (2, 4, 9, 8)):
        x = torch.randn(size)
        actual, wanted = output_and_gradients(compiled, x, layer), output_and_gradients(layer, x, layer)
        assert relative(actual[0], wanted[0]) < 1e-5
        assert all(torch.allclose(actual[1][name], wanted[1][name], rtol=1e-3, atol=1e-3) for name in wanted[1])


@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 2])
def test_inductor_with_dynamic_sizes(stride):
    layer = ACmix2d(4, 8, stride=stride)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for size in ((2, 4, 20, 24), (3, 4, 33, 17), (2, 4, 9, 8)):
        x = torch.randn(size)
        actual, wanted = output_and_gradients(compiled, x, layer), output_and_gradients(layer, x, layer)
        assert relative(actual[0], wanted[0]) < 1e-5
        assert all(torch.allclose(actual[1][name], wanted[1][name], rtol=1e-3, atol=1e-3) for name in wanted[1])


SIZES = [(1, 4, 3, 3), (3, 4, 33, 17), (2, 4, 8, 25)]  # for an exported graph, which needs a height and width over 2


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_export_with_dynamic_sizes(stride):
    layer = ACmix2d(4, 8, stride=stride).eval()
    size = {0: torch.export.Dim("b"), 2: torch.export.Dim("h", min=3), 3: torch.export.Dim("w", min=3)}
    exported = torch.export.export(layer, (torch.randn(2, 4, 20, 24),), dynamic_shapes=(size,)).module()
    for shape in SIZES:
        x = torch.randn(shape)
        assert relative(exported(x), layer(x)) < 1e-5


@pytest.mark.parametrize("is_dynamic", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["fixed", "dynamic"])
def test_onnx(is_dynamic):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    layer = ACmix2d(4, 8, stride=2).eval()
    example = torch.randn(2, 4, 20, 24)
    sizes = (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),) if is_dynamic else None
    program = torch.onnx.export(layer, (example,), dynamic_shapes=sizes, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    for shape in SIZES if is_dynamic else [example.shape]:
        x = torch.randn(shape)
        (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(out, layer(x).detach().numpy(), atol=1e-4)


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
