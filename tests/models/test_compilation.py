"""torch.compile, torch.export and ONNX of the networks. test_tracing.py tests the exporters at other image sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.networks import SHALLOW, SMALL, shallow_and_full
from timm.models import create_model
from torch._dynamo.testing import CompileCounterWithBackend

import acmix_zoo  # noqa: F401 (registers the networks)


@shallow_and_full()  # test_one_graph_for_many_sizes is the quick representative
def test_compile_without_graph_breaks(name: str, arguments: dict[str, Any]) -> None:
    network = create_model(name, **arguments).eval()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    for size in (32, 40):
        x = torch.randn(2, 3, size, size)
        torch.testing.assert_close(compiled(x), network(x), rtol=1e-4, atol=1e-5)


@shallow_and_full("acmix_resnet_pico")
def test_one_graph_for_many_sizes(name: str, arguments: dict[str, Any]) -> None:
    """With dynamic sizes, no size leads to a new graph, whether or not windows and tiles fit the map."""
    network = create_model(name, **arguments).eval()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend=counter)
    for height, width in ((100, 132), (128, 96), (125, 100), (112, 112), (120, 135)):
        x = torch.randn(2, 3, height, width)
        torch.testing.assert_close(compiled(x), network(x), rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("acmix_swin_t", {"depths": (1, 2), "num_heads": (3, 6)}),
        ("acmix_resnet26", {"layers": (1, 1, 1, 1)}),
        ("acmix_san10", {"layers": (1, 1, 1, 1, 1)}),
        ("acmix_pvt_t", {"depths": (1, 1, 1, 1)}),
        ("aa_resnet50", {"layers": (1, 1, 1, 1)}),
        ("container_light", {"depths": (1, 1, 1, 1)}),
    ],
)
def test_inductor_at_known_sizes(name: str, kwargs: dict[str, Any]) -> None:
    """The first stages of the large networks. inductor once failed for them, and once wrote past the end of a map."""
    network = create_model(name, **kwargs).eval()
    compiled = torch.compile(network, fullgraph=True)
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x), rtol=1e-4, atol=1e-5)


@shallow_and_full("acmix_pvt_pico")
def test_export(name: str, arguments: dict[str, Any]) -> None:
    network = create_model(name, **arguments).eval()
    exported = torch.export.export(network, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim("b")},))
    x = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(exported.module()(x), network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_onnx_with_a_dynamic_batch_only(name: str) -> None:
    """test_tracing.py has the same with dynamic sizes, which take other paths through the layers."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = create_model(name, **SHALLOW[name]).eval()
    batch = ({0: torch.export.Dim("b")},)
    program = torch.onnx.export(network, (torch.randn(2, 3, 32, 32),), dynamic_shapes=batch, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    x = torch.randn(3, 3, 32, 32)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), network(x), rtol=1e-4, atol=1e-5)
