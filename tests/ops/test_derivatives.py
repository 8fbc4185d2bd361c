"""Derivatives of all layers: `torch.func`, forward-mode AD, second derivatives, and those of empty batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from support.gradients import OneInput, randomize
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vjp, vmap

import acmix_zoo
from acmix_zoo import ACmix2d
from acmix_zoo.layers import PairwiseSAM, PatchwiseSAM
from acmix_zoo.layers.reduced_acmix import ReducedACmix
from acmix_zoo.layers.window_acmix import WindowACmix
from acmix_zoo.ops import dispatch
from acmix_zoo.ops.aggregation import aggregate

# Each layer with the shape of its input. If the name contains "chunks", the batch is processed image by image.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet, global": (lambda: ACmix2d(3, 8, heads=2), (2, 3, 5, 4)),
    "resnet, tiles": (lambda: ACmix2d(3, 4, heads=2, stride=3, kernel_att=3), (1, 3, 18, 17)),
    "resnet, chunks": (lambda: ACmix2d(3, 8, heads=2, stride=2), (2, 3, 5, 4)),
    "resnet, attention only": (lambda: ACmix2d(3, 8, heads=8, dilation=2, paths="attention"), (2, 3, 5, 4)),
    "window": (lambda: WindowACmix(8, 2, (2, 2), (1, 1)), (2, 5, 4, 8)),
    "pairwise": (lambda: PairwiseSAM(32, 3, 4), (2, 32, 4, 5)),
    "patchwise": (lambda: PatchwiseSAM(32, 3, 4, paths="both"), (2, 32, 4, 5)),
    "reduced": (lambda: OneInput(ReducedACmix(8, 2, 2), (4, 5)), (2, 20, 8)),
}
Case = tuple[nn.Module, Tensor]


def build(name: str) -> Case:
    """Return a random layer in float64 and eval mode, and an input."""
    build_layer, shape = LAYERS[name]
    return randomize(build_layer().double().eval()), torch.randn(shape, dtype=torch.float64)


@pytest.fixture(params=LAYERS)
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Case:
    if "chunks" in request.param:
        monkeypatch.setattr(dispatch, "_CHUNK_BYTES", 1)
    return build(request.param)


def assert_close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9)


def loss(layer: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    out = functional_call(layer, parameters, (x,))
    return (out * torch.arange(out.numel(), dtype=out.dtype).sin().view(out.shape)).square().sum()


class TestTransforms:
    def test_gradients_of_one_input_and_per_sample(self, case: Case) -> None:
        layer, x = case
        parameters = dict(layer.named_parameters())
        leaf = x.clone().requires_grad_()
        expected = torch.autograd.grad(loss(layer, parameters, leaf), [leaf, *parameters.values()])

        def gradients(parameters: dict[str, Tensor], x: Tensor) -> tuple[Tensor, ...]:
            d_parameters, d_x = grad(lambda p, x: loss(layer, p, x), (0, 1))(parameters, x)
            return d_x, *d_parameters.values()

        assert_close(gradients(parameters, x), expected)
        per_sample = vmap(gradients, (None, 0))(parameters, torch.stack([x + 1, x]))
        assert_close(tuple(t[1] for t in per_sample), expected)

    def test_vmap(self, case: Case) -> None:
        layer, x = case
        batch = torch.stack([x, x.flip(1), x + 1])
        assert_close(vmap(layer)(batch), torch.stack([layer(x) for x in batch]))
        assert_close(vmap(layer, 1, 1)(batch.transpose(0, 1)), torch.stack([layer(x) for x in batch], 1))

    def test_forward_mode(self, case: Case) -> None:
        layer, x = case
        tangent = torch.randn_like(x)
        out, out_tangent = jvp(layer, (x,), (tangent,))
        assert_close(out, layer(x))
        with forward_ad.dual_level():
            dual = layer(forward_ad.make_dual(x, tangent))
            assert_close(forward_ad.unpack_dual(dual).tangent, out_tangent)
        cotangent = torch.randn_like(out)
        (x_cotangent,) = vjp(layer, x)[1](cotangent)
        assert_close((out_tangent * cotangent).sum(), (x_cotangent * tangent).sum())

    def test_second_derivatives(self, case: Case) -> None:
        """They agree with numerical ones, and the gradients of a gradient penalty with those of `torch.func`."""
        layer, x = case
        parameters = dict(layer.named_parameters())
        x.requires_grad_()
        assert torch.autograd.gradgradcheck(layer, (x,), fast_mode=True)

        def penalty(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
            return grad(lambda x: loss(layer, parameters, x))(x).square().sum()

        (first,) = torch.autograd.grad(loss(layer, parameters, x), x, create_graph=True)
        tensors = [x, *parameters.values()]
        actual = torch.autograd.grad(first.square().sum(), tensors, materialize_grads=True)
        d_parameters, d_x = grad(penalty, (0, 1))(parameters, x.detach())
        assert_close(actual, (d_x, *d_parameters.values()))

    def test_many_gradients_at_once(self, case: Case) -> None:
        layer, x = case

        def few_outputs(x: Tensor) -> Tensor:
            return layer(x).flatten()[:3]

        expected = jacobian(few_outputs, x)
        assert_close(jacobian(few_outputs, x, vectorize=True), expected)
        assert_close(jacobian(few_outputs, x, vectorize=True, strategy="forward-mode"), expected)
        assert_close(jacrev(few_outputs)(x), expected)
        if x.numel() < 200:
            assert_close(jacfwd(few_outputs)(x), expected)

    def test_layer_outside_a_transform(self, case: Case) -> None:
        """A frozen backbone before a transformed head keeps its fast code and its own gradients."""
        layer, x = case
        x.requires_grad_()
        expected = layer(x).sum()
        factors = torch.randn(3, dtype=torch.float64)
        found = vmap(grad(lambda a: layer(x).sum() * a))(factors)
        assert_close(found, expected.expand(3))
        assert_close(torch.autograd.grad(found.sum(), x), torch.autograd.grad(3 * expected, x))


def slow_except(quick: set[str], names: Any) -> list[Any]:
    """Return the parameters, with all but some of them marked as slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


class TestCompiled:
    @pytest.mark.parametrize("transform", slow_except({"vmap"}, ["grad", "vmap", "vmap of grad", "jvp"]))
    def test_transforms_in_a_compiled_function(self, transform: str) -> None:
        self.check_compiled_transform("resnet, global", transform)

    @pytest.mark.slow
    def test_gradient_of_sums_in_a_compiled_function(self) -> None:
        """Its jvp is not tested, because of its batch norm.

        PyTorch 2.14 cannot compile a batch norm inside a jvp and runs it eagerly. This fails in `make_dual` if the
        process has compiled a `grad` before, also without our code:

            norm, x = nn.BatchNorm2d(3).eval(), torch.randn(2, 3, 4, 4)
            torch.compile(lambda: grad(lambda x: x.square().sum())(x), backend="eager")()
            torch.compile(lambda: jvp(norm, (x,), (x,)), backend="eager")()
        """
        self.check_compiled_transform("patchwise", "grad")

    def check_compiled_transform(self, name: str, transform: str) -> None:
        layer, x = build(name)
        parameters = dict(layer.named_parameters())
        functions: dict[str, Callable[[], Any]] = {
            "grad": lambda: grad(lambda p: loss(layer, p, x))(parameters),
            "vmap": lambda: vmap(layer)(torch.stack([x, x + 1])),
            "vmap of grad": lambda: vmap(grad(lambda x: loss(layer, parameters, x)))(torch.stack([x, x + 1])),
            "jvp": lambda: jvp(lambda x: layer(x), (x,), (x,)),
        }
        torch._dynamo.reset()
        assert_close(torch.compile(functions[transform], backend="eager")(), functions[transform]())

    @pytest.mark.parametrize("name", slow_except({"resnet, global"}, ["resnet, global", "patchwise"]))
    def test_transforms_of_a_compiled_layer(self, name: str) -> None:
        """A layer is compiled for training, then transformed, then trained further."""
        layer, x = build(name)
        other = torch.randn_like(x)
        torch._dynamo.reset()
        compiled = torch.compile(layer, backend="aot_eager")
        assert_close(compiled(x), layer(x))
        assert_close(vmap(compiled)(torch.stack([x, other])), vmap(layer)(torch.stack([x, other])))
        assert_close(jvp(compiled, (x,), (other,)), jvp(layer, (x,), (other,)))
        assert_close(compiled(other), layer(other))

    @pytest.mark.parametrize("name", ["resnet, global", "patchwise"])
    def test_second_derivatives_of_the_operators(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        layer, x = build(name)
        operators = torch.ops.acmix_zoo
        monkeypatch.setattr("acmix_zoo.layers.san_attention.aggregate", operators.aggregate)
        monkeypatch.setattr(
            "acmix_zoo.layers.acmix2d.acmix",
            lambda x, weight, bias, paths, geometry: operators.acmix(x, weight, bias, *paths, *geometry, False)[0],
        )
        assert torch.autograd.gradgradcheck(layer, (x.requires_grad_(),), fast_mode=True)


NETWORKS = ["acmix_resnet_pico", "acmix_swin_pico", "acmix_san_pico", "acmix_pvt_pico"]


@pytest.mark.parametrize("name", slow_except({"acmix_resnet_pico", "acmix_swin_pico"}, NETWORKS))
def test_networks(name: str) -> None:
    """Per-sample gradients, a directional derivative and a gradient penalty of complete networks."""
    network = acmix_zoo.create_model(name, num_classes=3).double().eval()
    x = torch.randn(2, *network.default_cfg["input_size"], dtype=torch.float64)
    parameters = dict(network.named_parameters())
    state = {**parameters, **dict(network.named_buffers())}

    def score(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(network, {**state, **parameters}, (image.unsqueeze(0),)).square().sum()

    per_sample = vmap(grad(score), (None, 0))(parameters, x)
    one_by_one = [torch.autograd.grad(network(image.unsqueeze(0)).square().sum(), parameters.values()) for image in x]
    assert_close(tuple(per_sample.values()), tuple(torch.stack(grads) for grads in zip(*one_by_one, strict=True)))
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(network(leaf).square().sum(), leaf, create_graph=True)
    _, tangent = jvp(lambda x: network(x).square().sum(), (x,), (x,))
    assert_close(tangent, (first * x).sum())
    first.square().sum().backward()
    step = 1e-5 * torch.randn_like(x)
    penalties = [
        torch.autograd.grad(network(t).square().sum(), t)[0].square().sum() for t in (leaf + step, leaf - step)
    ]
    expected = (penalties[0] - penalties[1]) / 2
    torch.testing.assert_close((leaf.grad * step).sum(), expected, rtol=1e-4, atol=1e-12)


def test_anomaly_mode_finds_the_operator_inside_the_layer() -> None:
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


class TestEmptyBatch:
    @pytest.mark.parametrize("name", LAYERS)
    def test_layers(self, name: str) -> None:
        self.check(name, lambda layer: layer)

    @pytest.mark.parametrize(
        "name",
        slow_except({"resnet, chunks"}, ["resnet, chunks", "window", "pairwise", "patchwise", "reduced"]),
    )
    def test_compiled_layers(self, name: str) -> None:
        torch._dynamo.reset()
        self.check(name, lambda layer: torch.compile(layer, backend="aot_eager"))

    def check(self, name: str, prepare: Callable[[nn.Module], Callable[[Tensor], Tensor]]) -> None:
        build_layer, shape = LAYERS[name]
        layer, x = build_layer().eval(), torch.randn(0, *shape[1:], requires_grad=True)
        expected = layer(torch.randn(shape)).shape[1:]
        out = prepare(layer)(x)
        assert out.shape == (0, *expected)
        out.sum().backward()
        assert x.grad is not None and x.grad.shape == x.shape
        assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())

    def test_aggregation(self) -> None:
        value, weight = torch.randn(0, 8, 5, 6, requires_grad=True), torch.randn(0, 9 * 4, 5, 6, requires_grad=True)
        aggregate(value, weight, 3).sum().backward()
        assert value.grad.shape == value.shape and weight.grad.shape == weight.shape
