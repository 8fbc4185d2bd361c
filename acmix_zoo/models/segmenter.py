"""`Segmenter`: a decoder of segmentation_models_pytorch on any backbone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from acmix_zoo.models.task_kinds import SEGMENTATION
from acmix_zoo.models.task_network import TaskNetwork

_MOST_HALVINGS = 5  # of the encoders of segmentation_models_pytorch
DECODERS = {"fpn": "FPN", "upernet": "UPerNet", "unet": "Unet"}
"""The decoders, by their names in recipes, and the classes of segmentation_models_pytorch."""


class Segmenter(TaskNetwork):
    """Map images (B, C, H, W) to logits (B, num_classes, H, W), for any H and W.

    The decoder reads the feature maps of the backbone from a quarter of the resolution (U-Net: half) down to the last
    one. Images are padded at the right and at the bottom to a multiple of its stride, with zeros, the mean colour.

    Args:
        architecture: name of the backbone, a network of this project or of timm.
        num_classes: number of classes.
        model_kwargs: arguments of the backbone.
        decoder: "fpn" (semantic FPN: Kirillov et al. 2019), "upernet" (Xiao et al. 2018) or "unet" (Ronneberger et al.
            2015).
        decoder_kwargs: arguments of the decoder, those of the class of segmentation_models_pytorch that start with
            `decoder_`.

    Raises:
        ValueError: unknown decoder or argument, or the backbone has too few or too small feature maps.
    """

    kind = SEGMENTATION

    def __init__(
        self,
        architecture: str,
        num_classes: int,
        model_kwargs: Mapping[str, Any] | None = None,
        decoder: Literal["fpn", "upernet", "unet"] = "fpn",
        decoder_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            architecture, num_classes, model_kwargs, {"decoder": decoder, "decoder_kwargs": dict(decoder_kwargs or {})}
        )
        if decoder not in DECODERS:
            raise ValueError(f"unknown decoder {str(decoder)[:60]!r}. Expected {', '.join(DECODERS)}")
        arguments = dict(decoder_kwargs or {})
        if foreign := sorted(name for name in arguments if not name.startswith("decoder_")):
            raise ValueError(
                f"decoder_kwargs has {', '.join(foreign)[:200]}. Expected arguments of "
                f"segmentation_models_pytorch.{DECODERS[decoder]} that start with decoder_"
            )
        reductions = _reductions(architecture, self._model_args)
        depth = round(math.log2(max(reductions)))
        if depth < (1 if decoder == "unet" else 3):
            raise ValueError(
                f"{architecture} only reduces images to 1/{2**depth} of their size, but {decoder} needs a feature map "
                "of 1/8 or smaller. Choose another backbone, or --model.decoder unet"
            )
        if depth > _MOST_HALVINGS:
            raise ValueError(
                f"{architecture} reduces images to 1/{2**depth}. Expected feature maps down to 1/{2**_MOST_HALVINGS}, "
                "the smallest that segmentation_models_pytorch supports. Choose another backbone"
            )
        if min(reductions) > 4:
            raise ValueError(
                f"the largest feature map of {architecture} is 1/{min(reductions)} of the image. Expected at least 1/4 "
                "of it, which segmentation_models_pytorch needs. Choose another backbone, or a smaller patch_size"
            )
        if repeated := [reduction for reduction in reductions if reductions.count(reduction) > 1]:
            raise ValueError(
                f"{architecture} has {len(repeated)} feature maps of 1/{repeated[0]} of the image. The decoder "
                "expects one of each size. Choose another backbone, or leave out output_stride if it is set"
            )
        if decoder == "fpn" and (missing := {2**i for i in range(max(1, depth - 3), depth)} - set(reductions)):
            raise ValueError(
                f"fpn needs a feature map of 1/{min(missing)} of the image, which {architecture} does not have. "
                f"It has {', '.join(f'1/{reduction}' for reduction in reductions)}. Use --model.decoder upernet or unet"
            )
        if decoder == "unet":
            arguments.setdefault("decoder_channels", [min(256, 2 ** (4 + i)) for i in reversed(range(depth))])
        if decoder == "fpn":
            arguments["upsampling"] = 2 ** (depth - 3)  # its largest map is that many times smaller than the image
        try:
            self.net: nn.Module = getattr(smp, DECODERS[decoder])(
                f"tu-{architecture}",
                encoder_depth=depth,
                encoder_weights=None,
                classes=num_classes,
                in_channels=self.in_chans,
                **arguments,
                **{name: value for name, value in self._model_args.items() if name != "in_chans"},
            )
        except TypeError as error:  # the arguments of the backbone are known to be right
            raise ValueError(
                f"the decoder cannot be built with decoder_kwargs={decoder_kwargs}: {error}. Expected arguments of "
                f"segmentation_models_pytorch.{DECODERS[decoder]}"
            ) from error

    @property
    def backbone(self) -> nn.Module:
        return self.net.encoder.model  # type: ignore[union-attr,return-value]

    @property
    def method(self) -> str:
        return str(self.options["decoder"])

    @property
    def head(self) -> nn.Module:
        return self.net.segmentation_head  # type: ignore[return-value]

    @property
    def decoder(self) -> nn.Module:
        """The module between the backbone and the head."""
        return self.net.decoder  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        stride = int(self.net.encoder.output_stride)  # type: ignore[union-attr,arg-type]
        bottom, right = -height % stride, -width % stride
        if bottom or right:
            x = pad(x, (0, right, 0, bottom))
        logits: Tensor = self.net(x)
        return logits[..., :height, :width]

    def example_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Return the logits at every eighth pixel, (B, classes, ⌈H/8⌉, ⌈W/8⌉). All of them would be a large file."""
        return {"logits": self(images)[..., ::8, ::8]}


def _reductions(architecture: str, model_kwargs: Mapping[str, Any]) -> list[int]:
    """Return how many times smaller than the image each feature map of a backbone is."""
    with torch.device("meta"):
        backbone: Any = timm.create_model(architecture, features_only=True, **model_kwargs)
    return list(backbone.feature_info.reduction())
