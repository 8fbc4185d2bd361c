"""All derivatives of all layers: torch.func, forward mode, second derivatives; and saved tensors."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import acmix_zoo
from acmix_zoo import ACmix2d
from acmix_zoo.layers import PairwiseSAM, PatchwiseSAM
from acmix_zoo.layers.reduced_acmix import ReducedACmix
from acmix_zoo.layers.window_acmix import WindowACmix
from acmix_zoo.ops import plan
from acmix_zoo.ops.aggregation import aggregate


class OnTokens(nn.Module):
    """PVT's layer as a module of one tensor."""

    def __init__(self, layer: ReducedACmix, size: tuple[int, int]) -> None:
        super().__init__()
        self.layer, self.size = layer, size

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, self.size)


# Each layer with the shape of its input. Where the name says "cut", the batch is processed image by image.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet, global": (lambda: ACmix2d(3, 8, heads=2), (2, 3, 5, 4)),
    "resnet, tiles": (lambda: ACmix2d(3, 4, heads=2, stride=3, kernel_att=3), (1, 3, 18, 17)),
    "resnet, cut": (lambda: ACmix2d(3, 8, heads=2, stride=2), (2, 3, 5, 4)),
    "resnet, attention alone": (lambda: ACmix2d(3, 8, heads=8, dilation=2, paths="attention"), (2, 3, 5, 4)),
    "window": (lambda: WindowACmix(8, 2, (2, 2), (1, 1)), (2, 5, 4, 8)),
    "pairwise": (lambda: PairwiseSAM(32, 3, 4), (2, 32, 4, 5)),
    "patchwise": (lambda: PatchwiseSAM(32, 3, 4, paths="both"), (2, 32, 4, 5)),
    "reduced": (lambda: OnTokens(ReducedACmix(8, 2, 2), (4, 5)), (2, 20, 8)),
}


@pytest.fixture(params=LAYERS)
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, Tensor]:
    """A layer in float64, away from its start, and an input."""
    if "cut" in request.param:
        monkeypatch.setattr(plan, "_CHUNK_BYTES", 1)
    build, shape = LAYERS[request.param]
    layer = build().double().eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer, torch.randn(shape, dtype=torch.float64)


def assert_close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9)


def loss(layer: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    out = functional_call(layer, parameters, (x,))
    return (out * torch.arange(out.numel(), dtype=out.dtype).sin().view(out.shape)).square().sum()


def test_gradients_by_torch_func(case: tuple[nn.Module, Tensor]) -> None:
    """Gradients for one input, and per-sample gradients."""
    layer, x = case
    parameters = dict(layer.named_parameters())
    given = x.clone().requires_grad_()
    expected = torch.autograd.grad(loss(layer, parameters, given), [given, *parameters.values()])

    def gradients(parameters: dict[str, Tensor], x: Tensor) -> tuple[Tensor, ...]:
        of_parameters, of_x = grad(lambda p, x: loss(layer, p, x), (0, 1))(parameters, x)
        return of_x, *of_parameters.values()

    assert_close(gradients(parameters, x), expected)
    of_samples = vmap(gradients, (None, 0))(parameters, torch.stack([x + 1, x]))
    assert_close(tuple(t[1] for t in of_samples), expected)


def test_vmap(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    batch = torch.stack([x, x.flip(1), x + 1])
    assert_close(vmap(layer)(batch), torch.stack([layer(x) for x in batch]))
    assert_close(vmap(layer, 1, 1)(batch.transpose(0, 1)), torch.stack([layer(x) for x in batch], 1))


def test_forward_mode(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    tangent = torch.randn_like(x)
    out, moved = jvp(layer, (x,), (tangent,))
    assert_close(out, layer(x))
    with forward_ad.dual_level():
        assert_close(forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent))).tangent, moved)
    cotangent = torch.randn_like(out)
    (back,) = vjp(layer, x)[1](cotangent)
    assert_close((moved * cotangent).sum(), (back * tangent).sum())


def test_second_derivatives(case: tuple[nn.Module, Tensor]) -> None:
    """Compare with numerical derivatives, and the gradients of a gradient penalty with those by torch.func."""
    layer, x = case
    parameters = dict(layer.named_parameters())
    x.requires_grad_()
    assert torch.autograd.gradgradcheck(layer, (x,), fast_mode=True)

    def penalty(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return grad(lambda x: loss(layer, parameters, x))(x).square().sum()

    (first,) = torch.autograd.grad(loss(layer, parameters, x), x, create_graph=True)
    tensors = [x, *parameters.values()]
    actual = torch.autograd.grad(first.square().sum(), tensors, materialize_grads=True)
    of_parameters, of_x = grad(penalty, (0, 1))(parameters, x.detach())
    assert_close(actual, (of_x, *of_parameters.values()))


def test_many_gradients_at_once(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case

    def few(x: Tensor) -> Tensor:
        return layer(x).flatten()[:7]

    expected = jacobian(few, x)
    assert_close(jacobian(few, x, vectorize=True), expected)
    assert_close(jacobian(few, x, vectorize=True, strategy="forward-mode"), expected)
    assert_close(jacrev(few)(x), expected)
    if x.numel() < 200:
        assert_close(jacfwd(few)(x), expected)


def test_layers_outside_a_transform(case: tuple[nn.Module, Tensor]) -> None:
    """A frozen backbone before a transformed head keeps its fast code and its own gradients."""
    layer, x = case
    x.requires_grad_()
    expected = layer(x).sum()
    factors = torch.randn(3, dtype=torch.float64)
    found = vmap(grad(lambda a: layer(x).sum() * a))(factors)
    assert_close(found, expected.expand(3))
    assert_close(torch.autograd.grad(found.sum(), x), torch.autograd.grad(3 * expected, x))


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        *(("resnet, global", t) for t in ("grad", "vmap", "vmap of grad", "jvp")),
        # Not jvp of patchwise SAN: now and then dynamo gives up on it, and PyTorch 2.14 then fails in `make_dual`.
        ("patchwise", "grad"),
    ],
)
def test_transforms_in_a_compiled_function(name: str, transform: str) -> None:
    build, shape = LAYERS[name]
    layer, x = build().double().eval(), torch.randn(shape, dtype=torch.float64)
    parameters = dict(layer.named_parameters())
    functions: dict[str, Callable[[], Any]] = {
        "grad": lambda: grad(lambda p: loss(layer, p, x))(parameters),
        "vmap": lambda: vmap(layer)(torch.stack([x, x + 1])),
        "vmap of grad": lambda: vmap(grad(lambda x: loss(layer, parameters, x)))(torch.stack([x, x + 1])),
        "jvp": lambda: jvp(lambda x: layer(x), (x,), (x,)),
    }
    torch._dynamo.reset()
    assert_close(torch.compile(functions[transform], backend="eager")(), functions[transform]())


@pytest.mark.parametrize("name", ["resnet, global", "patchwise"])
def test_transforms_of_a_compiled_layer(name: str) -> None:
    """A layer is compiled for training, then transformed, then trained further."""
    build, shape = LAYERS[name]
    layer, x = build().double().eval(), torch.randn(2, *shape, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager")
    assert_close(compiled(x[0]), layer(x[0]))
    assert_close(vmap(compiled)(x), vmap(layer)(x))
    assert_close(jvp(compiled, (x[0],), (x[1],)), jvp(layer, (x[0],), (x[1],)))
    assert_close(compiled(x[1]), layer(x[1]))


@pytest.mark.parametrize("name", ["resnet, global", "patchwise"])
def test_second_derivatives_of_the_operators_in_compiled_graphs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, shape = LAYERS[name]
    layer, x = build().double().eval(), torch.randn(shape, dtype=torch.float64, requires_grad=True)
    monkeypatch.setattr("acmix_zoo.layers.san.aggregate", torch.ops.acmix_zoo.aggregate)
    monkeypatch.setattr(
        "acmix_zoo.layers.acmix2d.acmix",
        lambda x, weight, bias, mixing, geometry: torch.ops.acmix_zoo.acmix(x, weight, bias, *mixing, *geometry, False)[
            0
        ],
    )
    assert torch.autograd.gradgradcheck(layer, (x,), fast_mode=True)


NETWORKS = ["acmix_resnet_pico", "acmix_swin_pico", "acmix_san_pico", "acmix_pvt_pico"]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    """Per-sample gradients, a directional derivative and a gradient penalty of complete networks."""
    network = acmix_zoo.create_model(name, num_classes=3).double().eval()
    x = torch.randn(2, *network.default_cfg["input_size"], dtype=torch.float64)
    parameters = dict(network.named_parameters())
    state = {**parameters, **dict(network.named_buffers())}

    def score(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(network, {**state, **parameters}, (image.unsqueeze(0),)).square().sum()

    of_samples = vmap(grad(score), (None, 0))(parameters, x)
    given = x.clone().requires_grad_()
    one_by_one = [torch.autograd.grad(network(image.unsqueeze(0)).square().sum(), parameters.values()) for image in x]
    assert_close(tuple(of_samples.values()), tuple(torch.stack(grads) for grads in zip(*one_by_one, strict=True)))
    total = network(given).square().sum()
    (first,) = torch.autograd.grad(total, given, create_graph=True)
    _, moved = jvp(lambda x: network(x).square().sum(), (x,), (x,))
    assert_close(moved, (first * x).sum())
    first.square().sum().backward()
    step = 1e-5 * torch.randn_like(x)
    ends = [torch.autograd.grad(network(t).square().sum(), t)[0].square().sum() for t in (given + step, given - step)]
    torch.testing.assert_close((given.grad * step).sum(), (ends[0] - ends[1]) / 2, rtol=1e-4, atol=1e-12)


# ---- what waits for the gradient


class Living(TorchDispatchMode):
    """Counts the bytes of all storages that operators have allocated and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [t.untyped_storage() for t in tree_leaves(args) if isinstance(t, Tensor)]
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and all(t.untyped_storage() is not storage for storage in given):  # no view
                self.storages[t.untyped_storage()] = t.untyped_storage().nbytes()
        return out

    def bytes(self) -> int:
        return sum(self.storages.values())


@pytest.mark.parametrize("size", [8, 20])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_keeps_the_input_alone(size: int, reentrant: bool, python_backend: None) -> None:
    """Between the passes, only the output of the layer is alive, as seen by hooks and by storages."""
    layer, x = ACmix2d(16, 16), torch.randn(2, 16, size, size, requires_grad=True)
    layer(x)  # builds what is remembered for the size
    gc.collect()
    with Living() as plain:
        out = layer(x)
    assert plain.bytes() >= 5 * out.untyped_storage().nbytes()
    expected = torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])
    del out
    gc.collect()
    assert plain.bytes() <= 4096, "a graph outlives its backward pass"
    with Living() as mode:
        out = checkpoint(layer, x, use_reentrant=reentrant)
    assert mode.bytes() <= out.untyped_storage().nbytes() + 4096
    grads = [x, *layer.parameters()]
    out.square().sum().backward()
    assert_close([t.grad for t in grads], list(expected))


def test_hooks_see_all_that_is_kept() -> None:
    """If hooks move all saved tensors away, nothing else is kept alive."""
    layer, x = ACmix2d(16, 16), torch.randn(2, 16, 20, 20, requires_grad=True)
    expected = torch.autograd.grad(layer(x).square().sum(), x)
    gc.collect()
    with (
        Living() as mode,
        torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().numpy().copy(), torch.from_numpy),
    ):
        out = layer(x)
    assert mode.bytes() <= out.untyped_storage().nbytes() + 4096
    assert_close(torch.autograd.grad(out.square().sum(), x), expected)


def test_anomaly_mode() -> None:
    """A NaN is traced to the operator that produced it inside the layer."""
    layer, x = ACmix2d(4, 8), torch.randn(1, 4, 6, 6, requires_grad=True)
    with torch.autograd.set_detect_anomaly(True):
        layer(x).sum().backward()
        with torch.no_grad():
            layer.qkv.weight.fill_(torch.inf)
        with (
            pytest.warns(UserWarning, match="Error detected"),
            pytest.raises(RuntimeError, match="returned nan values"),
        ):
            layer(x).sum().backward()


# ---- empty batches


@pytest.mark.parametrize(
    ("name", "compiled"),
    [
        *((n, False) for n in LAYERS),
        *((n, True) for n in ("resnet, cut", "window", "pairwise", "patchwise", "reduced")),
    ],
)
def test_empty_batch(name: str, compiled: bool) -> None:
    build, shape = LAYERS[name]
    layer, x = build(), torch.randn(0, *shape[1:], requires_grad=True)
    expected = layer.eval()(torch.randn(shape)).shape[1:]
    torch._dynamo.reset()
    out = (torch.compile(layer, backend="aot_eager") if compiled else layer)(x)
    assert out.shape == (0, *expected)
    out.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


def test_aggregate_of_an_empty_batch() -> None:
    value, weight = torch.randn(0, 8, 5, 6, requires_grad=True), torch.randn(0, 9 * 4, 5, 6, requires_grad=True)
    aggregate(value, weight, 3).sum().backward()
    assert value.grad.shape == value.shape and weight.grad.shape == weight.shape
