"""What the benchmark can measure, by name: networks, single layers, and the forms to measure them against."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import timm
import torch
from torch import nn

import acmix_zoo
from acmix_zoo.bench.aggregation_cases import Aggregation
from acmix_zoo.bench.decomposition import DecomposedConv2d
from acmix_zoo.bench.released import ReleasedForm
from acmix_zoo.layers import ACmix2d
from acmix_zoo.layers.complexity import input_size_of
from acmix_zoo.ops import BACKENDS, use_backend
from acmix_zoo.ops.dispatch import TILES

_LAYER = re.compile(r"(acmix2d|released|conv3x3|shift-tensor|shift-frozen|shift-learnable):(\d+)x(\d+)(?:s(\d+))?")
_TILE = re.compile(r"tile(\d+)x(\d+)")
_SUMS = re.compile(r"(aggregate|unfold):(\d+)x(\d+)(?:k(\d+))?")


@dataclass(frozen=True)
class Case:
    """A measurement: one pass of a contestant.

    `size` is the side length of a network's image (0: the network's default). With `autocast`, the weights are float32
    and the forward pass runs under autocast to `dtype`; without it, everything is in `dtype`.
    """

    contestant: str
    batch: int = 8
    size: int = 0
    train: bool = False
    threads: int = 2
    dtype: str = "float32"
    device: str = "cpu"
    kwargs: str = "{}"  # JSON, for the network's constructor
    autocast: bool = False

    def __post_init__(self) -> None:
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(f"bench: expected a dtype of torch such as float32 or bfloat16, got {self.dtype!r}")

    @property
    def device_type(self) -> str:
        """The type of the device: "cpu", "cuda", …."""
        return torch.device(self.device).type


def build(case: Case) -> tuple[nn.Module, tuple[int, int, int]]:
    """The module of a case and the (C, H, W) of its input.

    Raises:
        ValueError: no such contestant; the message names near ones.
    """
    torch.manual_seed(0)
    name, form = _parts(case)
    if form not in ("", "released", *BACKENDS) and not _TILE.fullmatch(form):
        expected = ", ".join(f"@{known}" for known in ("released", *BACKENDS))
        raise ValueError(f"bench: {case.contestant}: expected {expected} or a tile such as @tile8x16, got @{form}")
    module: nn.Module
    if layer := _LAYER.fullmatch(name):
        kind, c, size, stride = layer[1], int(layer[2]), int(layer[3]), int(layer[4] or 1)
        module = _layer(kind, c, stride)
        shape = (c, size, size)
    elif sums := _SUMS.fullmatch(name):
        c, size = int(sums[2]), int(sums[3])
        module = Aggregation(sums[1] == "unfold", case.batch, c, size, int(sums[4] or 7))
        shape = (c, size, size)
    else:
        module = _network(name, json.loads(case.kwargs))
        channels, height, width = input_size_of(module) or (3, 224, 224)
        shape = (channels, case.size or height, case.size or width)
        if case.size and hasattr(module, "set_input_size"):
            module.set_input_size(img_size=(case.size, case.size))  # type: ignore[operator]
    if form == "released":
        for path, layer2d in [(p, m) for p, m in module.named_modules() if isinstance(m, ACmix2d)]:
            module.set_submodule(path, ReleasedForm(layer2d))
    module = module.to(device=case.device, dtype=torch.float32 if case.autocast else getattr(torch, case.dtype))
    module = module.to(memory_format=layout(case))
    return module.train(case.train), shape


@contextmanager
def backend(case: Case) -> Iterator[None]:
    """Use the backend or tile given after the `@` of a contestant."""
    _, form = _parts(case)
    with ExitStack() as stack:
        if tile := _TILE.fullmatch(form):
            stack.enter_context(patch.dict(TILES, {case.device_type: (int(tile[1]), int(tile[2]))}))
            stack.enter_context(use_backend("tiles"))
        elif form in BACKENDS:
            stack.enter_context(use_backend(form))
        yield


def _parts(case: Case) -> tuple[str, str]:
    """Return the contestant's name and the part after its `@`."""
    name, _, form = case.contestant.removesuffix("+compile").partition("@")
    return name, form


def _layer(kind: str, c: int, stride: int) -> nn.Module:
    if kind in ("acmix2d", "released"):
        acmix = ACmix2d(c, c, stride=stride, heads=4)
        return acmix if kind == "acmix2d" else ReleasedForm(acmix)
    plain = nn.Conv2d(c, c, 3, stride, 1)
    if kind == "conv3x3":
        return plain
    if stride != 1:
        raise ValueError(f"bench: {kind} has no stride, got {stride}")
    return DecomposedConv2d.of(plain, kind.removeprefix("shift-"))  # type: ignore[arg-type]


def layout(case: Case) -> torch.memory_format:
    """What serves a contestant best. Sums over small maps run with channels side by side."""
    if sums := _SUMS.fullmatch(case.contestant):
        plain = sums[1] == "unfold" or int(sums[3]) > 20
    else:
        plain = case.contestant.startswith("released:")
    return torch.contiguous_format if plain else torch.channels_last


def _network(name: str, kwargs: dict[str, Any]) -> nn.Module:
    if not timm.is_model(name):
        near = timm.list_models(f"*{name}*")[:3] or acmix_zoo.list_models()
        raise ValueError(f"bench: there is no network {name!r}, here or in timm; is it one of {', '.join(near)}?")
    return timm.create_model(name, **kwargs)
