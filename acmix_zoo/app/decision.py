"""What the page shows of a network's decision: its classes, the contributions of both paths, and attention."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import safetensors.torch
import torch
from PIL import Image
from torch import nn

from acmix_zoo.data.prepared_image import PreparedImage, prepare_image, without_normalisation
from acmix_zoo.explain import Explanation, explain, pixel_attention
from acmix_zoo.explain.path_outputs import acmix_layers
from acmix_zoo.explain.pixel_attention import Pixel, PixelAttention
from acmix_zoo.weights.class_names import class_names
from acmix_zoo.weights.classifier import load_classifier
from acmix_zoo.weights.description import read_config
from acmix_zoo.weights.shipped import shipped_classifiers

Place = tuple[float, float]
"""Where in an image, from (0, 0) in the top left corner to (1, 1): networks that are compared may see other sizes."""


class LoadedNetwork(NamedTuple):
    """A network that is ready to classify.

    Attributes:
        name: the name of its weights, such as acmix_resnet_pico.fashion_mnist.
        model: the network in eval mode.
        labels: its classes in words.
        attention_layers: the names of its layers with an attention path.
    """

    name: str
    model: nn.Module
    labels: Sequence[str]
    attention_layers: Sequence[str]


@lru_cache(maxsize=4)
def load_network(source: str) -> LoadedNetwork:
    """Load the network that a name or path refers to. The last four are kept in memory.

    Raises:
        ValueError, OSError: there is no such network, or its weights cannot be used. The message says why.
    """
    model = load_classifier(source)
    layers = [name for name, module in acmix_layers(model).items() if module.paths != "convolution"]
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]  # timm's contract
    name = ".".join(filter(None, (cfg.get("architecture"), cfg.get("tag")))) or source
    return LoadedNetwork(name, model, class_names(model).descriptions, layers)


def top_classes(network: LoadedNetwork, image: Image.Image, count: int = 5) -> dict[str, float]:
    """Return the probabilities of the most probable classes, most probable first."""
    with torch.inference_mode():
        probabilities = network.model(prepare_image(image, network.model).tensor)[0].softmax(0)  # (classes,)
    best = probabilities.topk(min(count, len(probabilities)))
    return {network.labels[i]: p for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)}


class Decision(NamedTuple):
    """Why a network decides on a class.

    Attributes:
        seen: the image as the network sees it.
        explanation: the contributions to the score of the most probable class, and the attention of one pixel.
        label: the class in words.
    """

    seen: PreparedImage
    explanation: Explanation
    label: str


def explain_decision(network: LoadedNetwork, image: Image.Image, place: Place | None = None) -> Decision:
    """Explain the most probable class.

    Args:
        network: the network.
        image: the image, of any size.
        place: where attention is shown; by default, where it contributes most.
    """
    seen = prepare_image(image, network.model)
    pixel = pixel_at(place, seen) if place and network.attention_layers else None
    explanation = explain(network.model, seen.tensor, pixel=pixel)
    return Decision(seen, explanation, network.labels[explanation.target])


class Attention(NamedTuple):
    """The attention of one pixel, and the image that it belongs to."""

    seen: PreparedImage
    attention: PixelAttention


def attention_at(network: LoadedNetwork, image: Image.Image, layer: str, place: Place) -> Attention:
    """Return the attention of a place of the image in a layer."""
    seen = prepare_image(image, network.model)
    return Attention(seen, pixel_attention(network.model, seen.tensor, layer, pixel_at(place, seen)))


def pixel_at(place: Place, seen: PreparedImage) -> Pixel:
    """Return the pixel (x, y) at a place of the image that a network sees."""
    height, width = seen.picture.shape[:2]
    return min(int(place[0] * width), width - 1), min(int(place[1] * height), height - 1)


def shipped_examples() -> list[Image.Image]:
    """Return the test images of the shipped classifiers, each once."""
    images: dict[bytes, Image.Image] = {}
    for folder in shipped_classifiers().values():
        batch = safetensors.torch.load_file(folder / "test" / "example.safetensors")["input"]  # (B, C, H, W)
        cfg = read_config(folder)["pretrained_cfg"]
        for picture in without_normalisation(batch, cfg["mean"], cfg["std"]):
            images.setdefault(picture.tobytes(), Image.fromarray(picture))
    return list(images.values())
