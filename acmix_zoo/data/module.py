"""`ImageDataModule`: any source of labelled images as Lightning's training, validation, test and prediction loaders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acmix_zoo.data.augment import Augment, Pixels
from acmix_zoo.data.indexed_loaders import IndexedLoaders
from acmix_zoo.data.mixing import Mixing
from acmix_zoo.data.options import (
    channel_stats,
    check_augmentation,
    check_mixing,
    check_probabilities,
    check_shared_options,
)
from acmix_zoo.data.resumable import ResumableDataModule
from acmix_zoo.data.sources.open import open_source
from acmix_zoo.data.sources.stream_source import StreamSource
from acmix_zoo.data.splits import DEFAULT_VAL_FRACTION, Split
from acmix_zoo.data.stream.stream_loaders import StreamLoaders
from acmix_zoo.data.train_sizes import TrainSizes


class ImageDataModule(ResumableDataModule):
    """Labelled images from one `source`.

    Batches are images (B, 3, S, S) float32 and classes (B,) int64. With mixup or cutmix, the classes of training
    batches are (B, num_classes) float32. In evaluation, class -1 marks an image that must not be counted. In
    prediction, the index of the image in `predict_paths` takes the place of the class.

    Within a trainer, images are moved to the device as uint8 and normalised there, which gives the same values at a
    quarter of the bandwidth. The loaders of a running trainer therefore yield uint8. A callback that needs images can
    take them from the trainer's hooks, or call `on_after_batch_transfer`.

    The order and augmentation of the images depend only on (seed, epoch). A resumed run gets the same batches as an
    uninterrupted one, and the images of a step are the same on any number of processes with the same global batch size.
    Evaluation counts every image once on any number of processes.

    Unreadable files are reported before the first step. A file that becomes unreadable later is skipped with a warning,
    so that the run can finish. Only the test split raises an error, because a score on fewer images would not be
    comparable.

    Lightning counts the epochs. In a loop of your own, call `loader.sampler.set_epoch(epoch)` before each one, as for
    PyTorch's `DistributedSampler`. Otherwise every epoch has the same order and augmentation.

    Args:
        source: a folder of class folders (flat, or below train/, val/ and test/), the id of a Hugging Face data set, a
            parquet file or a WebDataset tar file, a folder of such files, an imagefolder with metadata, or
            "fashion_mnist" or "digits".
        image_size: side length of the square input, in pixels.
        train_sizes: progressive resizing: smaller training images in some epochs, as {first epoch: side length}. With
            {0: 32, 10: 48} and image_size 64, epochs 0 to 9 train on 32 pixels and all later ones on 48. Evaluation
            always uses image_size.
        batch_size: number of images per step and process.
        num_workers: number of processes that load images; 0 to load them in the training process.
        val_fraction: fraction of each class used for validation if the source has no validation split; 0 for none.
        validation_as_test: for a source whose test labels are not public: test on its validation split, and split the
            validation images off the training split (`val_fraction`).
        mean, std: mean and standard deviation of the three channels, for pixel values between 0 and 1; ImageNet's by
            default.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        crop_pct: fraction of the shorter side that is kept in evaluation; by default 1 up to 64 pixels and 0.875 above.
        augment: "none"; "light" (shift and flip, for small images); "crop" (RandomResizedCrop and flip); "imagenet"
            (also colour jitter); or an auto-augment string of timm, such as "rand-m9-mstd0.5-inc1" (in place of colour
            jitter).
        shift: maximum shift of "light", as a fraction of the side length.
        crop_scale: smallest and largest fraction of the image's area that RandomResizedCrop keeps.
        hflip: probability of a horizontal flip; use 0 if a mirror image means something else, as with digits and text.
        random_erasing: probability of erasing a rectangle.
        repeats: repeated augmentation: number of differently augmented copies of each sampled image. The number of
            steps per epoch stays the same.
        max_unreadable: maximum number of unreadable images to skip per process before the run fails.
        mixup, cutmix: alpha of the Beta distribution; 0 is off. If both are on, each batch uses one of them.
        label_column: class column of a table that has several.
        streaming: read parquet files, tar files or a Hub data set shard by shard. Images are shuffled within about 1000
            images, so the shards should not be sorted by class. A run can only be resumed with the same number of
            processes and workers.
        epoch_images: number of images per epoch of a stream; the size of the training split by default, if it is known.
        classes_file: text file with one class name per line, for a stream whose classes are integers without names.
        predict: an image or a folder of images, for the prediction loader.
        seed: seed of the validation split, the order and the augmentation.

    Attributes:
        class_names: the names of the classes.
        num_classes: number of classes.
        input_size: (3, S, S).
        train_sizes: the side length of the training images in each epoch.
        loaders: the loaders of the source, indexed or streamed.
        predict_paths: the images of the prediction loader, after `setup("predict")`.
        is_resumed: whether training is resumed from a checkpoint. The images are then not checked before the run, and
            unreadable ones are skipped.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: the source is not a classification data set, or an option is not allowed. The message says what to
            do.
    """

    expected_source = (
        "a folder with a subfolder of images for each class (photos/cat/1.jpg, photos/dog/2.jpg), the id of a data set "
        "on the Hugging Face Hub, or the name of a data set such as fashion_mnist"
    )

    def __init__(
        self,
        source: str = "fashion_mnist",
        *,
        image_size: int = 224,
        train_sizes: dict[int, int] | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        val_fraction: float = DEFAULT_VAL_FRACTION,
        validation_as_test: bool = False,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        interpolation: str = "bicubic",
        crop_pct: float | None = None,
        augment: str = "light",
        shift: float = 0.125,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        hflip: float = 0.5,
        random_erasing: float = 0.0,
        repeats: int = 1,
        max_unreadable: int = 100,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        label_column: str | None = None,
        streaming: bool = False,
        epoch_images: int | None = None,
        classes_file: str | None = None,
        predict: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        positive = {"image_size": image_size, "batch_size": batch_size, "repeats": repeats}
        check_shared_options(positive, num_workers, max_unreadable, val_fraction, seed)
        check_augmentation(shift=shift, crop_scale=crop_scale, interpolation=interpolation, augment=augment)
        check_probabilities(hflip=hflip, random_erasing=random_erasing)
        check_mixing(mixup=mixup, cutmix=cutmix)
        if crop_pct is not None and not 0 < crop_pct <= 1:
            raise ValueError(f"crop_pct={crop_pct} is not a fraction of the image. Use a number above 0, up to 1")
        stats = channel_stats(mean, std)
        self.batch_size, self.num_workers, self.max_unreadable = batch_size, num_workers, max_unreadable
        self.seed, self.predict, self.label_column = seed, predict, label_column
        if classes_file and not streaming:
            raise ValueError(
                f"classes_file={classes_file} is only used with streaming. Expected the class names in a file "
                "classes.txt next to the parquet or tar files, or data.streaming true"
            )
        if streaming:
            stream = StreamSource(source, label_column, classes_file)
            self.loaders = StreamLoaders(stream, epoch_images, val_fraction, repeats, validation_as_test)
        else:
            opened = open_source(source, label_column)
            self.loaders = IndexedLoaders(opened, val_fraction, seed, repeats, validation_as_test)
        self.source = self.loaders.source
        self.class_names = self.source.class_names
        self.input_size = (3, image_size, image_size)
        self.train_sizes = TrainSizes(train_sizes, image_size)
        self.validation_as_test = validation_as_test
        if crop_pct is None:
            crop_pct = 1.0 if image_size <= 64 else 0.875
        self.pixels = Pixels(image_size, *stats, interpolation, crop_pct)
        self.augment = Augment(
            self.pixels,
            augment,
            shift=shift,
            crop_scale=crop_scale,
            hflip=hflip,
            random_erasing=random_erasing,
        )
        self._mixing = Mixing(mixup, cutmix, self.num_classes, seed)

    # ---- what the data are

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that exist, out of "train", "val" and "test", each with its images and their indices.

        Raises:
            ValueError: the source is streamed.
        """
        if not isinstance(self.loaders, IndexedLoaders):
            raise ValueError(f"the images of {self.source.name} are streamed, not indexed. Set streaming to false")
        return self.loaders.splits

    def class_counts(self) -> list[int]:
        """Return the number of training images of each class.

        Raises:
            ValueError: the source is streamed.
        """
        if not isinstance(self.loaders, IndexedLoaders):
            raise ValueError(
                f"{self.source.name} is streamed, so the number of images of each class is not known. Expected a "
                "weight for each class, or none. Set model.class_weights to null"
            )
        targets = self.splits["train"].targets
        counts: list[int] = np.bincount(targets[targets >= 0], minlength=self.num_classes).tolist()
        return counts

    def describe(self) -> dict[str, Any]:
        """Return what the record of a run states about its data, with the class column if it was given."""
        description = super().describe()
        return {**description, "label_column": self.label_column} if self.label_column else description

    @classmethod
    def for_weights(cls, source: str, config: Mapping[str, Any]) -> ImageDataModule:
        """Return the data module that resizes, crops and normalises images as weights expect them."""
        cfg, dataset = config["pretrained_cfg"], config["acmix_zoo"].get("dataset") or {}
        return cls(
            source, image_size=cfg["input_size"][1], batch_size=128, mean=tuple(cfg["mean"]), std=tuple(cfg["std"]),
            interpolation=cfg["interpolation"], crop_pct=cfg["crop_pct"],
            validation_as_test=dataset.get("validation_as_test", False), label_column=dataset.get("label_column"),
            **dataset.get("val_split", {}),
        )  # fmt: skip

    # ---- on the device

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Normalise images. Training images are also shrunk to the size of the epoch and mixed (mixup, cutmix).

        Args:
            batch: images (B, C, S, S) uint8 and classes (B,) int64.
            dataloader_idx: number of the loader.

        Returns:
            Images (B, 3, S, S) in float32 or the trainer's precision; in training, S follows `train_sizes`. The classes
            become (B, num_classes) float32 if they are mixed.
        """
        trainer = self.trainer
        if trainer is None:
            return batch
        if batch[0].dtype == torch.uint8:
            images = self.pixels.normalize(batch[0])
            if trainer.training:
                images = self.train_sizes.shrink(images, trainer.current_epoch)
            batch = trainer.precision_plugin.convert_input(images), batch[1]
        if not trainer.training:
            return batch
        loop: Any = trainer.fit_loop
        index = loop.epoch_loop.batch_progress.current.processed
        return self._mixing(batch, trainer.current_epoch, index, trainer.global_rank)
