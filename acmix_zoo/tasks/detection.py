"""Detection: a detector of torchvision on any backbone of this project or of timm.

data = BoxDataModule("folder/with/images/and/boxes", image_size=480, max_size=640)
task = DetectionTask("acmix_resnet50", data.num_classes, detector="fcos", image_size=480, max_size=640)
L.Trainer(max_epochs=12).fit(task, data)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from acmix_zoo.data.boxes.box_dataset import BoxBatch
from acmix_zoo.data.boxes.box_plots import plot_detections
from acmix_zoo.data.boxes.coco_api import coco_api
from acmix_zoo.models.detector import DetectorName
from acmix_zoo.models.task_kinds import DETECTION
from acmix_zoo.tasks.average_precision import AveragePrecision
from acmix_zoo.tasks.metrics import TaskMetrics
from acmix_zoo.tasks.optim import warmup_steps
from acmix_zoo.tasks.sharded import is_sharded
from acmix_zoo.tasks.task import Task
from acmix_zoo.tasks.task_views import ShownTarget

_EXAMPLES = 4  # images in the plot of a run


class ImageDetections(NamedTuple):
    """The detections in one image.

    Attributes:
        image: position of the image in the data's `predict_paths`; -1 for a padding image.
        size: its (height, width) in pixels.
        boxes: (N, 4): left, top, right and bottom in pixels.
        classes: (N,) int64, class numbers from 0.
        scores: (N,) between 0 and 1, in decreasing order.
        masks: (N, H, W) bool from Mask R-CNN; else None.
    """

    image: int
    size: tuple[int, int]
    boxes: Tensor
    classes: Tensor
    scores: Tensor
    masks: Tensor | None

    def above(self, threshold: float) -> ImageDetections:
        """Return the detections whose score is at least `threshold`."""
        kept = self.scores >= threshold  # (N,)
        masks = self.masks[kept] if self.masks is not None else None
        return ImageDetections(self.image, self.size, self.boxes[kept], self.classes[kept], self.scores[kept], masks)


class DetectionTask(Task):
    """Train, evaluate and apply a detector: RetinaNet, FCOS, Faster R-CNN or Mask R-CNN.

    The network is `self.model`, an `acmix_zoo.models.detector.Detector`.

    Logs train/loss. For val/ and test/, logs the mean average precision as COCO defines it (`map`), at an IoU of 0.5
    (`map50`) and 0.75 (`map75`), and for small, medium and large objects. For Mask R-CNN, also logs those of the masks
    with the prefix `mask_`. Keeps the AP and AP50 of the boxes of each class in `class_scores`.

    Args:
        model: name of the backbone, a model of this project or of timm, or a weight folder.
        num_classes: number of classes, without the background; the command line takes it from the data.
        pretrained: true, a tag, a weight folder or a checkpoint file, see `acmix_zoo.create_model`. Weights of a
            classifier go into the backbone, and those of a detector into the whole network.
        model_kwargs: further arguments of the backbone, such as drop_path_rate.
        detector: "retinanet", "fcos", "faster_rcnn" or "mask_rcnn". Mask R-CNN needs `data.masks`.
        strides: strides of the feature pyramid; by default 8 to 128 for RetinaNet and FCOS, and 4 to 64 for R-CNN.
        channels: channels of the feature pyramid and of the heads of RetinaNet and FCOS, a multiple of 32, at least 64.
        anchor_scale: side length of a level's smallest anchor divided by its stride; by default 4 for RetinaNet and 8
            for R-CNN.
        frozen_norms: keep the statistics and weights of the backbone's batch norms, as suits small batches and a
            pretrained backbone.
        image_size: length of an image's shorter side in evaluation; the command line takes it from the data.
        max_size: maximum length of its longer side; the command line takes it from the data.
        detector_kwargs: further arguments of torchvision's class, such as {score_thresh: 0.1}.
        decay_epochs: multiply the learning rate by 0.1 at the end of these epochs, instead of a cosine schedule.
        kwargs: optimiser, learning rate and everything else that all tasks share, see `acmix_zoo.tasks.Task`.

    Raises:
        ValueError: unknown model or weights (from create_model), or an impossible setting.
    """

    kind = DETECTION
    FROM_DATA = ("num_classes", "image_size", "max_size")

    def __init__(
        self,
        model: str,
        num_classes: int = 80,
        pretrained: bool | str = False,
        model_kwargs: dict[str, Any] | None = None,
        *,
        detector: DetectorName = "retinanet",
        strides: list[int] | None = None,
        channels: int = 256,
        anchor_scale: float | None = None,
        frozen_norms: bool = False,
        image_size: int = 800,
        max_size: int = 1333,
        detector_kwargs: dict[str, Any] | None = None,
        decay_epochs: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        coco_api()  # raise an error before the training, not at the first validation
        super().__init__(model, num_classes, pretrained, model_kwargs, **kwargs)

    @property
    def has_masks(self) -> bool:
        """Whether the detector predicts masks."""
        return bool(self.hparams["detector"] == "mask_rcnn")

    def configure_losses(self) -> None:
        """Do nothing, because the detector contains its losses."""

    def configure_metrics(self) -> None:
        """Create the metrics of each split."""
        self.val_metrics = AveragePrecision(self.num_classes, self.has_masks)
        self.test_metrics = AveragePrecision(self.num_classes, self.has_masks)

    def make_schedule(self, total: int, epoch: float) -> Callable[[int], float]:
        """Return the schedule of `decay_epochs`, or else the cosine of all tasks."""
        h = self.hparams
        if not h["decay_epochs"]:
            return super().make_schedule(total, epoch)
        warmup = round(epoch * h["warmup_epochs"])
        drops = [round(epoch * number) for number in h["decay_epochs"]]
        return warmup_steps(warmup, drops, h["warmup_lr"] / h["lr"])

    def setup(self, stage: str) -> None:
        """Check that the data has the masks that the detector needs."""
        data = getattr(self.trainer, "datamodule", None)
        if stage != "predict" and self.has_masks != getattr(data, "masks", self.has_masks):
            needs = "needs masks" if self.has_masks else "has no use for masks"
            raise ValueError(
                f"{self.hparams['detector']} {needs}, but data.masks is {str(not self.has_masks).lower()}. Set "
                f"--data.masks {str(self.has_masks).lower()}, or choose a different --model.detector"
            )
        super().setup(stage)

    def forward(self, x: Any) -> Any:
        """Map a list of images (3, H, W), or images (B, 3, H, W), to detections, as `Detector` does."""
        return self.model(x)

    def batch_loss(self, batch: BoxBatch) -> Tensor:
        """Return the sum of the detector's losses."""
        losses: dict[str, Tensor] = self.model(batch.images, batch.targets)
        return torch.stack(list(losses.values())).sum()

    def update_metrics(self, metrics: TaskMetrics, batch: BoxBatch) -> None:
        """Count the images of a batch, except padding images."""
        assert isinstance(metrics, AveragePrecision)
        for detections, target in zip(self(batch.images), batch.targets, strict=True):
            if (number := int(target["image"])) >= 0:
                metrics.add(number, detections, target)

    def show_target(self, picture: Image.Image, batch: Any, number: int, class_names: Sequence[str]) -> ShownTarget:
        target, draw = batch.targets[number], ImageDraw.Draw(picture)
        for box in target["boxes"].tolist():
            draw.rectangle(box, outline="red", width=max(1, picture.width // 150))
        present = Counter(class_names[label - 1] for label in target["labels"].tolist())
        return ShownTarget(picture, ", ".join(f"{count} {name}" for name, count in present.items()))

    def predict_step(self, batch: BoxBatch, batch_idx: int) -> list[ImageDetections]:
        """Return the detections in each image."""
        found = self(batch.images)
        return [
            ImageDetections(
                int(target["image"]),
                (image.shape[-2], image.shape[-1]),
                each["boxes"].float().cpu(),
                each["labels"].cpu() - 1,
                each["scores"].float().cpu(),
                each["masks"].squeeze(1).cpu() > 0.5 if self.has_masks else None,
            )
            for image, target, each in zip(batch.images, batch.targets, found, strict=True)
        ]

    @torch.no_grad()
    def plot_examples(self, data: Any, path: Path) -> None:
        """Draw the annotated boxes of a few images, and next to them the detections.

        Nothing is drawn for a network that is sharded over processes, because all of them would have to take part.
        """
        batch: BoxBatch = data.example_batch(_EXAMPLES)
        if not batch.images or is_sharded(self.model):
            return
        was_training, parameter = self.training, next(self.model.parameters())
        self.eval()
        images = [data.pixels.normalize(image[None])[0].to(parameter) for image in batch.images]  # device and dtype
        found = self(images)
        self.train(was_training)
        plot_detections(batch, found, data.class_names, path)
