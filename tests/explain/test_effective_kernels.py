"""Effective kernels: one convolution with them is the convolution path, apart from biases."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from acmix_zoo import ACmix2d
from acmix_zoo.explain import effective_kernels
from acmix_zoo.explain.effective_kernels import kernel_patterns, layer_kernels
from acmix_zoo.layers import PairwiseSAM, PatchwiseSAM, ReducedACmix, WindowACmix

LAYERS: dict[str, nn.Module] = {
    "acmix2d": ACmix2d(6, 8, heads=2),
    "acmix2d, strided": ACmix2d(6, 20, kernel_conv=5, stride=2, heads=5),
    "acmix2d, one path": ACmix2d(6, 8, heads=2, paths="convolution"),
    "window": WindowACmix(8, 2, (4, 4)),
    "reduced": ReducedACmix(8, 2),
    "pairwise": PairwiseSAM(64, 3, paths="both"),
    "patchwise": PatchwiseSAM(64, 3, paths="both", kernel_conv=5),
}


@pytest.mark.parametrize("name", LAYERS)
def test_one_convolution_is_the_path(name: str) -> None:
    torch.manual_seed(0)
    layer: Any = LAYERS[name].double().eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    channels = {"window": 8, "reduced": 8, "pairwise": 64, "patchwise": 64}.get(name, 6)
    x = torch.randn(1, channels, 7, 6, dtype=torch.float64)
    factors = {} if "one path" in name else {"alpha": torch.zeros(1, dtype=torch.float64)}

    def path(x: Tensor) -> Tensor:  # (1, C, H, W) → (1, out, Ho, Wo)
        if name == "window":
            return functional_call(layer, factors, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]
        if name == "reduced":
            tokens = functional_call(layer, factors, (x.flatten(2).mT, (7, 6)))
            return tokens.mT.unflatten(2, (7, 6))  # type: ignore[no-any-return]
        return functional_call(layer, factors, x)  # type: ignore[no-any-return]

    weight = layer_kernels(layer).weight
    expected = F.conv2d(x, weight, None, getattr(layer, "stride", 1), weight.shape[-1] // 2)
    assert (path(x) - path(torch.zeros_like(x))).allclose(expected)  # the difference has no bias


def test_kernels_of_reduced_layers_are_those_on_the_projections() -> None:
    layer = ReducedACmix(8, 2, reduction=2)
    found = layer_kernels(layer)
    assert found.is_grouped and found.weight.shape == (8, 6, 3, 3)
    layer.beta.data *= 3  # type: ignore[operator]
    assert layer_kernels(layer).weight.allclose(3 * found.weight)


def test_a_network_lists_the_layers_that_have_a_convolution() -> None:
    model = nn.ModuleDict({"a": ACmix2d(8, 8), "b": ACmix2d(8, 8, paths="attention"), "c": nn.Conv2d(8, 8, 3)})
    assert list(effective_kernels(model)) == ["a"]


def test_patterns_are_those_that_the_kernels_were_made_of() -> None:
    edge = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=torch.float64)
    blur = torch.ones(3, 3, dtype=torch.float64)
    weights = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights[..., 1] *= 0.1
    kernels = torch.einsum("oip,pyx->oiyx", weights, torch.stack([edge, blur]))
    found = kernel_patterns(kernels)
    assert found.shares.sum() == pytest.approx(1) and found.shares[0] > 0.9 and found.shares[2:].abs().max() < 1e-12
    similarity = (found.patterns[0] * edge).sum() / edge.norm()
    assert abs(float(similarity)) > 0.99 and found.patterns[0].max() == found.patterns[0].abs().max()
    assert found.taps.allclose(kernels.square().mean((0, 1)).sqrt())
