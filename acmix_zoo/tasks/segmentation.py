"""Semantic segmentation: a decoder on any backbone of this project or of timm.

trainer = L.Trainer(max_epochs=50)
data = MaskDataModule("folder/with/images/and/masks", crop_size=(256, 256))
trainer.fit(SegmentationTask("acmix_resnet50", num_classes=data.num_classes, decoder="fpn"), data)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from acmix_zoo.data.masks.mask_classes import palette_image
from acmix_zoo.data.masks.mask_dataset import MaskBatch, MaskDataset
from acmix_zoo.data.masks.mask_plots import MaskExample, plot_masks
from acmix_zoo.models.task_kinds import SEGMENTATION
from acmix_zoo.tasks.dense_evaluation import Network, slide, with_mirror
from acmix_zoo.tasks.hyperparameters import check_class_weights
from acmix_zoo.tasks.metrics import TaskMetrics
from acmix_zoo.tasks.segmentation_metrics import SegmentationMetrics, WeightedLoss
from acmix_zoo.tasks.sharded import is_sharded
from acmix_zoo.tasks.task import Task
from acmix_zoo.tasks.task_views import ShownTarget

_EXAMPLES = 6  # images in predictions.png


class MaskPrediction(NamedTuple):
    """The predicted mask of an image.

    Attributes:
        position: position of the image in the data's `predict_paths`; -1 for a padding image.
        mask: (H, W) uint8, the class of each pixel of the image at its original size.
    """

    position: int
    mask: Tensor


class SegmentationTask(Task):
    """Train, evaluate and apply a segmenter. The network is `self.model`, a `Segmenter`.

    Logs train/loss. For val/ and test/, logs the loss (plain cross-entropy), miou and pixel_accuracy, and keeps the IoU
    of each class in `class_scores`. All of them are computed at the original size of the masks. Pixels of the value 255
    have no class: they are neither trained on nor counted.

    Args:
        model: name of the backbone, a model of this project or of timm, or a weight folder of a segmenter.
        num_classes: number of classes; the command line takes it from the data.
        pretrained: weights of the backbone, or of a segmenter with the same backbone and decoder: true, a tag, a weight
            folder or a checkpoint file, see `acmix_zoo.create_model`.
        model_kwargs: further arguments of the backbone, such as drop_path_rate.
        decoder: "fpn" (semantic FPN), "upernet" or "unet".
        decoder_kwargs: arguments of the decoder, such as {decoder_pyramid_channels: 128}.
        losses: the weight of each loss in the sum that is minimised: cross_entropy, dice, lovasz.
        class_weights: the weight of each class in the cross-entropy. null: equal weights.
        window: (height, width) of the windows in which images are evaluated, in pixels. null: the whole image at once.
        window_overlap: fraction of a window that the next one also covers.
        flip_eval: in evaluation, average the logits of an image and its mirror image.
        freeze_backbone: train only the decoder and the head. The backbone and its batch-norm statistics stay unchanged.
        kwargs: optimiser, learning rate and everything else that all tasks share, see `acmix_zoo.tasks.Task`.

    Raises:
        ModuleNotFoundError: segmentation_models_pytorch is missing. The message says how to install it.
        ValueError: unknown model or weights (from create_model), or an impossible setting.
    """

    kind = SEGMENTATION

    def __init__(
        self,
        model: str,
        num_classes: int = 1000,
        pretrained: bool | str = False,
        model_kwargs: dict[str, Any] | None = None,
        *,
        decoder: Literal["fpn", "upernet", "unet"] = "fpn",
        decoder_kwargs: dict[str, Any] | None = None,
        losses: dict[str, float] | None = None,
        class_weights: list[float] | None = None,
        window: tuple[int, int] | None = None,
        window_overlap: float = 1 / 3,
        flip_eval: bool = False,
        freeze_backbone: bool = False,
        **kwargs: Any,
    ) -> None:
        if window is not None and (len(window) != 2 or min(window) < 1):
            raise ValueError(f"window={list(window)} is not a size. Expected [height, width] in pixels, or null")
        if class_weights is not None:
            check_class_weights(class_weights, num_classes)
        super().__init__(model, num_classes, pretrained, model_kwargs, **kwargs)

    def configure_losses(self) -> None:
        """Create the training loss."""
        h = self.hparams
        self.train_criterion = WeightedLoss(h["losses"] or {"cross_entropy": 1.0}, h["class_weights"])

    def configure_metrics(self) -> None:
        """Create the metrics of each split."""
        self.val_metrics = SegmentationMetrics(self.num_classes)
        self.test_metrics = SegmentationMetrics(self.num_classes)

    def trained_modules(self) -> Sequence[nn.Module] | None:
        """Return the decoder and the head if the backbone is frozen, and None otherwise."""
        model: Any = self.model
        return [model.decoder, model.head] if self.hparams["freeze_backbone"] else None

    @classmethod
    def evaluation_options(cls, hparams: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of sliding windows and mirror images that differ from the defaults."""
        defaults = {"window": None, "flip_eval": False}
        changed = {name: hparams[name] for name, value in defaults.items() if hparams[name] != value}
        return {**changed, "window_overlap": hparams["window_overlap"]} if "window" in changed else changed

    def show_target(self, picture: Image.Image, batch: Any, number: int, class_names: Sequence[str]) -> ShownTarget:
        mask = batch[1][number].cpu().numpy()
        colours = palette_image(mask, len(class_names)).convert("RGB").resize(picture.size, Image.Resampling.NEAREST)
        present = [class_names[i] for i in np.unique(mask) if i < len(class_names)]
        return ShownTarget(Image.blend(picture, colours, 0.5), ", ".join(present))

    def batch_loss(self, batch: MaskBatch) -> Tensor:
        """Return the loss of a batch."""
        loss: Tensor = self.train_criterion(self(batch.images).float(), batch.masks.long())
        return loss

    def predict_logits(self, images: Tensor, sizes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return the logits of each image, (classes, h, w), with sliding windows and mirror images if they are set.

        Images of different sizes are processed one by one. Otherwise, a prediction would depend on the padding, and so
        on the other images of the batch. Only a network that is sharded over processes gets all of them at once,
        because the processes have to take the same number of steps.

        Args:
            images: (B, 3, H, W), padded at the right and at the bottom.
            sizes: the height h and the width w of each image before padding. Further numbers are not used.
        """
        is_padded = any((h, w) != images.shape[2:] for h, w, *_ in sizes)
        if is_padded and not is_sharded(self.model):
            return [self._evaluate(x[None, :, :h, :w])[0] for x, (h, w, *_) in zip(images, sizes, strict=True)]
        return [own[:, :h, :w] for own, (h, w, *_) in zip(self._evaluate(images), sizes, strict=True)]

    def _evaluate(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes, H, W) of images (B, 3, H, W) in float32."""

        def network(x: Tensor) -> Tensor:
            logits: Tensor = self(x).float()  # sums over windows would lose digits in half precision
            return logits

        evaluate: Network = network
        if (window := self.hparams["window"]) is not None:
            evaluate = partial(slide, network, window=tuple(window), overlap=self.hparams["window_overlap"])
        return with_mirror(evaluate, images) if self.hparams["flip_eval"] else evaluate(images)

    def update_metrics(self, metrics: TaskMetrics, batch: MaskBatch) -> None:
        """Count the images of a batch. Padding images have no pixel with a class."""
        assert isinstance(metrics, SegmentationMetrics)
        sizes = batch.sizes.tolist()
        logits = self.predict_logits(batch.images, sizes)
        for own, mask, (*_, height, width) in zip(logits, batch.masks, sizes, strict=True):
            metrics.add_image(resize_logits(own, (height, width)), mask[:height, :width].long())

    def predict_step(self, batch: MaskBatch, batch_idx: int) -> list[MaskPrediction]:
        """Return the predicted mask of each image, at its original size."""
        sizes = batch.sizes.tolist()
        logits = self.predict_logits(batch.images, sizes)
        return [
            MaskPrediction(number, _classes(own, (height, width)).cpu())
            for own, (*_, height, width), number in zip(logits, sizes, batch.indices.tolist(), strict=True)
        ]

    @torch.no_grad()
    def plot_examples(self, data: Any, path: Path) -> None:
        """Draw validation (or training) images, their masks and the predicted ones, side by side.

        Nothing is drawn for a network that is sharded over processes, because all of them would have to take part.
        """
        if is_sharded(self.model):
            return
        split = data.splits.get("val", data.splits["train"])
        dataset = MaskDataset(split, data.augment.for_evaluation(), raw=True, max_unreadable=split.size)
        was_training = self.training
        self.eval()
        examples = []
        for number in range(min(_EXAMPLES, len(dataset))):
            batch: MaskBatch = dataset.__getitems__([number * len(dataset) // min(_EXAMPLES, len(dataset))])
            images = data.pixels.normalize(batch.images).to(next(self.model.parameters()))  # device and dtype
            (logits,) = self.predict_logits(images, batch.sizes.tolist())
            mask = batch.masks[0]
            found = _classes(logits, (mask.shape[0], mask.shape[1])).cpu()
            examples.append(MaskExample(batch.images[0].numpy(), mask.numpy(), found.numpy()))
        self.train(was_training)
        plot_masks(examples, data.class_names, path)


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return logits (classes, h, w) at another size, (classes, H, W), unchanged if they have it."""
    if tuple(logits.shape[1:]) == size:
        return logits
    return interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]


def _classes(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the class of each pixel, (H, W) uint8, from logits (classes, h, w)."""
    return resize_logits(logits, size).argmax(0).to(torch.uint8)
