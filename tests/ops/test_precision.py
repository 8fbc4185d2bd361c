"""The precision of the layers: which part computes in which dtype, and how large the error of the results is."""

from __future__ import annotations

import copy
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from support.gradients import OneInput
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from acmix_zoo import ACmix2d
from acmix_zoo.layers import PairwiseSAM, PatchwiseSAM
from acmix_zoo.layers.reduced_acmix import ReducedACmix
from acmix_zoo.layers.window_acmix import WindowACmix
from acmix_zoo.ops import dispatch
from acmix_zoo.ops.aggregation import aggregate
from acmix_zoo.ops.position_encoding import position_encoding
from acmix_zoo.ops.projection import project
from acmix_zoo.ops.shift_conv import conv_factors

# Number of random layers over which errors are averaged.
SAMPLES = 4

# Each layer with the shape of its input.
LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "resnet, tiles": (lambda: ACmix2d(16, 16), (2, 16, 18, 17)),
    "resnet, chunks": (lambda: ACmix2d(8, 8), (48, 8, 5, 4)),
    "resnet, global": (lambda: ACmix2d(16, 16, heads=8, stride=2), (3, 16, 9, 8)),
    "resnet, heads of 5": (lambda: ACmix2d(8, 20), (2, 8, 17, 18)),  # padded for the attention on a GPU
    "window": (lambda: WindowACmix(16, 2, (4, 4), (2, 2)), (2, 8, 8, 16)),
    "pairwise": (lambda: PairwiseSAM(32, 5, 4), (2, 32, 7, 8)),
    "patchwise": (lambda: PatchwiseSAM(32, 5, 4, paths="both"), (2, 32, 7, 8)),
    "reduced": (lambda: OneInput(ReducedACmix(16, 2, 2), (8, 8)), (2, 64, 16)),
}
# The dtype of the parameters and autocast's dtype, if any.
DTYPES = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "float16": (torch.float16, None),
    "autocast bfloat16": (torch.float32, torch.bfloat16),
    "autocast float16": (torch.float32, torch.float16),
}
# The dtypes that each family computes in: "lower" is autocast's dtype, or without autocast that of the parameters.
# The kernels of softmax, norm and attention compute in float32 internally; this is the dtype of their inputs.
# "kernels" are the products that compose the convolution's weights.
COMMON = {"kernels": "parameters", "linear": "lower", "convolution": "lower"}
SAN = {"convolution": "lower", "norm": "lower", "sums": "float32"}
TABLE = {
    "resnet": {**COMMON, "positions": "float32", "attention": "lower"},
    "window": {**COMMON, "softmax": "lower"},
    "reduced": {**COMMON, "norm": "lower", "attention": "lower"},
    "pairwise": {**SAN, "positions": "float32", "softmax": "lower"},
    "patchwise": SAN,
}
OPERATORS = {
    "addmm": "linear",
    "convolution": "convolution",
    "_softmax": "softmax",
    "_scaled_dot_product_flash_attention_for_cpu": "attention",
    "addcmul_": "sums",
    "native_batch_norm": "norm",
    "native_layer_norm": "norm",
}


class RecordDtypes(TorchDispatchMode):
    """Collects the dtype of the first input of each kind of operator."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kind := OPERATORS.get(func.overloadpacket.__name__):
            self.seen.setdefault(kind, set()).add(args[0].dtype)
        return func(*args, **(kwargs or {}))


def autocast(dtype: torch.dtype | None, device: str = "cpu") -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device, dtype)


def record_dtype(seen: dict[str, set[torch.dtype]], kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with a side effect: it adds the dtype of its result to `seen[kind]`."""

    def call(*args: Any, **kwargs: Any) -> Any:
        out = function(*args, **kwargs)
        seen.setdefault(kind, set()).add((out[1] if isinstance(out, tuple) else out).dtype)
        return out

    return call


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_every_part_computes_in_its_dtype(
    name: str, dtypes: str, monkeypatch: pytest.MonkeyPatch, python_backend: None
) -> None:
    build, shape = LAYERS[name]
    dtype, lower = DTYPES[dtypes]
    layer = build().to(dtype)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    with RecordDtypes() as mode:
        for module in ("acmix2d", "san_attention"):
            monkeypatch.setattr(
                f"acmix_zoo.layers.{module}.position_encoding", record_dtype(mode.seen, "positions", position_encoding)
            )
        for module in ("layers.convolution_path", "ops.shift_conv"):
            monkeypatch.setattr(f"acmix_zoo.{module}.conv_factors", record_dtype(mode.seen, "kernels", conv_factors))
        monkeypatch.setattr("acmix_zoo.ops.acmix.project", record_dtype(mode.seen, "linear", project))
        with autocast(lower):
            out = layer(x)
    names = {"lower": lower or dtype, "parameters": dtype, "float32": torch.float32}
    assert mode.seen == {kind: {names[word]} for kind, word in TABLE[name.split(",")[0]].items()}
    assert out.dtype == (lower or dtype)
    out.float().square().sum().backward()
    assert all(t.grad is None or t.grad.dtype == dtype for t in (x, *layer.parameters()))


class Rounded(torch.autograd.Function):
    """Rounds a value and its gradient to a dtype, but keeps both in float64."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = dtype
        return x.to(dtype).double()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype).double(), None


def rounded_copy(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a float64 copy whose weights and intermediate results between modules are rounded to `dtype`."""
    copied = copy.deepcopy(layer).to(dtype).double()
    for module in copied.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.BatchNorm2d | nn.LayerNorm):
            module.register_forward_hook(lambda module, args, out: Rounded.apply(out, dtype))
    return copied


def named_gradients(layer: nn.Module, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """Return the output, the gradient of the input and that of every parameter, by name, in float64 on the CPU."""
    x = x.detach().requires_grad_()
    out = layer(x)
    names = [name for name, _ in layer.named_parameters()]
    grads = torch.autograd.grad(out, [x, *layer.parameters()], grad.to(out.dtype))
    found = {"output": out.detach(), "input": grads[0], **dict(zip(names, grads[1:], strict=True))}
    return {name: t.double().cpu() for name, t in found.items()}


def samples(name: str) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
    """Yield random float64 layers in eval mode, each with an input and a gradient of the output."""
    build, shape = LAYERS[name]
    for seed in range(SAMPLES):
        torch.manual_seed(seed)
        layer = build().double().eval()
        for parameter in layer.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        for module in layer.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
        x = torch.randn(shape, dtype=torch.float64)
        yield layer, x, torch.randn_like(layer(x))


# The other dtypes of the sweep are slow.
SWEEP = [
    pytest.param(
        name, dtypes, marks=[] if dtypes in ("float32", "bfloat16") else pytest.mark.slow, id=f"{name}-{dtypes}"
    )
    for name in LAYERS
    for dtypes in DTYPES
]


@pytest.mark.parametrize(("name", "dtypes"), SWEEP)
def test_error_is_at_most_twice_that_of_rounding(
    name: str, dtypes: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of the output and of every gradient is measured relative to float64, and averaged over several layers.

    The bound is the error of the same layer in float64 on rounded inputs and weights, where the results of its linear
    layers, convolutions and norms are rounded too. In float32, sums round as well, and a sum of n terms loses up to
    sqrt(n) times the rounding of one (N. Higham and T. Mary, A new approach to probabilistic rounding error analysis,
    2019). In half precision, sums are in float32, so only the rounding of their terms matters. Two errors of n random
    values that are equal on average differ by a factor of at most exp(3 / sqrt(n)) in 999 of 1,000 cases.
    """
    dtype, lower = DTYPES[dtypes]
    half = lower or dtype
    if "chunks" in name:
        monkeypatch.setattr(dispatch, "_CHUNK_BYTES", 1)  # one image at a time
    errors: dict[str, Tensor] = defaultdict(lambda: torch.zeros(2, dtype=torch.float64))
    values: dict[str, int] = Counter()
    for layer, x, grad in samples(name):
        exact = named_gradients(layer, x, grad)
        rounded = named_gradients(rounded_copy(layer, half), x.to(half).double(), grad.to(half).double())
        with autocast(lower, device):
            converted = copy.deepcopy(layer).to(device, dtype)
            actual = named_gradients(converted, x.to(device, dtype), grad.to(device, half))
        for part, e in exact.items():
            if e.norm() > 1e-12:  # a bias that softmax cancels has no gradient
                floor = rounded[part].to(half).double()
                errors[part] += torch.stack([(actual[part] - e).square().sum(), (floor - e).square().sum()])
                values[part] += e.numel()
    terms = max(x.numel(), grad.numel()) if half == torch.float32 else 1
    assert {"output", "input"} < errors.keys()
    for part, (error, floor) in errors.items():
        chance = math.exp(3 / values[part] ** 0.5)
        assert error.sqrt() <= 2 * terms**0.5 * chance * floor.sqrt(), (part, error.sqrt(), floor.sqrt())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weighted_sums_only_round_their_terms_and_their_result(dtype: torch.dtype, device: str) -> None:
    """A half-precision sum of 49 positive terms would stop growing long before the last."""
    tensors = [torch.rand(shape, dtype=torch.float64) for shape in ((2, 8, 9, 8), (2, 49 * 4, 9, 8), (2, 8, 9, 8))]

    def with_grads(value: Tensor, weight: Tensor, grad: Tensor) -> list[Tensor]:
        leaves = [value.requires_grad_(), weight.requires_grad_()]
        out = aggregate(*leaves, 7)
        return [t.detach().double().cpu() for t in (out, *torch.autograd.grad(out, leaves, grad))]

    exact = with_grads(*(t.clone() for t in tensors))
    floors = [t.to(dtype).double() for t in with_grads(*(t.to(dtype).double() for t in tensors))]
    for actual, e, floor in zip(with_grads(*(t.to(device, dtype) for t in tensors)), exact, floors, strict=True):
        assert (actual - e).norm() <= 1.01 * (floor - e).norm()


@torch.no_grad()
def test_autocast_leaves_float64_alone() -> None:
    """PyTorch's own layers behave in the same way."""
    layer, x = ACmix2d(8, 8).double(), torch.randn(1, 8, 9, 9, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    torch.testing.assert_close(out, layer(x), rtol=0, atol=0)
