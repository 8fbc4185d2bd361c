"""`ImageDataModule`: any source of labelled images as Lightning's training, validation, test and prediction loaders."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor
from torch.utils.data import DataLoader

from acmix_zoo.data.augment import Augment, Pixels
from acmix_zoo.data.batches import ImageDataset, apart, as_is
from acmix_zoo.data.fingerprint import compare_classes, compare_data, compare_sizes
from acmix_zoo.data.images import Inspection
from acmix_zoo.data.mixing import Mixing
from acmix_zoo.data.option_checks import (
    check_images,
    check_options,
    fitting_batch_size,
    pictures_to_predict,
    three_numbers,
)
from acmix_zoo.data.samplers import EpochSampler, ShardSampler
from acmix_zoo.data.sources.base import FileImages, Images, Source, open_source
from acmix_zoo.data.stream.loaders import StreamLoaders
from acmix_zoo.data.stream.stream_batches import EvalStream, TrainStream
from acmix_zoo.data.stream.stream_source import StreamSource
from acmix_zoo.data.summary import split_parts, summarize

Loader = DataLoader[Any]


class ImageDataModule(L.LightningDataModule):
    """Labelled images from one `source`.

    Batches are images (B, 3, S, S) float32 and classes (B,) int64; after mixup or cutmix, in training only, classes
    are (B, classes) float32. In evaluation -1 marks an image that is not to be counted. Prediction gives the index into
    `predict_paths` in place of the class. Within a trainer, images are moved to the device as uint8 and normalised
    there, which gives the same values and needs only a quarter of the bandwidth. The loaders of a running trainer
    therefore yield uint8. A callback that needs images takes them from the trainer's hooks, or calls
    `on_after_batch_transfer`.

    The order of the images and their augmentation are given by (seed, epoch): an interrupted run continues with the
    very batches it would have seen, and the images of a step are the same on any number of processes with the same
    global batch. Evaluation counts every image once on any number of processes.

    An unreadable file is named before the first step. One that breaks later is left out of its batch with a warning,
    so that a run is not lost; only the test split raises, for a score over fewer images is another score.

    Args:
        source: a folder of class folders (flat, or below train/, val/ and test/), the id of a Hugging Face data set, a
            parquet file or a WebDataset tar file, a folder of such files, an imagefolder with metadata, or
            "fashion_mnist" or "digits".
        image_size: S, in pixels.
        batch_size: images a step and process.
        num_workers: processes that load; 0 loads in the training process.
        val_fraction: share of each class that validates where the source has no validation split; 0 for none.
        mean, std: of the three channels, for pixels in 0..1; ImageNet's by default.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        crop_pct: share of the shorter side that evaluation keeps; 1 up to 64 pixels and 0.875 above by default.
        augment: "none"; "light": shift and flip, for small images; "imagenet": RandomResizedCrop, flip, colour;
            or a timm auto-augment string such as "rand-m9-mstd0.5-inc1" (RandomResizedCrop, flip, and that).
        shift: how far "light" shifts, as a share of the image's side.
        hflip: probability of a mirror image; 0 where a mirror image means something else (digits, text).
        random_erasing: probability that a rectangle is erased.
        repeats: how often each image that comes up in an epoch does so, otherwise augmented each time; an epoch has as
            many steps as ever.
        max_bad: unreadable images that a run leaves out, each with one warning; one more ends it. Of each process.
        mixup, cutmix: alpha of the Beta distribution; 0 is off; with both, each batch takes one of them.
        label_column: the class column of a table with several.
        streaming: read parquet or tar files, or a data set of the Hub, shard by shard as they come, each image by one
            worker, shuffled within some thousand images: they should lie in no order. A run goes on only with as many
            processes and workers as it had.
        epoch_images: of a stream, how many images are an epoch; the training split's by default, where it says.
        classes_file: of a stream whose classes are bare numbers: a text file with a class name a line.
        predict_source: a picture or a folder of pictures for `predict`.
        seed: of the validation split, the order and the augmentation.

    Raises:
        FileNotFoundError, ValueError: the source is missing or is no classification data set; says what to do.
    """

    def __init__(
        self,
        source: str = "fashion_mnist",
        *,
        image_size: int = 224,
        batch_size: int = 64,
        num_workers: int = 0,
        val_fraction: float = 0.1,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        interpolation: str = "bicubic",
        crop_pct: float | None = None,
        augment: str = "light",
        shift: float = 0.125,
        hflip: float = 0.5,
        random_erasing: float = 0.0,
        repeats: int = 1,
        max_bad: int = 100,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        label_column: str | None = None,
        streaming: bool = False,
        epoch_images: int | None = None,
        classes_file: str | None = None,
        predict_source: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        counts = {"image_size": image_size, "batch_size": batch_size, "repeats": repeats}
        check_options(val_fraction, shift, interpolation, augment, max_bad, counts)
        self.mean, self.std = three_numbers(mean, std)
        self.batch_size, self.num_workers, self.val_fraction = batch_size, num_workers, val_fraction
        self.repeats, self.max_bad = repeats, max_bad
        self.predict_source, self.seed = predict_source, seed
        self.source: Source | StreamSource = (
            StreamSource(source, label_column, classes_file) if streaming else open_source(source, label_column)
        )
        self.class_names = self.source.class_names
        self.num_classes = len(self.class_names)
        self.input_size = (3, image_size, image_size)
        crop_pct = crop_pct or (1.0 if image_size <= 64 else 0.875)
        self.pixels = Pixels(image_size, self.mean, self.std, interpolation, crop_pct)
        self.augment = Augment(self.pixels, augment, shift=shift, hflip=hflip, random_erasing=random_erasing)
        self.interpolation, self.crop_pct = interpolation, crop_pct
        self.eval_transform = self.pixels.eval_transform()  # PIL -> (3, S, S) float32
        self.predict_paths: list[str] = []
        self._mixing = Mixing(mixup, cutmix, self.num_classes, seed)
        self._parts: dict[str, tuple[Images, np.ndarray]] | None = None
        self._checked: set[str] = set()
        self.goes_on = False  # set where a run is resumed: images are not looked at, broken ones are left out
        self._card: dict[str, Any] | None = None
        self._resume: dict[str, Any] = {"epoch": 0, "batch": 0}
        self._sampler: EpochSampler | None = None
        self._stream: StreamLoaders | None = None
        if isinstance(self.source, StreamSource):
            self._stream = StreamLoaders(
                self.source, self.augment, batch_size, num_workers, seed, max_bad, epoch_images or 0
            )
            self._stream.check(val_fraction, repeats)

    # ---- splits

    def parts(self) -> dict[str, tuple[Images, np.ndarray]]:
        """For each of "train", "val" and "test" that exists: the pictures, and the indices of its own among them."""
        if self._parts is None:
            if not isinstance(self.source, Source):
                raise ValueError(f"{self.source.name} is a stream: its images have no numbers; set streaming to false")
            self._parts = split_parts(self.source, self.val_fraction, self.seed)
        return self._parts

    def setup(self, stage: str) -> None:
        """Read the source and look at every file that `stage` ("fit", "validate", "test" or "predict") will use; a fit
        is tested in the end.

        Raises:
            ValueError: unreadable files (named), or nothing to predict. OSError: of a stream, the Hub is away.
        """
        if stage == "predict":
            self.predict_paths, remarks = pictures_to_predict(self.predict_source)
            if remarks and (self.trainer is None or self.trainer.is_global_zero):
                print(*remarks, sep="\n", flush=True)
            return
        used = {"fit": ("train", "val", "test"), "validate": ("val",), "test": ("test",)}[stage]
        found: dict[str, Inspection] = {}
        if not self._stream and not (stage == "fit" and self.goes_on):  # a stream's are looked at as they come
            names = [name for name in used if name in self.parts() and (name == stage or name not in self._checked)]
            # Decode before a long run starts, and where an error in one process would leave the others waiting.
            thorough = stage == "fit" or (self.trainer is not None and self.trainer.world_size > 1)
            found = check_images({name: self.parts()[name] for name in names}, thorough=thorough)
            self._checked.update(names)
        if stage == "fit":
            self._limit_batch_size()
            # now, rather than with the first checkpoint: a file may break until then, or the Hub be away
            self.card()
            if self.trainer is None or self.trainer.is_global_zero:
                print(self.summary(found), flush=True)

    def summary(self, found: Mapping[str, Inspection] | None = None) -> str:
        """Return the summary of the data that is printed at the start of a fit.

        Args:
            found: the results of `check_images` for each split.
        """
        if isinstance(self.source, Source):
            return summarize(self.source, self.parts(), found or {})
        sizes = self.card()["dataset"]["splits"]
        images = ", ".join(f"{name} {sizes[name] or 'unknown'}" for name in sizes if name in self._splits())
        return f"data: {self.source.name}, {self.num_classes} classes; images: {images}"

    def _limit_batch_size(self) -> None:
        if not self._stream:
            processes = self.trainer.world_size if self.trainer else 1
            images = len(self.parts()["train"][1])
            self.batch_size, remark = fitting_batch_size(self.batch_size, images, processes, self._accumulated)
            if remark and (self.trainer is None or self.trainer.is_global_zero):
                print(remark, flush=True)

    def describe(self) -> dict[str, Any]:
        """Return what the record of a run says about its data: name, source, fingerprint, images per split, license."""
        sizes = self._stream.sizes() if self._stream else {name: len(own) for name, (_, own) in self.parts().items()}
        return {
            "name": self.source.name,
            "source": self.source.origin,
            "fingerprint": self.source.fingerprint(),
            "splits": {name: sizes.get(name, 0) for name in ("train", "val", "test")},
            "license": self.source.license,
        }

    def card(self) -> dict[str, Any]:
        """What a weight folder says of the data its weights are for: `dataset` for its record, and timm's `cfg`."""
        if self._card is None:  # a fingerprint may take a while
            cfg = {
                "input_size": list(self.input_size), "mean": list(self.mean), "std": list(self.std),
                "interpolation": self.interpolation, "crop_pct": self.crop_pct, "label_names": list(self.class_names),
            }  # fmt: skip
            self._card = {"dataset": self.describe(), "cfg": cfg}
        return self._card

    # ---- loaders

    def train_dataloader(self) -> Loader | TrainStream:
        if self._stream:
            return self._stream.train(self._accumulated, self._resume, self._is_raw)
        images, indices = self.parts()["train"]
        dataset = ImageDataset(
            images, indices, self.augment, seed=self.seed, max_bad=self.max_bad, training=True, raw=self._is_raw
        )
        start = self._resume["batch"] * self.batch_size
        step, epoch = self.batch_size * self._accumulated, self._resume["epoch"]
        self._sampler = EpochSampler(dataset, self.seed, step=step, repeats=self.repeats, epoch=epoch, start=start)
        # a last batch of one image upsets batch normalisation; but few images must not mean no batch
        return self._loader(dataset, self._sampler, drop_last=len(self._sampler) >= self.batch_size)

    @property
    def _is_raw(self) -> bool:
        """Whether the loaders belong to a running trainer, which normalises images on the device."""
        return self.trainer is not None and self.trainer.state.status == TrainerStatus.RUNNING

    @property
    def _accumulated(self) -> int:
        return int(self.trainer.accumulate_grad_batches) if self.trainer else 1

    def describe_batch(self, index: int) -> list[str]:
        """What this process's training batch `index` of this epoch is of: names of images, without unreadable ones."""
        if self._stream:
            return self._stream.batch_names()
        if self._sampler is None:
            return []
        order = self._sampler.order()[index * self.batch_size : (index + 1) * self.batch_size]
        return list(self._sampler.data.names(order.tolist()))

    def val_dataloader(self) -> Loader | EvalStream | list[Loader]:
        return self._evaluation("val") if "val" in self._splits() else []

    def test_dataloader(self) -> Loader | EvalStream:
        """
        Raises:
            ValueError: the source has no test split.
        """
        if "test" not in self._splits():
            raise ValueError(f"{self.source.name} has no test split; add a test/ folder with the same class folders")
        return self._evaluation("test")

    def predict_dataloader(self) -> Loader:
        images = FileImages(self.predict_paths, np.zeros(len(self.predict_paths), np.int64))
        plain = Augment(self.pixels)
        dataset = ImageDataset(
            images, np.arange(len(images)), plain, max_bad=self.max_bad, with_index=True, raw=self._is_raw
        )
        return self._loader(dataset, ShardSampler(len(dataset), self.batch_size))

    def _splits(self) -> Collection[str]:
        return self._stream.source.splits if self._stream else self.parts()

    def _evaluation(self, part: str) -> Loader | EvalStream:
        if self._stream:
            return self._stream.evaluation(part, self._is_raw)
        images, indices = self.parts()[part]
        max_bad = 0 if part == "test" else self.max_bad
        dataset = ImageDataset(images, indices, Augment(self.pixels), max_bad=max_bad, raw=self._is_raw)
        return self._loader(dataset, ShardSampler(len(dataset), self.batch_size))

    def _loader(self, dataset: ImageDataset, sampler: EpochSampler | ShardSampler, drop_last: bool = False) -> Loader:
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        return DataLoader(
            dataset,
            batch_size=self.batch_size,  # by keyword: Lightning builds the prediction loader anew
            sampler=sampler,
            num_workers=self.num_workers,
            worker_init_fn=apart,
            collate_fn=as_is,
            drop_last=drop_last,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=fitting and self.num_workers > 0,  # otherwise they would be restarted every epoch
        )

    # ---- on the device

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Normalise images, (B, C, S, S) uint8 → (B, 3, S, S) in float32 or the trainer's precision, and apply mixup
        and cutmix to training batches, whose classes (B,) int64 become (B, classes) float32."""
        trainer = self.trainer
        if trainer is None:
            return batch
        if batch[0].dtype == torch.uint8:
            images: Tensor = trainer.precision_plugin.convert_input(self.pixels.normalize(batch[0]))
            batch = images, batch[1]
        if not trainer.training:
            return batch
        loop: Any = trainer.fit_loop
        index = loop.epoch_loop.batch_progress.current.processed
        return self._mixing(batch, trainer.current_epoch, index, trainer.global_rank)

    def teardown(self, stage: str) -> None:
        """Stop the workers of a stream. Other workers belong to a loader and end when the trainer drops it."""
        if self._stream:
            self._stream.close()

    # ---- resume

    def state_dict(self) -> dict[str, Any]:
        """Where training stands, the epoch and the batches of it that are done; and the card, for an export."""
        if self.trainer is None:
            return {**self._resume, "card": self.card()}
        loop: Any = self.trainer.fit_loop
        # epoch_progress.processed counts the epoch already while its last callbacks, which may save, are running
        epoch = max(loop.epoch_progress.current.started - 1, 0)
        batch = loop.epoch_loop.batch_progress.current.processed
        done = batch >= self.trainer.num_training_batches > 0
        place = {"epoch": epoch + done, "batch": 0 if done else batch, "size": self._sizes(), "card": self.card()}
        return {**place, "stream": self._stream.state()} if self._stream else place

    def _sizes(self) -> dict[str, int]:
        assert self.trainer is not None
        world, accumulated = self.trainer.world_size, self._accumulated
        return {"processes": world, "batch_size": self.batch_size, "accumulate_grad_batches": accumulated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the state says.

        Raises:
            ValueError: it is of a run with other images or other batches.
        """
        if self.trainer is not None and self.trainer.state.fn != "predict":
            names = state_dict.get("card", {}).get("cfg", {}).get("label_names")
            compare_classes(names, self.class_names, self.source.name)
        theirs = state_dict.get("size")
        if self.trainer is not None and self.trainer.state.fn == "fit" and theirs:
            changed = compare_data(state_dict["card"]["dataset"], self.card()["dataset"])
            begun = state_dict.get("epoch") or state_dict.get("batch")  # otherwise nothing was counted, as with a Tuner
            for said in (changed, compare_sizes(theirs, self._sizes()) if begun else None):
                if said and self.trainer.is_global_zero:
                    print(said, flush=True)
        self._resume = {name: state_dict.get(name) for name in ("epoch", "batch", "stream")}
        # Lightning looks for the position in the loader; it is here
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
