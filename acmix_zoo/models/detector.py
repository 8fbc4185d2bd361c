"""`Detector`: torchvision's RetinaNet, FCOS, Faster R-CNN or Mask R-CNN with a feature pyramid on any backbone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import MultiScaleRoIAlign

from acmix_zoo.models.detector_parts import Float32Anchors, Float32Pool, ImageScaling, to_float32
from acmix_zoo.models.pyramid import PyramidBackbone
from acmix_zoo.models.task_kinds import DETECTION
from acmix_zoo.models.task_network import TaskNetwork

DetectorName = Literal["retinanet", "fcos", "faster_rcnn", "mask_rcnn"]


class _Design(NamedTuple):
    """What distinguishes a detector from the others.

    Attributes:
        network: the class of torchvision.
        build: builds it from a pyramid, the number of classes including the background, an anchor generator, and
            further arguments of the class.
        strides: the default strides of its pyramid.
        anchor_scale: side length of the smallest anchor of a level divided by the level's stride.
        anchor_factors: factors on that side length, one for each anchor.
        aspect_ratios: height / width of the anchors.
    """

    network: type[nn.Module]
    build: Callable[..., nn.Module]
    strides: tuple[int, ...]
    anchor_scale: float
    anchor_factors: tuple[float, ...] = (1.0,)
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)


def _retinanet(pyramid: PyramidBackbone, classes: int, anchors: AnchorGenerator, **kwargs: Any) -> nn.Module:
    """Return a RetinaNet with group norms and GIoU loss, as in torchvision's `retinanet_resnet50_fpn_v2`."""
    count = anchors.num_anchors_per_location()[0]
    head = RetinaNetHead(pyramid.out_channels, count, classes, norm_layer=partial(nn.GroupNorm, 32))
    head.regression_head._loss_type = "giou"
    network: nn.Module = RetinaNet(pyramid, classes, anchor_generator=anchors, head=head, **kwargs)
    return network


def _fcos(pyramid: PyramidBackbone, classes: int, anchors: AnchorGenerator, **kwargs: Any) -> nn.Module:
    network: nn.Module = FCOS(pyramid, classes, anchor_generator=anchors, **kwargs)
    return network


def _faster_rcnn(pyramid: PyramidBackbone, classes: int, anchors: AnchorGenerator, **kwargs: Any) -> nn.Module:
    pool = Float32Pool(pyramid.body_levels, output_size=7, sampling_ratio=2)
    network: nn.Module = FasterRCNN(pyramid, classes, rpn_anchor_generator=anchors, box_roi_pool=pool, **kwargs)
    return network


def _mask_rcnn(pyramid: PyramidBackbone, classes: int, anchors: AnchorGenerator, **kwargs: Any) -> nn.Module:
    pool, mask_pool = (Float32Pool(pyramid.body_levels, output_size=n, sampling_ratio=2) for n in (7, 14))
    network: nn.Module = MaskRCNN(
        pyramid, classes, rpn_anchor_generator=anchors, box_roi_pool=pool, mask_roi_pool=mask_pool, **kwargs
    )
    return network


_RCNN: dict[str, Any] = {"strides": (4, 8, 16, 32, 64), "anchor_scale": 8}
_DESIGNS: Mapping[str, _Design] = {
    "retinanet": _Design(RetinaNet, _retinanet, (8, 16, 32, 64, 128), 4, (1.0, 2 ** (1 / 3), 2 ** (2 / 3))),
    "fcos": _Design(FCOS, _fcos, (8, 16, 32, 64, 128), 1, aspect_ratios=(1.0,)),  # one point per location
    "faster_rcnn": _Design(FasterRCNN, _faster_rcnn, **_RCNN),
    "mask_rcnn": _Design(MaskRCNN, _mask_rcnn, **_RCNN),
}


_OTHER_OPTIONS: Mapping[str, str] = {
    "backbone": "the option for the backbone",
    "num_classes": "num_classes of the detector, which `acmix-zoo fit` takes from the data",
    "min_size": "image_size (data.image_size on the command line)",
    "max_size": "max_size (data.max_size on the command line)",
    "image_mean": "mean of the data module, which normalises the images",
    "image_std": "std of the data module, which normalises the images",
    "anchor_generator": "anchor_scale and strides",
    "rpn_anchor_generator": "anchor_scale and strides",
    "box_roi_pool": "strides",
    "mask_roi_pool": "strides",
}
"""What to use in place of the arguments of torchvision's classes that this project sets."""


class Detector(TaskNetwork):
    """A detector of torchvision, in `self.detector`, with a feature pyramid on a backbone.

    In training mode, it maps a list of normalised images (3, H, W) and a list of targets to a dict of losses. In
    evaluation mode, it maps images to a list of detections: boxes (N, 4) in pixels of the given image, labels (N,),
    scores (N,) and, from Mask R-CNN, masks (N, 1, H, W). Targets are described in torchvision's documentation. Label 0
    is the background, so class number c has the label c + 1.

    In evaluation, images are resized, with antialiasing. In training, they keep the size that the data module has given
    them. Unlike torchvision's own detectors, this one does not normalise images.

    Args:
        architecture: name of the backbone, a network of this project or of timm.
        num_classes: number of classes, without the background.
        model_kwargs: arguments of the backbone.
        detector: "retinanet", "fcos", "faster_rcnn" or "mask_rcnn".
        strides: strides of the feature pyramid. The default is 8 to 128 for RetinaNet and FCOS, and 4 to 64 for R-CNN.
            The pyramid adds strides that are larger than those of the backbone.
        channels: channels of the feature pyramid and of the heads of RetinaNet and FCOS, a multiple of 32, at least 64.
        anchor_scale: side length of a level's smallest anchor divided by the level's stride; 4 for RetinaNet and 8 for
            R-CNN by default. FCOS has no anchors.
        frozen_norms: keep the statistics and weights of the backbone's batch norms, as suits small batches and a
            pretrained backbone.
        image_size: length of an image's shorter side in evaluation, in pixels.
        max_size: maximum length of its longer side. Elongated images have a shorter side below `image_size`.
        detector_kwargs: further arguments of torchvision's class, such as {score_thresh: 0.1}.

    Raises:
        ValueError: unknown detector, strides that the backbone does not have, or an option that does not fit the
            detector.
    """

    kind = DETECTION

    def __init__(
        self,
        architecture: str,
        num_classes: int,
        model_kwargs: Mapping[str, Any] | None = None,
        detector: DetectorName = "retinanet",
        strides: Sequence[int] | None = None,
        channels: int = 256,
        anchor_scale: float | None = None,
        frozen_norms: bool = False,
        image_size: int = 800,
        max_size: int = 1333,
        detector_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        options = {
            "detector": detector, "strides": list(strides) if strides else None, "channels": channels,
            "anchor_scale": anchor_scale, "frozen_norms": frozen_norms, "image_size": image_size, "max_size": max_size,
            "detector_kwargs": dict(detector_kwargs or {}) or None,
        }  # fmt: skip
        super().__init__(architecture, num_classes, model_kwargs, options)
        if detector not in _DESIGNS:
            raise ValueError(f"unknown detector={detector!r}. Expected one of {', '.join(_DESIGNS)}")
        self.is_one_stage = detector in ("retinanet", "fcos")
        if detector == "fcos" and anchor_scale is not None:
            raise ValueError(f"anchor_scale={anchor_scale} has no effect, because FCOS has no anchors. Remove it")
        if self.is_one_stage and (channels % 32 or channels < 64):  # a group of one value has no variance
            raise ValueError(
                f"channels={channels} cannot be divided into 32 groups of two or more for the norms of {detector}. Use "
                "a multiple of 32, at least 64, such as 256"
            )
        if channels < 1:
            raise ValueError(f"channels={channels} is not positive. Use a number such as 256")
        design = _DESIGNS[detector]
        if taken := [name for name in _OTHER_OPTIONS if name in (detector_kwargs or {})]:
            raise ValueError(
                f"detector_kwargs has {taken[0]}, which has an option of its own. Expected other arguments. Use "
                f"{_OTHER_OPTIONS[taken[0]]}"
            )
        parameters = inspect.signature(design.network).parameters  # torchvision ignores unknown arguments
        known = [name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
        if unknown := sorted(set(detector_kwargs or {}) - set(known)):
            raise ValueError(
                f"torchvision's {design.network.__name__} has no argument {', '.join(unknown)}. Expected "
                f"detector_kwargs such as {{{'' if self.is_one_stage else 'box_'}nms_thresh: 0.5}}"
            )
        strides = tuple(strides or design.strides)
        pyramid = PyramidBackbone(architecture, self._model_args, strides, channels, self.is_one_stage)
        if frozen_norms:
            pyramid.body = freeze_batch_norm_2d(pyramid.body)
        scale = anchor_scale or design.anchor_scale
        sizes = tuple(tuple(scale * stride * factor for factor in design.anchor_factors) for stride in strides)
        anchors = Float32Anchors(sizes, (design.aspect_ratios,) * len(strides))
        self.detector = design.build(pyramid, num_classes + 1, anchors, **detector_kwargs or {})
        self.detector.transform = ImageScaling(image_size, max_size)
        for name, module in self.detector.named_modules():
            if name in _HEADS:
                module.register_forward_hook(to_float32)

    @property
    def backbone(self) -> nn.Module:
        return self.detector.backbone.body  # type: ignore[union-attr,return-value]

    @property
    def method(self) -> str:
        return str(self.options["detector"])

    @property
    def head(self) -> nn.Module:
        detector: Any = self.detector
        if self.is_one_stage:
            return detector.head.classification_head.cls_logits  # type: ignore[no-any-return]
        heads = detector.roi_heads
        return nn.ModuleList([heads.box_predictor, *([heads.mask_predictor] if heads.has_mask() else [])])

    def forward(self, images: Tensor | Sequence[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Return losses in training mode, and detections otherwise.

        Args:
            images: normalised images (3, H, W) of any sizes, or (B, 3, H, W).
            targets: boxes, labels and, for Mask R-CNN, masks of each image; only in training mode.
        """
        if isinstance(images, Tensor) and images.is_meta:  # only the cost is counted, and boxes cannot be selected
            return self.example_outputs(images)
        if not self.training and not len(images):
            return []
        is_padded = not isinstance(images, Tensor) and len({image.shape for image in images}) > 1
        if self.training or not is_padded or isinstance(self, FSDPModule):  # sharded: processes take the same steps
            return self.detector(list(images), targets)
        # The padding to a common size would change the statistics of the norms, and so the detections.
        return [self.detector([image])[0] for image in images]

    def example_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs of the heads before boxes are selected: for each location of the pyramid and, for R-CNN,
        for the four quarters of each image.

        Detections would be a poor check of the weights, because a small difference can add or remove one.

        Args:
            images: (B, 3, H, W), normalised.
        """
        features = self.detector.backbone(images)  # type: ignore[operator]
        maps = list(features.values())
        if self.is_one_stage:
            return dict(self.detector.head(maps))  # type: ignore[operator]
        objectness, deltas = self.detector.rpn.head(maps)  # type: ignore[operator,union-attr]
        heads: Any = self.detector.roi_heads
        pooled = _pool_quarters(heads.box_roi_pool, features, images, _PROPOSALS)
        classes, boxes = heads.box_predictor(heads.box_head(pooled))
        outputs = {"classes": classes, "boxes": boxes}
        for name, each in (("objectness", objectness), ("proposals", deltas)):
            outputs[name] = torch.cat([level.flatten(1) for level in each], 1)
        if heads.has_mask():
            pooled = _pool_quarters(heads.mask_roi_pool, features, images, _MASKS)
            outputs["masks"] = heads.mask_predictor(heads.mask_head(pooled))
        return outputs


_PROPOSALS, _MASKS = 1000, 100  # per image, as torchvision counts the cost of R-CNN


def _pool_quarters(pool: MultiScaleRoIAlign, features: dict[str, Tensor], images: Tensor, count: int) -> Tensor:
    """Return the pooled features of the four quarters of each image: (4·B, C, h, w).

    On the meta device, where only the cost is counted, return features of `count` boxes per image instead.
    """
    channels, size = next(iter(features.values())).shape[1], pool.output_size
    if images.is_meta:
        return images.new_empty(len(images) * count, channels, *size)
    height, width = images.shape[-2:]
    corners = images.new_tensor([[0, 0], [0.5, 0], [0, 0.5], [0.5, 0.5]])
    quarters = torch.cat([corners, corners + 0.5], 1) * images.new_tensor([width, height, width, height])  # (4, 4)
    pooled: Tensor = pool(features, [quarters] * len(images), [(height, width)] * len(images))
    return pooled


_HEADS = ("head", "rpn.head", "roi_heads.box_predictor", "roi_heads.mask_predictor")
