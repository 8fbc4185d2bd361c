"""`ResumableDataModule`: what all data modules share. Checks before a run, loaders, the card, and resuming."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor
from torch.utils.data import DataLoader

from acmix_zoo.data.augment import Pixels
from acmix_zoo.data.compatibility import check_validation, compare_batches, compare_classes, compare_data
from acmix_zoo.data.indexed_loaders import make_eval_loader
from acmix_zoo.data.inspection import Inspection
from acmix_zoo.data.loaders import EvalLoader, LoaderOptions, Loaders, Position, TrainLoader
from acmix_zoo.data.predict_images import readable_images_in
from acmix_zoo.data.sources.image_sets import FileImages
from acmix_zoo.data.splits import Split, check_readable

_STAGE_SPLITS = {"fit": ["train", "val", "test"], "validate": ["val"], "test": ["test"]}  # a fit ends with a test


class ResumableDataModule(L.LightningDataModule):
    """Base class of all data modules. The run folder and the tasks rely only on this interface.

    Checkpoints contain the position in the data and a description of it, which are compared when a run is resumed.
    Evaluation counts every image once on any number of processes. A batch is a sequence that starts with its B images:
    a tensor (B, C, H, W), or a list of images of different sizes. What follows depends on the task.

    The name of a subclass has to end in `DataModule`, because Lightning stores its state in checkpoints under that
    name. A subclass sets the attributes below and implements `for_weights`.

    Attributes:
        expected_source: what a source is, in words, for the error about a missing one.
        loaders: the loaders of the source, indexed or streamed.
        batch_size: number of images per step and process.
        num_workers: number of processes that load images.
        pixels: normalisation and interpolation of images.
        augment: the augmentation of training images.
        seed: seed of the order and the augmentation.
        max_unreadable: number of unreadable images to skip per process.
        class_names: the names of the classes.
        input_size: (C, H, W) of the images of a training batch.
        validation_as_test: whether the test split is the source's validation split.
        predict: an image, a folder of images or a pattern, or several of them, for the prediction loader.
        predict_paths: the images of the prediction loader, after `setup("predict")`.
        is_resumed: whether training is resumed from a checkpoint. The images are then not checked before the run, and
            unreadable ones are skipped.
    """

    expected_source: ClassVar[str]
    loaders: Loaders
    batch_size: int
    num_workers: int
    pixels: Pixels
    augment: Any
    seed: int
    max_unreadable: int
    class_names: tuple[str, ...]
    input_size: tuple[int, int, int]
    validation_as_test: bool = False
    predict: str | Sequence[str] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.predict_paths: list[str] = []
        self.is_resumed = False
        self._position = Position()
        self._checked_splits: set[str] = set()
        self._card: dict[str, Any] | None = None

    def preprocessing(self) -> dict[str, Any]:
        """Return how images become inputs, as fields of timm's pretrained_cfg: input_size, mean, std, …."""
        return {"input_size": list(self.input_size), **self.pixels.config()}

    @classmethod
    @abstractmethod
    def for_weights(cls, source: str, config: Mapping[str, Any]) -> Self:
        """Return the data module that prepares images of a source as weights expect them, to measure their scores.

        Args:
            source: the data source.
            config: the content of the config.json of the weights, with all fields of timm's pretrained_cfg.
        """

    # ---- what the data are

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def describe(self) -> dict[str, Any]:
        """Return what the record of a run states about its data: name, source, fingerprint, split sizes, license.

        If the validation images were split off the training images, `val_split` states how.
        """
        source, sizes = self.loaders.source, self.loaders.sizes()
        description = {
            "name": source.name,
            "source": source.origin,
            "fingerprint": source.fingerprint(),
            "splits": {name: sizes.get(name, 0) for name in ("train", "val", "test")},
            "license": source.license,
        }
        if val_split := self.loaders.val_split():
            description["val_split"] = val_split
        return {**description, "validation_as_test": True} if self.validation_as_test else description

    def describe_size(self) -> str:
        """Return what size training images have, in words."""
        return f"images are resized to {self.input_size[1]} × {self.input_size[2]} pixels"

    def card(self) -> dict[str, Any]:
        """Return what a weight folder states about the data: `dataset` for its record, and `cfg` for timm."""
        if self._card is None:  # computing the fingerprint may take a while
            cfg = {**self.preprocessing(), "label_names": list(self.class_names)}
            self._card = {"dataset": self.describe(), "cfg": cfg}
        return self._card

    # ---- before a run

    def setup(self, stage: str) -> None:
        """Read the source and check the files that a stage uses: "fit", "validate", "test" or "predict".

        Raises:
            UnusableImages: files cannot be read. The message lists them.
            ValueError: there is nothing to predict.
            OSError: the data are streamed from the Hub, which cannot be reached.
        """
        if stage == "predict":
            self.predict_paths, remarks = readable_images_in(self.predict)
            self._print_once(*remarks)
            return
        inspections = self._inspect(stage)
        if stage != "fit":
            return
        processes = self.trainer.world_size if self.trainer else 1
        self.batch_size, warning = self.loaders.limit_batch_size(self.batch_size, processes)
        self._print_once(*[warning] * bool(warning))
        self.card()  # not later, because a file may break or the Hub become unreachable before the first checkpoint
        self._print_once(self.loaders.summary(inspections, is_brief=True))

    def _inspect(self, stage: str) -> dict[str, Inspection]:
        """Check the images of a stage, except those that have already been checked for a different stage."""
        if stage == "fit" and self.is_resumed:
            return {}
        names = [name for name in _STAGE_SPLITS[stage] if name == stage or name not in self._checked_splits]
        # Decode all test images before a long run, and if an error in one process would leave the others waiting.
        thorough = stage == "fit" or (self.trainer is not None and self.trainer.world_size > 1)
        inspections = self.loaders.inspect(names, thorough)
        check_readable(inspections)
        self._checked_splits.update(names)
        return inspections

    # ---- loaders

    def loader_options(self) -> LoaderOptions:
        """Return the options of the loaders. Within a trainer, they keep images as uint8."""
        trainer = self.trainer
        return LoaderOptions(
            self.augment,
            self.batch_size,
            self.num_workers,
            self.seed,
            self.max_unreadable,
            raw=trainer is not None and trainer.state.status == TrainerStatus.RUNNING,
            keep_workers=trainer is not None and trainer.state.fn == "fit",
        )

    def train_dataloader(self) -> TrainLoader:
        position = self._position
        if self.trainer:
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            # The trainer can ask for a new loader between epochs. A stream then continues.
            if progress.processed > position.epoch and (stream := self.loaders.state()):
                position = Position(progress.processed, 0, stream)
        return self.loaders.train(self.loader_options(), position, self._accumulated)

    def val_dataloader(self) -> EvalLoader | list[EvalLoader]:
        return self.loaders.evaluate("val", self.loader_options()) if "val" in self.loaders.sizes() else []

    def test_dataloader(self) -> EvalLoader:
        """Return the loader of the test split.

        Raises:
            ValueError: the source has no test split.
        """
        if "test" not in self.loaders.sizes():
            source = self.loaders.source
            raise ValueError(f"{source.name} has no test split. {source.missing_split_advice('test')}")
        return self.loaders.evaluate("test", self.loader_options())

    def predict_dataloader(self) -> EvalLoader:
        """Return the loader of the images in `predict_paths`, of which each batch contains the positions."""
        count = len(self.predict_paths)
        split = Split(FileImages(self.predict_paths, np.zeros(count, np.int64)), np.arange(count))
        options = self.loader_options().for_split("predict")
        return make_eval_loader(split, options, self.loaders.dataset_class, with_index=True)

    def describe_batch(self, index: int) -> list[str]:
        """Return the names of the readable images of this process's training batch `index` in this epoch."""
        has_own_order = self.trainer is not None and self.trainer.overfit_batches  # type: ignore[attr-defined]
        return [] if has_own_order else self.loaders.batch_names(index, self.batch_size)

    def example_images(self) -> Tensor:
        """Return a few images (B, C, H, W) as the network receives them, to store with weights.

        They are validation images, or noise if there are none or if all processes would have to read them.
        """
        loader = self.val_dataloader()
        if not isinstance(loader, DataLoader):
            return torch.randn(1, *self.input_size, generator=torch.Generator().manual_seed(0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run has already warned of unreadable images
            images: Tensor = next(iter(loader))[0]
        return images[:4]

    def teardown(self, stage: str) -> None:
        """Stop the workers of a stream. Other workers end when the trainer drops their loader."""
        self.loaders.close()

    def on_exception(self, exception: BaseException) -> None:
        """Stop the workers of a stream, because Lightning does not call `teardown` for a run that failed.

        The garbage collector would wait five seconds for each of them, because it closes the queue to a worker before
        the loader can send the message to stop.
        """
        self.loaders.close()

    # ---- resuming

    def state_dict(self) -> dict[str, Any]:
        """Return the position of training (completed epochs and batches of this epoch) and the card of the data."""
        if self.trainer is None:
            return {"epoch": self._position.epoch, "batch": self._position.batch, "card": self.card()}
        loop: Any = self.trainer.fit_loop
        # epoch_progress.processed includes the current epoch while its last callbacks, which may save, are running
        epoch = max(loop.epoch_progress.current.started - 1, 0)
        batch = loop.epoch_loop.batch_progress.current.processed
        is_epoch_done = batch >= self.trainer.num_training_batches > 0
        state = {
            "epoch": epoch + is_epoch_done,
            "batch": 0 if is_epoch_done else batch,
            "size": self._batch_sizes(),
            "card": self.card(),
        }
        stream = self.loaders.state()
        return state if stream is None else {**state, "stream": stream}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from the position in a state.

        Raises:
            ValueError: the state comes from a run with different images or batches.
        """
        stage = self.trainer.state.fn if self.trainer is not None else None
        if stage not in (None, "predict"):
            recorded_classes = state_dict.get("card", {}).get("cfg", {}).get("label_names")
            compare_classes(recorded_classes, self.class_names, self.loaders.source.name)
        if stage == "validate" and (recorded := state_dict.get("card", {}).get("dataset")):
            self._print_once(*filter(None, [check_validation(recorded, self.card()["dataset"])]))
        recorded_sizes = state_dict.get("size")
        if stage == "fit" and recorded_sizes:
            messages = [compare_data(state_dict["card"]["dataset"], self.card()["dataset"])]
            if state_dict.get("epoch") or state_dict.get("batch"):  # otherwise no batches were counted, as by a Tuner
                messages.append(compare_batches(recorded_sizes, self._batch_sizes()))
            self._print_once(*filter(None, messages))
        self._position = Position(state_dict.get("epoch", 0), state_dict.get("batch", 0), state_dict.get("stream"))
        # Lightning expects the loader to store the position, but the data module does
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")

    def _batch_sizes(self) -> dict[str, int]:
        assert self.trainer is not None
        return {
            "processes": self.trainer.world_size,
            "batch_size": self.batch_size,
            "accumulate_grad_batches": self._accumulated,
        }

    @property
    def _accumulated(self) -> int:
        """Number of batches per optimiser step."""
        return int(self.trainer.accumulate_grad_batches) if self.trainer else 1

    def _print_once(self, *lines: str) -> None:
        """Print lines in the first process only.

        The data module does so itself, because skipped files have to be reported by any trainer, not only by that of
        the command line.
        """
        if lines and (self.trainer is None or self.trainer.is_global_zero):
            print(*lines, sep="\n", flush=True)
