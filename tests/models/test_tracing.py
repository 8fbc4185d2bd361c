"""Graphs recorded by torch.jit.trace, torch.fx, torch.export and ONNX compute the same as the network."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from support.networks import EVERY, NEIGHBOURS, SHALLOW, SMALL, perturbed
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import acmix_zoo
from acmix_zoo.layers import (
    ACmix2d,
    ContextAggregation,
    PairwiseSAM,
    PatchwiseSAM,
    ReducedACmix,
    RelativeAttention,
    WindowACmix,
)

# (B, H, W): the traced one, another batch, and maps that are larger, odd, oblong and smaller than the attention window.
TRACED, SIZES = (2, 32, 32), [(2, 32, 32), (1, 32, 32), (3, 64, 48), (2, 33, 47), (1, 8, 8)]


def swapped() -> nn.Module:
    """A third-party network that contains our layer."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    acmix_zoo.swap_conv3x3(model, "layer4.0*")  # one layer with stride 2 and one without
    return model.eval()


Models = dict[str, Callable[[], nn.Module]]


def models(arguments: dict[str, dict[str, Any]]) -> Models:
    """Return functions that build the small networks, plain and deployed, with these arguments, and a swapped one."""
    plain = {name: partial(perturbed, name, **arguments.get(name, {})) for name in (*SMALL, *NEIGHBOURS)}
    deployable = (*SMALL[:2], *NEIGHBOURS)
    deployed = {f"{name}, deployed": lambda name=name: plain[name]().deploy() for name in deployable}
    return {**plain, **deployed, "resnet18, swapped": swapped}


QUICK, FULL = models(SHALLOW), models({})
quick_models = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n.partition(",")[0] in NEIGHBOURS else n for n in QUICK]
)


def images(size: tuple[int, ...]) -> Tensor:
    return torch.randn(size[0], 3, *size[1:])


def error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the scale of the logits."""
    return float((actual - expected).detach().abs().max() / expected.detach().abs().max())


def traced(model: nn.Module, x: Tensor) -> torch.jit.ScriptModule:
    """Run `torch.jit.trace`, and raise an error instead of a warning if a size becomes a constant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("error", torch.jit.TracerWarning)
        return torch.jit.trace(model, x, check_trace=False)  # type: ignore[no-any-return]


@quick_models
def test_jit_trace_at_other_sizes(name: str) -> None:
    model = QUICK[name]()
    graph = traced(model, images(TRACED))
    for size in SIZES:
        x = images(size)
        assert error(graph(x), model(x)) < 1e-5, size


@pytest.mark.parametrize("kwargs", [{"stride": 2}, {"dilation": 2}, {"paths": "attention"}, {"paths": "convolution"}])
def test_jit_trace_of_the_layer(kwargs: dict[str, object]) -> None:
    layer = acmix_zoo.ACmix2d(4, 8, **kwargs)  # type: ignore[arg-type]
    graph = traced(layer, torch.randn(2, 4, 20, 24))
    for size in [(1, 3, 3), (3, 33, 17), (1, 1, 1)]:
        x = torch.randn(size[0], 4, *size[1:], requires_grad=True)
        expected, found = layer(x), graph(x)
        assert error(found, expected) < 1e-5
        gradients = (torch.autograd.grad(y.square().sum(), [x, layer.qkv.weight]) for y in (expected, found))
        for right, wrong in zip(*gradients, strict=True):
            assert error(wrong, right) < 1e-4


def test_tracing_does_not_affect_later_calls() -> None:
    """Sizes are tensors while a trace is recorded. Later calls of the same size must not reuse what they produced."""
    layer, x = acmix_zoo.ACmix2d(4, 8).eval(), torch.randn(1, 4, 9, 11)
    traced(layer, x)
    expected = copy.deepcopy(layer)(x)
    assert torch.equal(layer(x), expected)


def test_hooks_from_before_tracing_are_part_of_a_graph() -> None:
    network = nn.Sequential(acmix_zoo.ACmix2d(8, 8)).eval()
    network[0].register_forward_hook(lambda module, inputs, output: output * 2)
    x = torch.randn(1, 8, 9, 9)
    torch.testing.assert_close(torch.fx.symbolic_trace(network)(x), network(x))


@quick_models
def test_fx_with_default_arguments(name: str) -> None:
    model = QUICK[name]()
    graph = torch.fx.symbolic_trace(model)
    copies = [graph, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))]
    # fx walks through timm's batch norms with activation, which are in CBAM, and drops what evaluation does not use.
    dropped = {key for key in model.state_dict() if ".gate." in key and key.endswith("num_batches_tracked")}
    assert graph.state_dict().keys() | dropped == model.state_dict().keys()
    for size in SIZES[2:4]:
        x = images(size)
        expected = model(x)
        assert all(error(g(x), expected) < 1e-6 for g in copies)


@quick_models
def test_feature_extractor_of_torchvision(name: str) -> None:
    model = QUICK[name]()
    nodes = get_graph_node_names(model)[1]
    last = next(prefix for prefix in ("layers.", "layer", "block") if any(node.startswith(prefix) for node in nodes))
    wanted = last + ("1" if last != "block" else "2")  # a stage, by the beginning of its nodes' names
    maps = create_feature_extractor(model, [wanted, nodes[-1]])(images((2, 48, 40)))
    assert maps[wanted].dim() >= 3 and maps[nodes[-1]].shape == (2, 10)


LAYERS: dict[type[nn.Module], Callable[[], nn.Module]] = {
    ACmix2d: lambda: ACmix2d(8, 8),
    WindowACmix: lambda: WindowACmix(8, 2, (2, 2)),
    ReducedACmix: lambda: ReducedACmix(8, 2),
    PairwiseSAM: lambda: PairwiseSAM(32, 3),
    PatchwiseSAM: lambda: PatchwiseSAM(32, 3),
    RelativeAttention: lambda: RelativeAttention(8, 8, 8, heads=2, reach=3),
    ContextAggregation: lambda: ContextAggregation(8, 8, heads=2),
}


@pytest.mark.parametrize("model", [*EVERY, *LAYERS], ids=lambda m: m if isinstance(m, str) else m.__name__)
def test_script_is_rejected_with_advice(model: Any) -> None:
    built = acmix_zoo.create_model(model) if isinstance(model, str) else LAYERS[model]()
    with pytest.raises(TypeError, match=r"does not support torch\.jit\.script.*Use torch\.compile or torch\.export"):
        torch.jit.script(nn.Sequential(built))


# ---- every exporter with every network, plain and deployed, with dynamic batch, height and width


def exported(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    dynamic_sizes = (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)
    return torch.export.export(model, (x,), dynamic_shapes=dynamic_sizes).module()


def onnx_dynamo(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    dynamic_sizes = (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)
    program = torch.onnx.export(model, (x,), dynamic_shapes=dynamic_sizes, dynamo=True, verbose=False)
    assert program is not None
    return session(program.model_proto.SerializeToString())


def onnx_legacy(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    file = io.BytesIO()
    axes = {"x": {0: "batch", 2: "height", 3: "width"}}
    torch.onnx.export(model, (x,), file, dynamo=False, input_names=["x"], dynamic_axes=axes, opset_version=17)
    return session(file.getvalue())


def session(onnx: bytes) -> Callable[[Tensor], Tensor]:
    runtime = pytest.importorskip("onnxruntime").InferenceSession(onnx)
    name = runtime.get_inputs()[0].name
    return lambda x: torch.from_numpy(runtime.run(None, {name: x.numpy()})[0])


EXPORTERS = {"export": exported, "onnx dynamo": onnx_dynamo, "onnx legacy": onnx_legacy}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", FULL)
def test_exported_graph_at_other_sizes(name: str, exporter: str) -> None:
    if "onnx" in exporter:
        pytest.importorskip("onnxscript")
    # The dynamo-based exporter takes up to a minute for a full network, and starts from the graph of torch.export.
    # Deployed networks have fewer layers of the same kinds, so a part of each is enough.
    model = (QUICK if exporter == "onnx dynamo" or "deployed" in name else FULL)[name]()
    with torch.no_grad():
        # No map of the example may be a single row or column: torch.export makes sizes of 1 constant.
        scale = 2 if "swapped" in name else 1  # its last maps are 32 times smaller than the image
        sizes = [(b, scale * h, scale * w) for b, h, w in SIZES]
        graph = EXPORTERS[exporter](model, images(sizes[0]))
        # torch.export does not allow dynamic sizes of 1, and raises an error for images that are that small.
        for size in sizes[:-1] if exporter == "export" else sizes:
            x = images(size)
            assert error(graph(x), model(x)) < 1e-5, size
