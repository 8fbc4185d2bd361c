"""Divide the score of a class into contributions of each path of each layer and position, which sum to the score.

Method. The score F is the logit of one class. Every ACmix layer returns `alpha · attention + beta · convolution`, so
the two factors are natural switches: with alpha = beta = 0 in every layer, neither path has any influence. All factors
are raised together from 0 to their values, as t·alpha and t·beta with t from 0 to 1. The score then changes by

    F(1) − F(0) = ∫ dF/dt dt = Σ over layers, paths and positions of ∫ ∂F/∂y(t) · path(t) dt

where y is the output of a layer and path(t) is what a path puts into it at a position, before the factor t. Each term
of the sum is a contribution. The parts of the score are these contributions and F(0), the score of the network without
both paths, which belongs to everything else: stem, residual connections, MLPs and classifier. The integral is computed
by Gauss–Legendre quadrature. Its error, F(1) minus all parts, is measured and reported, and the number of points is
doubled until the error is below one per cent of the contributions.

Why this method. A decision is not a sum, because layers multiply and rectify what others compute, so interactions have
to be divided by a rule. This rule is that of Aumann and Shapley. Contributions sum to the score, a path without
influence gets exactly zero, and two interchangeable paths get the same contribution. The only reference point is the
network without its paths, whereas methods that compare with another image have to choose that image. Neither the
gradients at t = 1 nor the ablations of one path at a time sum to the score.

Limits. Positions are those of a path's output, and the path has read the positions around them. For pictures, the
value of each position is spread over the pixels that it covers. Contributions hold for this network and this image, and
depend on the paths being switched on together. `PathScores` makes no such choice: it holds the scores with each path
switched off in all layers.

Source: Aumann and Shapley, "Values of Non-Atomic Games", 1974; Sundararajan et al., "Axiomatic Attribution for Deep
Networks", ICML 2017, who apply it to pixels; Dhamdhere et al., "How Important Is a Neuron?", ICLR 2019, to neurons; Hao
et al., "Self-Attention Attribution", AAAI 2021, to attention weights that are scaled from 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix_zoo.explain.logits import class_logits, evaluation
from acmix_zoo.explain.path_outputs import LayerCall, PositionSums, acmix_layers, replaced_outputs, sum_channels

_POINTS = (16, 32, 64, 128)  # of the quadrature
_TOLERANCE = 0.01  # of the sum of all absolute contributions
_BATCH = 8  # images at a time


class PathContribution(NamedTuple):
    """What one path of one layer contributes to the score.

    Attributes:
        positions: (H, W) float64 on the CPU, the contribution of every position of the layer's output.
        tokens: the contribution of tokens without a position, such as PVT's class token.
        size: root mean square of what the path adds to the output of the layer, alpha or beta included.
    """

    positions: Tensor
    tokens: float
    size: float

    @property
    def total(self) -> float:
        """The contribution of the path in this layer."""
        return float(self.positions.sum()) + self.tokens


class LayerContribution(NamedTuple):
    """The contributions of one ACmix layer. A path that the layer does not have is None.

    Attributes:
        name: the name of the layer in the network.
        alpha, beta: the factors of attention and convolution, or None for a layer with only one path.
        attention, convolution: the contributions of the paths.
    """

    name: str
    alpha: float | None
    beta: float | None
    attention: PathContribution | None
    convolution: PathContribution | None


class PathScores(NamedTuple):
    """The score with paths switched off in all layers, each from one forward pass.

    Attributes:
        both: the score of the network as it is.
        attention: only the attention paths are on.
        convolution: only the convolution paths are on.
        neither: all ACmix layers return zero.
    """

    both: float
    attention: float
    convolution: float
    neither: float


@dataclass(frozen=True)
class Contributions:
    """The parts of the score of one class. See the top of this file for the method.

    Attributes:
        target: the class.
        scores: the score, and the scores with paths switched off.
        layers: the contributions of every ACmix layer, in the order in which they run.
        points: number of points of the numerical integration.
    """

    target: int
    scores: PathScores
    layers: tuple[LayerContribution, ...]
    points: int

    @property
    def attention(self) -> float:
        """The contribution of the attention paths of all layers."""
        return sum(layer.attention.total for layer in self.layers if layer.attention)

    @property
    def convolution(self) -> float:
        """The contribution of the convolution paths of all layers."""
        return sum(layer.convolution.total for layer in self.layers if layer.convolution)

    @property
    def rest(self) -> float:
        """The score of the network without either path."""
        return self.scores.neither

    @property
    def error(self) -> float:
        """The error of the numerical integration: the score minus all of its parts."""
        return self.scores.both - self.rest - self.attention - self.convolution

    def picture(self, path: str, size: tuple[int, int]) -> Tensor:
        """Return the contributions of a path in all layers for every pixel of an image of (height, width).

        Args:
            path: "attention" or "convolution".
            size: the height and width.

        Returns:
            (height, width) float64. Its sum is the contribution of the path, without that of `tokens`.
        """
        parts = [getattr(layer, path) for layer in self.layers]
        return sum((spread(part.positions, size) for part in parts if part), torch.zeros(size, dtype=torch.float64))

    def tokens(self, path: str) -> float:
        """Return the contribution of a path in all layers that has no position because it is in the class token."""
        return float(sum(part.tokens for part in (getattr(layer, path) for layer in self.layers) if part))


def contributions(model: nn.Module, image: Tensor, target: int) -> Contributions:
    """Divide the score of a class into the contributions of both paths of every ACmix layer.

    Args:
        model: a network that returns logits (B, classes). It runs in eval mode and is not changed.
        image: (1, C, H, W), preprocessed, in the dtype and on the device of the model.
        target: the class.

    Raises:
        ValueError: the network has no ACmix layers or is deployed, the image is not one image, or the output does not
            have the shape (1, classes) with `target` among the classes.
    """
    if not acmix_layers(model):
        raise ValueError(
            f"contributions: {type(model).__name__} has no ACmix layers. Expected a network with at least one. "
            "Replace its convolutions with swap_conv3x3 and train it, or choose an ACmix network"
        )
    with evaluation(model):
        logits = class_logits(model, image, target)
        calls: list[LayerCall] = []

        def record(call: LayerCall) -> Tensor:
            calls.append(call)
            return call.output

        with torch.no_grad(), replaced_outputs(model, record):
            model(image)
        only_one = (_score_with(path, model, image, target) for path in ("attention", "convolution", "neither"))
        scores = PathScores(float(logits[0, target]), *only_one)
        for points in _POINTS:
            sums = _integrate(model, image, target, points)
            layers = tuple(_layer_contribution(call, sums[i]) for i, call in enumerate(calls))
            found = Contributions(target, scores, layers, points)
            parts = [part.total for layer in layers for part in (layer.attention, layer.convolution) if part]
            if abs(found.error) <= _TOLERANCE * sum(map(abs, parts)):
                break
    return found


def spread(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge a feature map (h, w) to (height, width) smoothly, and keep its sum.

    Every value is distributed over the pixels around its cell, with the weights of bilinear interpolation.
    """
    rows, columns = (_spread_weights(n, length).to(values) for n, length in zip(values.shape, size, strict=True))
    return rows.T @ values @ columns


def _spread_weights(n: int, length: int) -> Tensor:
    """Return the weights (n, length) that distribute each of n cells over a line of pixels. Rows sum to 1."""
    weights = F.interpolate(torch.eye(n, dtype=torch.float64).unsqueeze(0), size=length, mode="linear")[0]
    return weights / weights.sum(1, keepdim=True)


def _score_with(path: str, model: nn.Module, image: Tensor, target: int) -> float:
    """Return the score if all layers only run `path`, or neither path. A layer without that path returns zero."""

    def replace(call: LayerCall) -> Tensor:
        kept: Tensor | None = call.paths._asdict().get(path)
        return torch.zeros_like(call.output) if kept is None else kept

    with torch.no_grad(), replaced_outputs(model, replace):
        return float(model(image)[0, target])


def _integrate(model: nn.Module, image: Tensor, target: int, points: int) -> list[dict[str, PositionSums]]:
    """Return the contributions of every call of a layer by path, from the gradients at `points` values of t.

    Their tensors are (H, W) for positions and () for tokens.
    """
    nodes, weights = np.polynomial.legendre.leggauss(points)  # for an interval from −1 to 1
    batches = [torch.tensor(array).split(_BATCH) for array in ((nodes + 1) / 2, weights / 2)]
    totals: list[dict[str, PositionSums]] = []
    for t, weight in zip(*batches, strict=True):
        for i, (call, gradient) in enumerate(_scaled_calls(model, image, target, t)):
            if i == len(totals):
                totals.append({})
            for path, value in call.paths._asdict().items():
                if value is not None:
                    terms = sum_channels(call, gradient * value)  # (n, H, W) and (n,)
                    parts = [torch.tensordot(weight, term.cpu().double(), 1) for term in terms]
                    before = totals[i].get(path)
                    totals[i][path] = PositionSums(*(parts if before is None else map(torch.add, before, parts)))
    return totals


def _scaled_calls(model: nn.Module, image: Tensor, target: int, t: Tensor) -> list[tuple[LayerCall, Tensor]]:
    """Run the network on a batch of n images, with the outputs of all ACmix layers multiplied by t (n,).

    Returns:
        Every call of a layer, with the gradient of the score by what the layer returned to the network.
    """
    factors = t.to(image).requires_grad_()
    calls: list[LayerCall] = []
    outputs: list[Tensor] = []

    def scale(call: LayerCall) -> Tensor:
        outputs.append(factors.view(-1, *[1] * (call.output.dim() - 1)) * call.output)
        calls.append(call)
        return outputs[-1]

    with torch.enable_grad(), replaced_outputs(model, scale):
        score = model(image.expand(len(t), -1, -1, -1))[:, target].sum()
    gradients = torch.autograd.grad(score, outputs, materialize_grads=True)
    return list(zip(calls, gradients, strict=True))


def _layer_contribution(call: LayerCall, sums: dict[str, PositionSums]) -> LayerContribution:
    """Combine the sums of both paths with what the layer computes at t = 1."""

    def contribution(path: str, value: Tensor | None) -> PathContribution | None:
        if value is None:
            return None
        return PathContribution(sums[path].positions, float(sums[path].tokens), float(value.square().mean().sqrt()))

    factors = (float(call.layer.alpha), float(call.layer.beta)) if call.layer.paths == "both" else (None, None)
    return LayerContribution(call.name, *factors, *map(contribution, call.paths._fields, call.paths))
