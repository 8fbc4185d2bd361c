"""The run folder: what a training leaves behind, and what it is resumed from.

config.yaml        the resolved configuration; running it again gives the same weights
metrics.csv        a row an epoch                curves.png   the same as a picture
tensorboard/       the same, and the learning rate by step
checkpoints/       last.ckpt (to resume), best.ckpt (highest validation accuracy)
weights/           the best weights as a weight folder, tested on the test split
"""

import contextlib
import csv
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint

from acmix_zoo.weights.hub import check_push

Row = dict[str, float]


class Interrupted(SystemExit):
    """Ends a run after its state has been saved; the exit code is the shell's for the signal."""


class RunFolder(Checkpoint):
    """Keep the run folder: history, metrics.csv, best and last checkpoint; stop cleanly on SIGINT and SIGTERM.

    On a signal the running step is finished, `last.ckpt` is written and the process ends (130 or 143); during
    validation, the validation is finished first. A second SIGINT ends at once, with the state of the last epoch.
    A checkpoint that cannot be written (full disk) is reported; the previous one stays, training goes on and the next
    epoch tries again; only if the last one fails too is it an error.

    Args:
        folder: where; made when it is missing. None: `runs/<model>`, which the command line fills in.
        tag: the second half of the weights' name, `<model>.<tag>`; by default the data's name.
        license: of the weights, for their card.
        test: evaluate the best weights on the test split when the run ends. False for a run whose weights are only
            another run's start: the test set is for the last of them.
        push_to: "org/name" or "org/name@branch" of the Hugging Face Hub, where the weights are published when the run
            ends. A push that fails is reported and can be made up for; the run does not fail for it.
    """

    command: str | None = None
    recipe: str | None = None
    """The command line as given and the recipe that it names; for the record."""

    def __init__(
        self,
        folder: str | None = None,
        tag: str | None = None,
        license: str | None = None,
        test: bool = True,
        push_to: str | None = None,
    ) -> None:
        self.folder = Path(folder or "runs/unnamed")
        self.tag = tag
        self.license = license
        self.test = test
        self.push_to = push_to
        self.history: list[Row] = []
        self.seed: int | None = None
        self._best: list[float] | None = None  # score of best.ckpt
        self._unsaved: str | None = None  # why last.ckpt is not of the last epoch
        self._signal: int | None = None
        self._rehearsal = False  # Trainer(fast_dev_run=True): nothing is kept
        self._handlers: dict[int, Any] = {}
        self._epoch_start = self._validation_seconds = 0.0
        self._images = 0

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint with the highest validation accuracy."""
        return self.folder / "checkpoints" / "best.ckpt"

    # State in checkpoints: plain values only.

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run goes on with."""
        about = {"command": self.command, "recipe": self.recipe, "tag": self.tag, "license": self.license}
        return {"history": self.history, "best": self._best, "seed": self.seed, **about}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the state of a checkpoint."""
        self.history = list(state_dict["history"])
        self._best, self.seed = state_dict["best"], state_dict["seed"]

    # Fit.

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the folder, unless this is a rehearsal."""
        self._rehearsal = bool(getattr(trainer, "fast_dev_run", False))
        if not self._rehearsal:
            self.last.parent.mkdir(parents=True, exist_ok=True)
        if self.seed is None:
            self.seed = torch.initial_seed()
        if self.push_to and not self._rehearsal:
            check_push(self.push_to)  # now, rather than after the last epoch

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals, after Lightning has put its own handlers in place."""
        # Under several processes only one may get the signal, and saving is a collective act: Lightning's way there.
        if trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number
        print(
            f"\n{signal.Signals(number).name}: finishing the step, then saving (Ctrl-C again: stop at once)", flush=True
        )

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        if self._signal is not None:
            raise Interrupted(128 + self._signal)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the epoch's clock."""
        self._epoch_start, self._validation_seconds, self._images = time.perf_counter(), 0.0, 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed dropout and its kin by (seed, step), so that a resumed run draws what an uninterrupted one draws."""
        assert self.seed is not None
        torch.manual_seed((self.seed + 1_000_003 * trainer.global_step + trainer.global_rank) % 2**63)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count images; after a signal save here, between two steps. The epoch's last step goes on to its end."""
        self._images += len(batch[0]) * trainer.world_size
        if self._signal is not None and not trainer.is_last_batch and not self._rehearsal:
            self._save(trainer, self.last)
            self._stop_if_asked(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock of training."""
        self._validation_seconds -= time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on with the clock of training."""
        self._validation_seconds += time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the epoch's row, save, and stop if a signal came meanwhile."""
        if self._rehearsal:
            return
        seconds = time.perf_counter() - self._epoch_start
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row = {"epoch": float(trainer.current_epoch + 1), "step": float(trainer.global_step)}
        row |= {name: metrics[name] for name in metrics if name.startswith(("train/", "val/"))}
        row["lr"] = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        row["seconds"] = seconds
        row["images_per_second"] = self._images / max(1e-9, seconds - self._validation_seconds)
        self.history.append(row)

        score = [row["val/top1"], -row["val/loss"]] if "val/top1" in row else [row["epoch"], 0.0]
        better = self._best is None or score > self._best
        previous, self._best = self._best, score if better else self._best
        saved = self._save(trainer, self.last)
        if better and not (saved and self._link_best(trainer)):
            self._best = previous  # a later epoch may then take its place
        if trainer.is_global_zero:
            self._write_csv()
            print(self._line(trainer, row), flush=True)
        if trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            self._stop_if_asked(trainer)  # after the last epoch all that is left is to finish

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the signals back, wait until the files are in place, and fail if the last epoch's are not."""
        self._release_signals()
        trainer.strategy.barrier("run folder")
        if self._unsaved:
            raise OSError(f"the last epoch of the run could not be saved: {self._unsaved}. {self.resume_words}")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the signals back; say what is kept and how to go on."""
        self._release_signals()
        if trainer.state.fn == "fit" and trainer.is_global_zero:
            print(f"The run stopped ({type(exception).__name__}). {self.resume_words}", flush=True)

    def _release_signals(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    @property
    def resume_words(self) -> str:
        """What to do to go on."""
        if not self.last.is_file():
            return "No epoch had been finished, so nothing was saved."
        return f"{self.last} holds its state: give the same command again with --ckpt_path last to go on from there."

    # Files. Each is written beside its place and then moved there: a killed process leaves the old or the new one.

    def _save(self, trainer: L.Trainer, path: Path) -> bool:
        new = path.with_suffix(".new")
        try:
            trainer.save_checkpoint(new, weights_only=False)
            if trainer.is_global_zero:
                new.replace(path)
            self._unsaved = None
        except OSError as error:
            self._unsaved = f"{path}: {error.strerror or error}"
            print(
                f"NOT SAVED, {self._unsaved}; the previous state stays, training goes on. Free some space.", flush=True
            )
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
        return self._unsaved is None

    def _link_best(self, trainer: L.Trainer) -> bool:
        """Give last.ckpt a second name; it takes no space until the next epoch replaces last.ckpt."""
        if not trainer.is_global_zero:
            return True
        new = self.best.with_suffix(".new")
        try:
            new.unlink(missing_ok=True)
            try:
                os.link(self.last, new)
            except OSError:  # a file system without hard links
                shutil.copyfile(self.last, new)
            new.replace(self.best)
        except OSError as error:
            print(f"NOT SAVED, {self.best}: {error.strerror or error}. Free some space.", flush=True)
            return False
        return True

    def _write_csv(self) -> None:
        path = self.folder / "metrics.csv"
        names = list(dict.fromkeys(name for row in self.history for name in row))
        try:
            with path.with_suffix(".new").open("w", newline="") as file:
                writer = csv.DictWriter(file, names)
                writer.writeheader()
                writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in self.history)
            path.with_suffix(".new").replace(path)
        except OSError as error:  # the history is in the checkpoint too, and the next epoch writes it again
            print(f"NOT WRITTEN, {path}: {error.strerror or error}. Free some space.", flush=True)

    def _line(self, trainer: L.Trainer, row: Row) -> str:
        """The epoch in one line, for logs that show no progress bar."""
        epochs = trainer.max_epochs or 0
        left = (epochs - row["epoch"]) * row["seconds"]
        text = f"epoch {row['epoch']:.0f}/{epochs}: train loss {row.get('train/loss', float('nan')):.4f}"
        if "val/top1" in row:
            best = max(self.history, key=lambda r: r.get("val/top1", 0.0))
            text += f", val loss {row['val/loss']:.4f}, val top-1 {100 * row['val/top1']:.2f} %"
            text += f" (best {100 * best['val/top1']:.2f} in epoch {best['epoch']:.0f})"
        text += f", {row['images_per_second']:.0f} images/s"
        return f"{text}, {left / 60:.0f} min left" if left else text
