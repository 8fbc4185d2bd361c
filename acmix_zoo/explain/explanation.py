"""Explain the decision of a network for one image: everything that `acmix-zoo explain` shows, as numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from acmix_zoo.explain.contributions import Contributions, contributions
from acmix_zoo.explain.effective_kernels import EffectiveKernels, effective_kernels
from acmix_zoo.explain.grad_cam import grad_cam
from acmix_zoo.explain.logits import class_logits, evaluation
from acmix_zoo.explain.path_outputs import ACmixLayer, acmix_layers
from acmix_zoo.explain.pixel_attention import Pixel, PixelAttention, pixel_attention


@dataclass(frozen=True)
class Explanation:
    """Why a network gives an image the score of a class.

    Attributes:
        probabilities: (classes,), the softmax of the logits.
        target: the explained class.
        contributions: the parts of its score, or None for a network without ACmix layers.
        attention: the attention weights of one layer for one pixel, or None for a network without attention paths.
        kernels: the effective kernels of every layer with a convolution path.
        grad_cam: (h, w), from 0 to 1, or None for a network without a last feature map.
        missing: one sentence about each part that the network does not have.
    """

    probabilities: Tensor
    target: int
    contributions: Contributions | None
    attention: PixelAttention | None
    kernels: dict[str, EffectiveKernels]
    grad_cam: Tensor | None
    missing: tuple[str, ...]


def explain(
    model: nn.Module,
    image: Tensor,
    *,
    target: int | None = None,
    layer: str | None = None,
    pixel: Pixel | None = None,
) -> Explanation:
    """Explain the score that a network gives a class for an image.

    Any network with ACmix layers can be explained, including one whose convolutions `swap_conv3x3` has replaced. Of a
    network without any, only Grad-CAM is returned.

    Args:
        model: a network that returns logits (B, classes). It runs in eval mode and is not changed.
        image: (1, C, H, W), preprocessed as for the network, in its dtype and on its device.
        target: the class; by default, the one with the highest score.
        layer: the layer whose attention is returned; by default, the one whose attention contributes most in absolute
            value, for "token" out of those with a class token.
        pixel: (x, y) of the pixel whose attention is returned, or "token" for PVT's class token; by default, the centre
            of the position at which the attention of that layer contributes most, or the token if that contributes
            more.

    Raises:
        ValueError: the class, layer or pixel does not exist, the network is deployed or returns no logits, or the image
            is not one image.
    """
    layers = acmix_layers(model)
    with evaluation(model):
        logits = class_logits(model, image, target)
    target = int(logits[0].argmax()) if target is None else target
    parts = contributions(model, image, target) if layers else None
    has_attention = any(module.paths != "convolution" for module in layers.values())
    attention = None
    if has_attention or layer is not None or pixel is not None:  # without attention, these are errors
        if parts is not None and has_attention:
            layer = _strongest_layer(parts, pixel == "token") if layer is None else layer
            pixel = _strongest_pixel(parts, layer, (image.shape[2], image.shape[3])) if pixel is None else pixel
        attention = pixel_attention(model, image, layer or "", pixel or (0, 0))
    cam = grad_cam(model, image, target)
    missing = _missing_paths(layers)
    if cam is None:
        missing.append("No Grad-CAM: the network does not name its last feature map, or that has no positions.")
    return Explanation(
        torch.softmax(logits[0], 0), target, parts, attention, effective_kernels(model), cam, tuple(missing)
    )


def _strongest_layer(parts: Contributions, has_token: bool) -> str:
    """Return the layer whose attention contributes most in absolute value, if possible one with a class token."""
    found = [layer for layer in parts.layers if layer.attention]
    if has_token:
        found = [layer for layer in found if layer.attention and layer.attention.tokens] or found
    return max(found, key=lambda layer: abs(layer.attention.total) if layer.attention else 0.0).name


def _strongest_pixel(parts: Contributions, name: str, size: tuple[int, int]) -> Pixel:
    """Return the pixel in the centre of the position at which the attention of a layer contributes most, or "token"."""
    for layer in parts.layers:
        if layer.name == name and layer.attention:
            h, w = layer.attention.positions.shape
            if layer.attention.tokens > max(float(layer.attention.positions.max()), 0.0):
                return "token"
            row, column = divmod(int(layer.attention.positions.argmax()), w)
            return (2 * column + 1) * size[1] // (2 * w), (2 * row + 1) * size[0] // (2 * h)
    return size[1] // 2, size[0] // 2  # there is no such layer, which `pixel_attention` reports


def _missing_paths(layers: dict[str, ACmixLayer]) -> list[str]:
    """Return a sentence for the paths that a network does not have."""
    if not layers:
        return [
            "No ACmix layers: the network has no attention and convolution paths to compare, so there are no "
            "contributions, no attention of a pixel and no effective kernels."
        ]
    lines = []
    for path, other in (("attention", "convolution"), ("convolution", "attention")):
        count = sum(layer.paths == other for layer in layers.values())
        if count:
            which = "the layers have" if count == len(layers) else f"{count} of {len(layers)} layers have"
            lines.append(f'No {path} path: {which} paths="{other}", so all of their output is {other}.')
    return lines
