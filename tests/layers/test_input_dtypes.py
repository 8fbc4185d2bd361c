"""All layers and networks refuse inputs whose dtype differs from that of the weights, with the same message."""

from __future__ import annotations

import pytest
import timm
import torch
from support.networks import EVERY
from torch import Tensor, nn

import acmix_zoo  # noqa: F401 (registers the networks)
from acmix_zoo.layers import (
    ACmix2d,
    ContextAggregation,
    PairwiseSAM,
    PatchwiseSAM,
    ReducedACmix,
    RelativeAttention,
    WindowACmix,
)

OTHER_DTYPES = pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float64, torch.bfloat16], ids=str)


def layers_with_inputs() -> dict[str, tuple[nn.Module, Tensor, tuple]]:
    maps = torch.rand(1, 64, 6, 6)
    return {
        "ACmix2d": (ACmix2d(64, 8), maps, ()),
        "WindowACmix": (WindowACmix(64, 4, (3, 3)), maps.permute(0, 2, 3, 1), ()),
        "ReducedACmix": (ReducedACmix(64, 4), maps.flatten(2).mT, ((6, 6),)),
        "SAN": (PatchwiseSAM(64, 3), maps, ()),
        "SAN, pairwise": (PairwiseSAM(64, 3), maps, ()),
        "RelativeAttention": (RelativeAttention(64, 8, 8, heads=2, reach=5), maps, ()),
        "ContextAggregation": (ContextAggregation(64, 8, heads=2), maps, ()),
    }


@OTHER_DTYPES
@pytest.mark.parametrize("name", layers_with_inputs())
def test_layers_reject_other_dtypes(name: str, dtype: torch.dtype) -> None:
    layer, x, rest = layers_with_inputs()[name]
    message = f"{name.split(',')[0]}: the input is {dtype}, but the weights are torch.float32. Convert the input with "
    with pytest.raises(ValueError, match=message + r"x\.to\(torch\.float32\)"):
        layer(x.to(dtype), *rest)
    layer(x, *rest)


@OTHER_DTYPES
@pytest.mark.parametrize("name", EVERY)
def test_networks_reject_other_dtypes(name: str, dtype: torch.dtype) -> None:
    model = timm.create_model(name)
    x = torch.full((1, *model.pretrained_cfg["input_size"]), 200).to(dtype)
    advice = "" if dtype.is_floating_point else ", scaled and normalised as for training"
    for call in (model, model.forward_intermediates):  # the latter is what features_only calls
        with pytest.raises(ValueError, match=rf"the input is {dtype}, but .* with x\.to\(torch\.float32\){advice}$"):
            call(x)


@pytest.mark.parametrize("name", EVERY)
def test_dtypes_under_autocast(name: str) -> None:
    model = timm.create_model(name)
    x = torch.rand(1, *model.pretrained_cfg["input_size"])
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            assert model(x.to(dtype)).isfinite().all()
        for dtype in (torch.uint8, torch.float64):
            with pytest.raises(ValueError, match="Convert the input"):
                model(x.to(dtype))
