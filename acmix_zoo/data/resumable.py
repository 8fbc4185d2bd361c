"""`ResumableDataModule`: what a data module needs to be resumed from a checkpoint, whatever its loaders yield."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any

import lightning as L

from acmix_zoo.data.compatibility import compare_batches, compare_classes, compare_data
from acmix_zoo.data.loaders import Loaders, Position


class ResumableDataModule(L.LightningDataModule):
    """A data module whose position and data are saved in checkpoints, and compared when a run is resumed.

    Attributes:
        loaders: the loaders of the source, indexed or streamed.
        batch_size: number of images per step and process.
        class_names: the names of the classes.
    """

    loaders: Loaders
    batch_size: int
    class_names: tuple[str, ...]

    def __init__(self) -> None:
        super().__init__()
        self._position = Position()

    @abstractmethod
    def card(self) -> dict[str, Any]:
        """Return what a weight folder states about the data: `dataset` for its record, and `cfg` for timm."""

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
