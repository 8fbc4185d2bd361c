"""ACmix2d in compiled and exported graphs: one operator, any size, and the outputs of the layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.gradients import named_gradients, relative
from torch._dynamo.testing import CompileCounterWithBackend

from acmix_zoo import ACmix2d
from acmix_zoo.ops.acmix import acmix


def test_compiled_under_autocast():
    layer, x = ACmix2d(8, 8), torch.randn(2, 8, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert relative(compiled(x).float(), layer(x).float()) < 1e-2 and compiled(x).dtype == torch.bfloat16


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
        actual, wanted = named_gradients(compiled, x, layer), named_gradients(layer, x, layer)
        assert relative(actual[0], wanted[0]) < 1e-5
        assert all(torch.allclose(actual[1][name], wanted[1][name], rtol=1e-3, atol=1e-3) for name in wanted[1])


@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 2])
def test_inductor_with_dynamic_sizes(stride):
    layer = ACmix2d(4, 8, stride=stride)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for size in ((2, 4, 20, 24), (3, 4, 33, 17), (2, 4, 9, 8)):
        x = torch.randn(size)
        actual, wanted = named_gradients(compiled, x, layer), named_gradients(layer, x, layer)
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
