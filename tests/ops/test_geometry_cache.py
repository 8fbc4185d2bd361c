"""Cached tensors never become wrong and never exceed their memory budget.

`ops/geometry_cache.py` caches masks and indices between calls. Deployed layers only have buffers, which are saved.
Here, a network that has run is copied, converted, given other weights or run in other modes. It must then give the same
results as a new one.
"""

import copy
import io
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import acmix_zoo
from acmix_zoo.layers import PairwiseSAM
from acmix_zoo.layers.deploy import DeployedACmix2d
from acmix_zoo.ops import geometry_cache
from acmix_zoo.ops.geometry_cache import cached
from acmix_zoo.ops.position_encoding import coordinates


def deployed() -> nn.Module:
    norm = nn.BatchNorm2d(8).eval()
    nn.init.normal_(norm.weight)
    return DeployedACmix2d(acmix_zoo.ACmix2d(8, 8), norm)


def deployed_swin() -> nn.Module:
    model = acmix_zoo.create_model("acmix_swin_pico", in_chans=8).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    return model.deploy()


def pairwise() -> nn.Module:
    return PairwiseSAM(32, 3, share=2).eval()


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "ACmix2d": lambda: acmix_zoo.ACmix2d(8, 8).eval(),
    "DeployedACmix2d": deployed,
    "Swin, deployed": deployed_swin,
    "PairwiseSAM": pairwise,
}


def example(name: str, side: int = 20) -> Tensor:
    """Return a map with more than 256 positions, for which `ACmix2d` uses tiles."""
    return torch.randn(2, 32 if name == "PairwiseSAM" else 8, side, side + 1)


@pytest.fixture(autouse=True)
def _empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry_cache, "_tensors", type(geometry_cache._tensors)())
    monkeypatch.setattr(geometry_cache, "_held_bytes", 0)


def other_weights(name: str) -> dict[str, Tensor]:
    torch.manual_seed(7)
    return {k: v.clone() for k, v in LAYERS[name]().state_dict().items()}


def pickled(layer: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # type: ignore[no-any-return]


def loaded(layer: nn.Module, name: str, assign: bool) -> nn.Module:
    layer.load_state_dict(other_weights(name), assign=assign)
    return layer


CHANGES: dict[str, Callable[[nn.Module, str], nn.Module]] = {
    "deepcopy": lambda layer, name: copy.deepcopy(layer),
    "pickle": lambda layer, name: pickled(layer),
    "half and back": lambda layer, name: layer.half().float(),
    "double": lambda layer, name: layer.double(),
    "load_state_dict": lambda layer, name: loaded(layer, name, assign=False),
    "load_state_dict, assign": lambda layer, name: loaded(layer, name, assign=True),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", LAYERS)
def test_changed_layer_gives_the_results_of_a_new_one(name: str, change: str) -> None:
    layer, x = LAYERS[name](), example(name)
    with torch.no_grad():
        layer(x)
        layer = CHANGES[change](layer, name)
        x = x.to(next(iter(layer.state_dict().values())).dtype)
        found = layer(x)
        fresh = LAYERS[name]().to(x.dtype)
        fresh.load_state_dict(layer.state_dict())
        geometry_cache._tensors.clear()
        assert torch.equal(found, fresh(x))


def test_deployed_layer_has_gradients_after_inference_mode() -> None:
    layer, x = deployed(), example("DeployedACmix2d")
    with torch.inference_mode():
        layer(x)
    x.requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["ACmix2d", "PairwiseSAM"])
def test_layer_built_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        layer = LAYERS[name]()
        layer(example(name))
    assert not geometry_cache._tensors
    layer.load_state_dict(other_weights(name), assign=True)
    fresh, x = LAYERS[name](), example(name)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), fresh(x))


def run_fake(layer: nn.Module, x: Tensor) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        layer(mode.from_tensor(x))


def run_inference(layer: nn.Module, x: Tensor) -> None:
    with torch.inference_mode():
        layer(x)


MODES: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "inference_mode": run_inference,
    "FakeTensorMode": run_fake,
    "make_fx, fake": lambda layer, x: make_fx(layer, tracing_mode="fake", _allow_non_fake_inputs=True)(x),
    "export": lambda layer, x: torch.export.export(layer, (x,)),
    "compile": lambda layer, x: torch.compile(layer, backend="aot_eager")(x),
    "jit.trace": lambda layer, x: torch.jit.trace(layer, x),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(name, mode, marks=[] if name == "ACmix2d" or mode == "inference_mode" else pytest.mark.slow)
        for name in LAYERS
        if "Swin" not in name  # it caches nothing
        for mode in MODES
    ],
)
def test_ordinary_call_after_a_call_in_another_mode(name: str, mode: str) -> None:
    layer, x = LAYERS[name](), example(name)
    with torch.no_grad():
        MODES[mode](layer, x)
    assert all(type(t) is Tensor and not t.is_inference() for t in geometry_cache._tensors.values())
    x.requires_grad_()
    out = layer(x)
    out.sum().backward()
    found = (out.detach(), x.grad)
    geometry_cache._tensors.clear()
    x.grad = None
    out = layer(x)
    out.sum().backward()
    for actual, expected in zip(found, (out.detach(), x.grad), strict=True):
        torch.testing.assert_close(actual, expected)


def test_call_in_fake_mode_after_an_ordinary_one() -> None:
    layer, x = LAYERS["ACmix2d"](), example("ACmix2d")
    with torch.no_grad():
        layer(x)
        run_fake(layer, x)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_transforms_leave_ordinary_tensors_in_the_cache(transform: Any) -> None:
    def function(x: Tensor) -> Tensor:
        return (x * cached(coordinates, 3, 4, dtype=x.dtype, device=x.device)).sum()

    x = torch.randn(3, 4, 2) if transform is torch.func.grad else torch.randn(5, 3, 4, 2)
    transform(function)(x)
    (tensor,) = geometry_cache._tensors.values()
    assert not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    assert torch.equal(tensor, coordinates(3, 4, dtype=torch.float32, device=torch.device("cpu")))


@pytest.mark.parametrize("grad", [True, False])
def test_two_threads_at_once(grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        geometry_cache, "_BUDGET_BYTES", 1 << 17
    )  # so that each thread evicts what the other has cached
    layer = deployed()
    inputs = [example("DeployedACmix2d", side) for side in (17, 18)]
    with torch.no_grad():
        outputs = [layer(x) for x in inputs]
    wrong_sizes = []

    def work(x: Tensor, expected: Tensor) -> None:
        with nullcontext() if grad else torch.no_grad():
            for _ in range(20):
                if not torch.allclose(layer(x).detach(), expected, atol=1e-6):
                    wrong_sizes.append(x.shape)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(inputs, outputs, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong_sizes


def test_sweep_over_image_sizes_stays_within_the_budget(monkeypatch: pytest.MonkeyPatch, python_backend: None) -> None:
    monkeypatch.setattr(geometry_cache, "_BUDGET_BYTES", 1 << 20)
    layer = acmix_zoo.ACmix2d(4, 4)
    built = 0
    for side in range(17, 49, 6):
        layer(torch.randn(2, 4, side, side)).sum().backward()
        held = sum(t.untyped_storage().nbytes() for t in geometry_cache._tensors.values())
        assert held == geometry_cache._held_bytes <= 1 << 20
        built = max(built, held)
    assert built > 1 << 18  # the sweep is large enough to exceed the budget otherwise
    newest = list(geometry_cache._tensors)[-1]
    layer(torch.randn(2, 4, side, side)).sum().backward()
    assert newest in geometry_cache._tensors  # the oldest entries are evicted, not those in use
