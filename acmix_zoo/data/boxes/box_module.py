"""`BoxDataModule`: any source of images with boxes as Lightning's training, validation, test and prediction loaders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from acmix_zoo.data.augment import Pixels
from acmix_zoo.data.boxes.box_augment import BoxAugment, scaled_size
from acmix_zoo.data.boxes.box_dataset import BoxBatch, BoxDataset, BoxLoaders
from acmix_zoo.data.boxes.open_boxes import SOURCE_KINDS, open_box_source
from acmix_zoo.data.options import channel_stats, check_probabilities, check_shared_options
from acmix_zoo.data.resumable import ResumableDataModule
from acmix_zoo.data.splits import DEFAULT_VAL_FRACTION


class BoxDataModule(ResumableDataModule):
    """Images with boxes, and possibly masks, from one `source`.

    Batches are `BoxBatch`es: a list of normalised images (3, H, W) of different sizes, and a list of targets as
    torchvision's detectors expect them. Label 0 is the background. In evaluation, images keep their own size, because
    the detector resizes them and returns boxes in pixels of the original image.

    Order, image size and flips depend only on (seed, epoch, image). A resumed run gets the same batches as an
    uninterrupted one, and the images of a step are the same on any number of processes with the same global batch size.
    Evaluation counts every image once on any number of processes.

    Boxes that cannot be used are left out and counted in the summary that is printed before the first step: boxes
    without area, outside of their image, of unknown classes, or without coordinates. Boxes that extend beyond their
    image are clipped. Images without boxes are kept as examples of background.

    Args:
        source: a folder in COCO's format (annotations/instances_train….json, or train/_annotations.coco.json next to
            the images), a folder in the format of Pascal VOC, the id of a Hugging Face data set with a column
            `objects`, or a parquet file or folder of such files with that column.
        image_size: length of an image's shorter side in evaluation, and in training without `multi_scale`, in pixels.
        max_size: maximum length of the longer side. Elongated images have a shorter side below `image_size`.
        multi_scale: lengths of the shorter side in training, one of which is drawn for each image.
        masks: read the mask of each object, for Mask R-CNN.
        box_format: what the numbers of a box in a table are: "xywh" (left, top, width, height) or "xyxy" (left, top,
            right, bottom). COCO and Pascal VOC have a fixed format.
        batch_size: number of images per step and process.
        num_workers: number of processes that load images; 0 to load them in the training process.
        val_fraction: fraction of the training images used for validation if the source has no validation split.
        validation_as_test: for a source whose test annotations are not public: test on its validation split, and split
            the validation images off the training split (`val_fraction`).
        mean, std: mean and standard deviation of the three channels, for pixel values between 0 and 1; ImageNet's by
            default. They have to be those of the pretrained backbone.
        hflip, vflip: probability of a horizontal and of a vertical flip in training.
        max_unreadable: maximum number of unreadable images to skip per process before the run fails.
        predict: an image or a folder of images, for the prediction loader.
        seed: seed of the validation split, the order and the augmentation.

    Attributes:
        category_ids: the number of each class in the annotations; from 1 if they have only names.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: the source has no boxes, or an option is not allowed. The message says what to do.
    """

    expected_source = SOURCE_KINDS
    loaders: BoxLoaders

    def __init__(
        self,
        source: str = "",
        *,
        image_size: int = 800,
        max_size: int = 1333,
        multi_scale: list[int] | None = None,
        masks: bool = False,
        box_format: Literal["xywh", "xyxy"] = "xywh",
        batch_size: int = 2,
        num_workers: int = 0,
        val_fraction: float = DEFAULT_VAL_FRACTION,
        validation_as_test: bool = False,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        hflip: float = 0.5,
        vflip: float = 0.0,
        max_unreadable: int = 100,
        predict: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        positive = {"image_size": image_size, "max_size": max_size, "batch_size": batch_size}
        positive |= {"multi_scale": min(multi_scale)} if multi_scale else {}
        check_shared_options(positive, num_workers, max_unreadable, val_fraction, seed)
        check_probabilities(hflip=hflip, vflip=vflip)
        self.image_size, self.max_size, self.masks, self.box_format = image_size, max_size, masks, box_format
        self.batch_size, self.num_workers, self.max_unreadable = batch_size, num_workers, max_unreadable
        self.seed, self.predict, self.validation_as_test = seed, predict, validation_as_test
        opened = open_box_source(source, masks, box_format)
        self.loaders = BoxLoaders(opened, val_fraction, seed, validation_as_test=validation_as_test)
        self.loaders.evaluation_size = image_size, max_size
        self.class_names = opened.class_names
        self.category_ids = opened.category_ids
        self.input_size = (3, image_size, min(max_size, round(image_size * 4 / 3)))
        self.pixels = Pixels(image_size, *channel_stats(mean, std), "bilinear", 1.0)
        self.augment = BoxAugment(self.pixels, tuple(multi_scale or [image_size]), max_size, hflip, vflip)

    def describe_size(self) -> str:
        sides = sorted({min(self.augment.sizes), max(self.augment.sizes)})
        shorter = " to ".join(map(str, sides))
        return f"images are resized to a shorter side of {shorter} pixels and a longer side of at most {self.max_size}"

    def describe(self) -> dict[str, Any]:
        """Return what the record of a run states about its data, with the category ids and the format of boxes."""
        description = {**super().describe(), "category_ids": list(self.category_ids)}
        return description if self.box_format == "xywh" else {**description, "box_format": self.box_format}

    @classmethod
    def for_weights(cls, source: str, config: Mapping[str, Any]) -> BoxDataModule:
        """Return the data module that resizes and normalises images, and reads boxes, as weights expect them."""
        cfg, options = config["pretrained_cfg"], config["task_options"]
        dataset = config["acmix_zoo"].get("dataset") or {}
        return cls(
            source, image_size=options["image_size"], max_size=options["max_size"],
            masks=options["detector"] == "mask_rcnn", mean=tuple(cfg["mean"]), std=tuple(cfg["std"]),
            box_format=dataset.get("box_format", "xywh"), validation_as_test=dataset.get("validation_as_test", False),
            **dataset.get("val_split", {}),
        )  # fmt: skip

    # ---- batches

    def example_images(self) -> Tensor:
        """Return an image of `example_batch`, resized as in evaluation, as (1, 3, H, W), or noise without one."""
        images = self.example_batch(1).images
        if not images:
            return torch.randn(1, *self.input_size, generator=torch.Generator().manual_seed(0))
        size = scaled_size(images[0].shape[1], images[0].shape[2], self.image_size, self.max_size)
        return self.pixels.normalize(resize(images[0], list(size), antialias=True)[None])

    def example_batch(self, count: int) -> BoxBatch:
        """Return the first images of the test split, or of the validation split without one, as uint8 in their own
        size."""
        split = next((self.loaders.splits[name] for name in ("test", "val") if name in self.loaders.splits), None)
        if split is None:
            return BoxBatch([], [])
        augment: Any = self.augment.for_evaluation()
        dataset = BoxDataset(split, augment, max_unreadable=self.max_unreadable, raw=True)
        return dataset.__getitems__(range(min(count, len(dataset))))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalise the images of a `BoxBatch`: uint8 → float32, or the trainer's precision."""
        if not isinstance(batch, BoxBatch) or batch.images[0].dtype != torch.uint8:
            return batch
        images = [self.pixels.normalize(image[None])[0] for image in batch.images]
        return BoxBatch(self.trainer.precision_plugin.convert_input(images) if self.trainer else images, batch.targets)
