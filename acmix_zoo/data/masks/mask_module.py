"""`MaskDataModule`: any source of images with masks as loaders for training, validation, test and prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from acmix_zoo.data.augment import Pixels
from acmix_zoo.data.masks.class_list import ClassOptions
from acmix_zoo.data.masks.mask_augment import MaskAugment
from acmix_zoo.data.masks.mask_dataset import MaskBatch, MaskLoaders
from acmix_zoo.data.masks.mask_images import MaskSource
from acmix_zoo.data.masks.mask_sources import SOURCE_KINDS, open_mask_source
from acmix_zoo.data.options import channel_stats, check_probabilities, check_shared_options
from acmix_zoo.data.resumable import ResumableDataModule
from acmix_zoo.data.splits import DEFAULT_VAL_FRACTION, Split


class MaskDataModule(ResumableDataModule):
    """Images with masks from one `source`, for semantic segmentation.

    Batches are `MaskBatch`es: images (B, 3, H, W) float32, masks (B, h, w) uint8 with the class of each pixel or 255,
    the sizes before padding, and the position of each image. In evaluation, images keep their own size, or are resized
    to `eval_resize`, and masks always keep theirs, so that scores are those at the original resolution.

    The order and augmentation of the images depend only on (seed, epoch). A resumed run gets the same batches as an
    uninterrupted one, and the images of a step are the same on any number of processes with the same global batch size.
    Evaluation counts every image once on any number of processes.

    Before the first step, every mask is decoded. Masks that are missing, of another size or with unknown values are
    counted and named.

    Args:
        source: a folder of images and masks (images/train/1.jpg with masks/train/1.png, train/images and
            train/masks, or the layout of Pascal VOC), a parquet file or a folder of such files, or the id of a Hugging
            Face data set.
        crop_size: (height, width) of training images, in pixels.
        resize: smallest and largest length of the shorter side in training, in pixels; one is drawn for each image
            before it is cropped. null: images keep their size.
        eval_resize: length of the shorter side in evaluation and prediction, in pixels. null: images keep their size.
        batch_size: number of images per step and process.
        num_workers: number of processes that load images; 0 to load them in the training process.
        class_names: the names of the classes, in the order of the values of mask pixels.
        classes_file: text file with one class per line, with a colour for RGB masks ("128 64 128 road") or for grey
            masks whose values are not 0, 1, 2 and so on ("255 255 255 road"). By default, classes.txt in the folder of
            the data set.
        first_class_value: value of mask pixels of the first class.
        ignore_values: values of mask pixels that belong to no class; these are neither trained on nor counted.
        mask_column: mask column of a table that has several image columns.
        val_fraction: fraction of the images used for validation if the source has no validation split; 0 for none.
        validation_as_test: for a source whose test masks are not public: test on its validation split, and split the
            validation images off the training split (`val_fraction`).
        mean, std: mean and standard deviation of the three channels, for pixel values between 0 and 1; ImageNet's by
            default.
        hflip: probability of a horizontal flip.
        color_jitter: change brightness, contrast, saturation and hue of training images at random, and the order of
            their colour channels.
        max_unreadable: maximum number of unreadable images to skip per process before the run fails.
        predict: an image or a folder of images, for the prediction loader.
        seed: seed of the validation split, the order and the augmentation.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: the source has no masks, or an option is not allowed. The message says what to do.
    """

    expected_source = SOURCE_KINDS
    loaders: MaskLoaders

    def __init__(
        self,
        source: str = "",
        *,
        crop_size: tuple[int, int] = (512, 512),
        resize: tuple[int, int] | None = None,
        eval_resize: int | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        class_names: list[str] | None = None,
        classes_file: str | None = None,
        first_class_value: int = 0,
        ignore_values: list[int] = [255],  # noqa: B006  # never changed
        mask_column: str | None = None,
        val_fraction: float = DEFAULT_VAL_FRACTION,
        validation_as_test: bool = False,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        hflip: float = 0.5,
        color_jitter: bool = False,
        max_unreadable: int = 100,
        predict: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        positive = {"batch_size": batch_size} | ({"eval_resize": eval_resize} if eval_resize is not None else {})
        check_shared_options(positive, num_workers, max_unreadable, val_fraction, seed)
        check_probabilities(hflip=hflip)
        if len(crop_size) != 2 or min(crop_size) < 1:
            raise ValueError(
                f"crop_size={list(crop_size)} is not a size. Expected [height, width] in pixels, like [512, 512]"
            )
        if resize is not None and (len(resize) != 2 or not 1 <= resize[0] <= resize[1]):
            raise ValueError(
                f"resize={list(resize)} is not a range of lengths. Expected the smallest and the largest, like "
                "[256, 1024]"
            )
        self.batch_size, self.num_workers, self.max_unreadable = batch_size, num_workers, max_unreadable
        self.seed, self.predict, self.validation_as_test = seed, predict, validation_as_test
        self.coding = {"first_class_value": first_class_value, "ignore_values": list(ignore_values)}
        self.mask_column, self.eval_resize = mask_column, eval_resize
        options = ClassOptions(class_names, classes_file, first_class_value, ignore_values)
        opened = open_mask_source(source, options, mask_column)
        self.loaders = MaskLoaders(opened, val_fraction, seed, 1, validation_as_test)
        self.source = self.loaders.source
        self.class_names = self.source.class_names
        self.input_size = (3, *crop_size)
        self.pixels = Pixels(max(crop_size), *channel_stats(mean, std), "bilinear", 1.0)
        self.augment = MaskAugment(
            self.pixels, crop_size, resize=resize, eval_resize=eval_resize, hflip=hflip, color_jitter=color_jitter
        )

    # ---- what the data are

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that exist, out of "train", "val" and "test", each with its images and their indices."""
        return self.loaders.splits

    def describe_size(self) -> str:
        return f"crops of {self.input_size[1]} × {self.input_size[2]} pixels"

    def describe(self) -> dict[str, Any]:
        """Return what the record of a run states about its data, and how its masks encode the classes."""
        masks = {**self.coding, "mask_column": self.mask_column, "eval_resize": self.eval_resize}
        description = {**super().describe(), "masks": {key: value for key, value in masks.items() if value is not None}}
        if isinstance(self.source, MaskSource) and self.source.classes.colours:
            classes = self.source.classes
            description["mask_colours"] = {
                name: [list(colour) for colour in getattr(classes, name)] for name in ("colours", "ignore_colours")
            }
        return description

    @classmethod
    def for_weights(cls, source: str, config: Mapping[str, Any]) -> MaskDataModule:
        """Return the data module that resizes and normalises images, and reads masks, as weights expect them."""
        cfg, dataset = config["pretrained_cfg"], config["acmix_zoo"].get("dataset") or {}
        data = cls(
            source, crop_size=tuple(cfg["input_size"][1:]), class_names=cfg["label_names"], mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]), validation_as_test=dataset.get("validation_as_test", False),
            **dataset.get("masks", {}), **dataset.get("val_split", {}),
        )  # fmt: skip
        if isinstance(data.source, MaskSource) and not data.source.classes.colours:  # of its own class list
            recorded = dataset.get("mask_colours", {})
            colours: dict[str, Any] = {key: tuple(map(tuple, values)) for key, values in recorded.items()}
            data.source.classes = replace(data.source.classes, **colours)
        return data

    # ---- batches

    def example_images(self) -> Tensor:
        """Return a validation image (1, 3, H, W) of the size of training images, or noise without validation images."""
        height, width = self.input_size[1:]
        image = super().example_images()[:1, :, :height, :width]
        return pad(image, (0, width - image.shape[3], 0, height - image.shape[2]))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalise the images of a `MaskBatch`: uint8 → float32, or the trainer's precision."""
        if not isinstance(batch, MaskBatch) or batch.images.dtype != torch.uint8:
            return batch
        images = self.pixels.normalize(batch.images)
        return batch._replace(images=self.trainer.precision_plugin.convert_input(images) if self.trainer else images)
