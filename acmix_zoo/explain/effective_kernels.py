"""The effective kernels of the convolution path: those of the single convolution that its linear steps amount to.

The steps are a 1×1 projection, a mixing matrix, and shifts that are summed. Apart from biases, they compose into one
convolution, whose kernels can be inspected like those of any network.
"""

from __future__ import annotations

from functools import singledispatch
from typing import NamedTuple

import torch
from torch import Tensor, nn

from acmix_zoo.explain.path_outputs import acmix_layers
from acmix_zoo.layers import ACmix2d, PairwiseSAM, PatchwiseSAM, ReducedACmix, WindowACmix
from acmix_zoo.layers.convolution_path import ShiftConv


class EffectiveKernels(NamedTuple):
    """The kernels of a convolution path, times beta.

    Attributes:
        weight: (out, in, k, k), as in `nn.Conv2d`.
        is_grouped: whether the kernels read the projections q, k and v of their channel, (out, 3·heads, k, k), instead
            of the input of the layer. They do in `ReducedACmix` with reduction, where positions share keys and values.
    """

    weight: Tensor
    is_grouped: bool = False


class Patterns(NamedTuple):
    """The principal patterns of the kernels of a layer.

    Attributes:
        taps: (k, k), the root mean square of all kernels at each tap.
        patterns: (k², k, k), orthogonal patterns of norm 1, the most important one first. Every kernel is a weighted
            sum of them. Their sign is arbitrary; it is chosen so that the value of largest magnitude is positive.
        shares: (k²,), the fraction of the squared weights that each pattern explains.
    """

    taps: Tensor
    patterns: Tensor
    shares: Tensor


def kernel_patterns(weight: Tensor) -> Patterns:
    """Return the principal patterns of kernels (out, in, k, k): the singular vectors of the (out·in) × k² matrix."""
    flat = weight.detach().flatten(0, 1).flatten(1).cpu().double()  # (out·in, k²)
    energies, vectors = torch.linalg.eigh(flat.T @ flat)  # in ascending order
    patterns = vectors.T.flip(0)  # (k², k²), one in each row
    largest = patterns.gather(1, patterns.abs().argmax(1, keepdim=True))  # (k², 1)
    energies = energies.flip(0).clamp(min=0)
    taps = flat.square().mean(0).sqrt().view(weight.shape[2:])
    shares = energies / energies.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return Patterns(taps, (patterns * largest.sign()).unflatten(1, weight.shape[2:]), shares)


def effective_kernels(model: nn.Module) -> dict[str, EffectiveKernels]:
    """Return the effective kernels of every ACmix layer with a convolution path, by the name of the layer."""
    with torch.no_grad():
        return {name: layer_kernels(m) for name, m in acmix_layers(model).items() if m.paths != "attention"}


@singledispatch
def layer_kernels(layer: nn.Module) -> EffectiveKernels:
    """Return the effective kernels of one ACmix layer with a convolution path, times beta."""
    raise TypeError(f"{type(layer).__name__} is not an ACmix layer. Expected a layer of acmix_zoo. Choose one")


@layer_kernels.register(ACmix2d)
@layer_kernels.register(WindowACmix)
def _(layer: ACmix2d | WindowACmix) -> EffectiveKernels:
    projections = layer.qkv.weight.unflatten(0, (-1, 3 * layer.heads))  # (d, 3·heads, in)
    return EffectiveKernels(_compose(projections, _grouped(layer.shift_conv)) * _beta(layer))


@layer_kernels.register
def _(layer: ReducedACmix) -> EffectiveKernels:
    grouped = _grouped(layer.shift_conv) * _beta(layer)  # (dim, 3·heads, k, k)
    if layer.reduction > 1:
        return EffectiveKernels(grouped, is_grouped=True)
    rows = torch.cat([layer.q.weight, layer.kv.weight])  # (3·dim, dim), ordered ({q, k, v}, heads, d)
    return EffectiveKernels(_compose(rows.unflatten(0, (3 * layer.heads, -1)).transpose(0, 1), grouped))


@layer_kernels.register(PairwiseSAM)
@layer_kernels.register(PatchwiseSAM)
def _(layer: PairwiseSAM | PatchwiseSAM) -> EffectiveKernels:
    q, k, v = (conv.weight.flatten(1) for conv in (layer.conv1, layer.conv2, layer.conv3))  # (P/16 or P/4, P)
    mixed = v + layer.lift.weight.flatten(1) @ torch.cat([q, k])  # (P/4, P)
    kernels = layer.static_weight.repeat(layer.out // layer.shared, 1, 1, 1)  # (P/4, 1, k, k)
    return EffectiveKernels(mixed[..., None, None] * kernels * _beta(layer))


def _beta(layer: ACmix2d | WindowACmix | ReducedACmix | PairwiseSAM | PatchwiseSAM) -> Tensor | float:
    return layer.beta if layer.paths == "both" else 1.0


def _grouped(conv: ShiftConv) -> Tensor:
    """Return mixing matrix and shifts as the kernels of one grouped convolution: (d·heads, 3·heads, k, k)."""
    return torch.einsum("omyx,mi->oiyx", conv.shift_weight, conv.fc_weight)


def _compose(projections: Tensor, grouped: Tensor) -> Tensor:
    """Compose projections (d, 3·heads, in) and grouped kernels (d·heads, 3·heads, k, k): → (d·heads, in, k, k)."""
    kernels = grouped.unflatten(0, (len(projections), -1))  # (d, heads, 3·heads, k, k)
    return torch.einsum("gic,goiyx->gocyx", projections, kernels).flatten(0, 1)
