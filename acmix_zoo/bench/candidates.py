"""Build what the benchmark measures from its name: a network, a single layer, or a baseline of either.

The name of a candidate is one of

    NETWORK                                 any model or weights that `acmix_zoo.create_model` accepts
    acmix2d:CHANNELSxSIZE[sSTRIDE]          a single ACmix layer
    released:CHANNELSxSIZE[sSTRIDE]         the same layer, computed as in the authors' released code
    conv3x3:CHANNELSxSIZE[sSTRIDE]          the 3×3 convolution that the layer replaces
    shift-tensor:CHANNELSxSIZE              that convolution as projections, shifts and a sum; also shift-frozen and
                                            shift-learnable, see `acmix_zoo.bench.decomposition`
    aggregate:CHANNELSxSIZE[kKERNEL]        SAN's aggregation alone, over 7×7 neighbours by default
    unfold:CHANNELSxSIZE[kKERNEL]           the same aggregation with unfold, which copies the value kernel² times

followed by `@BACKEND` (a backend of ACmix, such as `@reference`), `@tile8x16` (tiles of 8×16 queries) or `@released`
(a network whose ACmix layers are computed as in the authors' code), and by `+deploy` (a network whose batch norms are
folded into the layers before them) or `+compile` for torch.compile.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

import acmix_zoo
from acmix_zoo.bench.aggregation_candidates import Aggregation
from acmix_zoo.bench.decomposition import DecomposedConv2d
from acmix_zoo.bench.released import ReleasedACmix2d
from acmix_zoo.layers import ACmix2d
from acmix_zoo.layers.complexity import default_input_size
from acmix_zoo.ops import BACKENDS, use_backend
from acmix_zoo.ops.dispatch import TILES
from acmix_zoo.weights.locate import Kind, ModelLocation, locate
from acmix_zoo.weights.not_found import NotFoundError, not_found_error

_LAYERS = ("acmix2d", "released", "conv3x3", "shift-tensor", "shift-frozen", "shift-learnable")
_AGGREGATIONS = ("aggregate", "unfold")
_NUMBER = r"([1-9]\d*)"
_LAYER = re.compile(rf"({'|'.join(_LAYERS)}):{_NUMBER}x{_NUMBER}(?:s{_NUMBER})?")
_AGGREGATION = re.compile(rf"({'|'.join(_AGGREGATIONS)}):{_NUMBER}x{_NUMBER}(?:k{_NUMBER})?")
_TILE = re.compile(rf"tile{_NUMBER}x{_NUMBER}")
_DTYPES = ("float16", "bfloat16", "float32", "float64")
_COMPILE = "+compile"
DEPLOY = "+deploy"


@dataclass(frozen=True)
class Candidate:
    """A network or layer to measure, with the settings of a pass.

    Attributes:
        name: what to build, see this file's docstring.
        batch: images per pass.
        size: side length of the square image for a network; 0 for the network's default.
        train: whether to measure forward and backward passes instead of inference.
        threads: number of CPU threads.
        dtype: name of a floating point dtype of torch.
        device: name of a torch device.
        model_kwargs: arguments for the network's constructor.
        autocast: whether the weights are float32 and the forward pass runs under autocast to `dtype`. Otherwise
            everything has that dtype.
    """

    name: str
    batch: int = 8
    size: int = 0
    train: bool = False
    threads: int = 2
    dtype: str = "float32"
    device: str = "cpu"
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    autocast: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"bench: cannot measure the dtype {self.dtype!r}. Expected one of {', '.join(_DTYPES)}")

    @property
    def device_type(self) -> str:
        """The type of the device: "cpu", "cuda", …."""
        return torch.device(self.device).type


class Variant(NamedTuple):
    """The parts of a candidate's name.

    Attributes:
        model: the network or the layer.
        backend: what follows the `@`, or "".
        is_compiled: whether the name ends in `+compile`.
        is_deployed: whether it ends in `+deploy`.
    """

    model: str
    backend: str
    is_compiled: bool
    is_deployed: bool


class Built(NamedTuple):
    """The module of a candidate, and the shape (C, H, W) of its input without the batch."""

    module: nn.Module
    input_shape: tuple[int, int, int]


def parse_name(name: str) -> Variant:
    """Return the parts of a candidate's name.

    Raises:
        ValueError: unknown backend.
    """
    model, _, backend = name.removesuffix(_COMPILE).removesuffix(DEPLOY).rpartition("@")
    if not model:
        model, backend = backend, ""
    if not (backend in ("", "released", *BACKENDS) or _TILE.fullmatch(backend)):
        model, backend = f"{model}@{backend}", ""  # a revision on the Hub, or a path that contains an @
        try:
            locate(model)
        except NotFoundError as error:
            unknown = model.rpartition("@")[2]
            expected = ", ".join(f"@{known}" for known in ("released", *BACKENDS))
            raise ValueError(
                f"bench: {name}: unknown backend @{unknown}. Expected {expected} or a tile such as @tile8x16"
            ) from error
    return Variant(model, backend, name.endswith(_COMPILE), name.removesuffix(_COMPILE).endswith(DEPLOY))


def is_network(name: str) -> bool:
    """Return whether the candidate of this name is a network, not a single layer or an aggregation."""
    model = parse_name(name).model
    return not (_LAYER.fullmatch(model) or _AGGREGATION.fullmatch(model))


def build(candidate: Candidate) -> Built:
    """Build the module of a candidate, with the same random weights every time.

    Raises:
        ValueError, FileNotFoundError: the network or backend is unknown, or the settings do not work.
    """
    torch.manual_seed(0)
    name, backend, _, is_deployed = parse_name(candidate.name)
    if layer := _LAYER.fullmatch(name):
        channels, side = int(layer[2]), int(layer[3])
        built = Built(_build_layer(layer[1], channels, int(layer[4] or 1)), (channels, side, side))
    elif found := _AGGREGATION.fullmatch(name):
        channels, side = int(found[2]), int(found[3])
        aggregation = Aggregation(found[1] == "unfold", candidate.batch, channels, side, int(found[4] or 7))
        built = Built(aggregation, (channels, side, side))
    else:
        built = _build_network(name, candidate.size, candidate.model_kwargs)
    module, shape = built
    if backend == "released":
        module = _release(module, candidate.name)
    if is_deployed:
        if candidate.train:
            raise ValueError(f"bench: {candidate.name} cannot be trained. Measure inference, or remove {DEPLOY}")
        if not is_network(candidate.name):
            raise ValueError(f"bench: {candidate.name} is a layer without batch norms to fold. Remove {DEPLOY}")
        module = _deploy(module.eval())
    dtype = torch.float32 if candidate.autocast else getattr(torch, candidate.dtype)
    module = module.to(device=candidate.device, dtype=dtype).to(memory_format=memory_format(candidate))
    return Built(module.train(candidate.train), shape)


def _release(module: nn.Module, name: str) -> nn.Module:
    """Return the module with its ACmix layers computed as in the authors' code.

    Raises:
        ValueError: there are no such layers.
    """
    holder = nn.Sequential(module)  # for a module that is such a layer itself
    layers = [(path, layer) for path, layer in holder.named_modules() if isinstance(layer, ACmix2d)]
    if not layers:
        raise ValueError(f"bench: @released replaces ACmix2d layers, and {name} has none. Remove @released")
    for path, layer in layers:
        holder.set_submodule(path, ReleasedACmix2d(layer))
    return holder[0]


def _deploy(module: nn.Module) -> nn.Module:
    """Fold the batch norms of a network of the zoo, or of any network that torch.fx can trace."""
    folded: nn.Module = module.deploy() if hasattr(module, "deploy") else fuse(module)  # type: ignore[operator]
    return folded


def _build_layer(kind: str, channels: int, stride: int) -> nn.Module:
    if kind in ("acmix2d", "released"):
        acmix = ACmix2d(channels, channels, stride=stride, heads=4)
        return acmix if kind == "acmix2d" else ReleasedACmix2d(acmix)
    conv = nn.Conv2d(channels, channels, 3, stride, 1)
    if kind == "conv3x3":
        return conv
    if stride != 1:
        raise ValueError(f"bench: {kind} does not support a stride of {stride}. Use a stride of 1")
    return DecomposedConv2d.from_conv(conv, kind.removeprefix("shift-"))  # type: ignore[arg-type]


def _build_network(name: str, size: int, model_kwargs: dict[str, Any]) -> Built:
    has_weights = _locate(name).kind is not Kind.NETWORK
    # A new network is built on the device of the context, which may be "meta", but weights need tensors with storage.
    with torch.device("cpu") if has_weights else nullcontext():
        module = acmix_zoo.create_model(name, **model_kwargs)
    channels, height, width = default_input_size(module) or (3, 224, 224)
    if size and hasattr(module, "set_input_size"):
        module.set_input_size(img_size=(size, size))  # type: ignore[operator]
    return Built(module, (channels, size or height, size or width))


def _locate(name: str) -> ModelLocation:
    """Locate a network or weights.

    Raises:
        NotFoundError: nothing has this name. If it looks like a layer, the error shows how layers are written.
    """
    try:
        return locate(name)
    except NotFoundError as error:
        if ":" not in name:
            raise
        near = difflib.get_close_matches(name.partition(":")[0], [*_LAYERS, *_AGGREGATIONS])
        expected = "a network, weights, or a layer such as acmix2d:64x56"
        advice = "`acmix-zoo bench --help` explains them"
        raise not_found_error(
            f"unknown candidate {name!r}", expected, [f"{kind}:CHANNELSxSIZE" for kind in near], advice
        ) from error


@contextmanager
def use_candidate_backend(candidate: Candidate) -> Iterator[None]:
    """Use the backend or tile given after the `@` of the candidate's name within this context."""
    backend = parse_name(candidate.name).backend
    with ExitStack() as stack:
        if tile := _TILE.fullmatch(backend):
            stack.enter_context(patch.dict(TILES, {candidate.device_type: (int(tile[1]), int(tile[2]))}))
            stack.enter_context(use_backend("tiles"))
        elif backend in BACKENDS:
            stack.enter_context(use_backend(backend))
        yield


def memory_format(candidate: Candidate) -> torch.memory_format:
    """Return the memory format in which the candidate is fastest.

    This is channels_last, except for the baselines that use unfold and for the aggregation of feature maps larger than
    20×20.
    """
    if found := _AGGREGATION.fullmatch(candidate.name):
        is_contiguous = found[1] == "unfold" or int(found[3]) > 20
    else:
        is_contiguous = candidate.name.startswith("released:")
    return torch.contiguous_format if is_contiguous else torch.channels_last


def resize(candidate: Candidate, size: int) -> Candidate:
    """Return the same candidate for images, or feature maps, of a different size."""
    if is_network(candidate.name):
        return replace(candidate, size=size)
    return replace(candidate, name=re.sub(r"(:\d+x)\d+", rf"\g<1>{size}", candidate.name))
