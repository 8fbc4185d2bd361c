"""The run folder: what a training leaves behind, and what it is resumed from.

config.yaml        the resolved configuration: `fit --config` resumes the run, and repeats it with another --run.folder
metrics.csv        a row an epoch                curves.png   the same as a picture
tensorboard/       the same, and the learning rate by step
checkpoints/       last.ckpt (to resume), previous.ckpt (the one before), best.ckpt (highest validation accuracy)
weights/           the best weights as a weight folder, tested on the test split
.lock              of the process that writes
"""

import contextlib
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from acmix_zoo.data.augment import image_keys, seed_globals
from acmix_zoo.training.checkpoints import Checkpoints
from acmix_zoo.training.export_weights import evaluation_limits
from acmix_zoo.training.guard import NotFinite, keep_batch, weights_are_finite
from acmix_zoo.training.history import Row, epoch_line, score, write_csv
from acmix_zoo.training.launch import start_message
from acmix_zoo.training.lock import Lock
from acmix_zoo.training.logs import Log
from acmix_zoo.training.resume import Options, recorded_changes
from acmix_zoo.training.signals import Interrupted, Signals, requeue
from acmix_zoo.weights.hub import check_push


class RunFolder(Checkpoint):
    """Keep the run folder: history, metrics.csv, checkpoints; stop cleanly on signals and on a loss that is no number.

    On SIGINT, SIGTERM or SIGUSR1 the running step is finished, `last.ckpt` is written and the process ends (with 128 +
    the signal's number); during validation, the validation is finished first. On SIGUSR1 a SLURM job is requeued. With
    several processes any of them may get the signal. A second SIGINT ends at once, with the state last saved.
    A checkpoint that cannot be written (full disk) is reported; the previous one stays, training goes on and the next
    save tries again; only if the last one fails too is it an error.
    When the loss is NaN or infinite, the run stops before it changes the weights, and keeps the batch.

    Args:
        folder: output folder, created if needed. If None, the command line uses `runs/<recipe>-<data>`, or
            `runs/<model>-<data>` if no recipe is given.
        tag: the second half of the weights' name, `<model>.<tag>`; by default the data's name.
        license: of the weights, for their card.
        test: evaluate the best weights on the test split when the run ends. False for a run whose weights are only
            another run's start: the test set is for the last of them.
        save_every: save `last.ckpt` every so many optimiser steps, besides the end of each epoch; what a kill can cost.
        push_to: "org/name" or "org/name@branch" of the Hugging Face Hub, where the weights are published when the run
            ends. A push that fails is reported and can be made up for; the run does not fail for it.
    """

    command: str | None = None
    recipe: str | None = None
    """The command line as given and the recipe that it names; for the record."""
    options: Options = {}  # noqa: RUF012
    """All options of the command with their values, to compare with those of the run to be resumed."""
    resumes_by_itself = False
    """Whether the same command resumes the run, because its recipe sets `ckpt_path: last`."""

    def __init__(
        self,
        folder: str | None = None,
        tag: str | None = None,
        license: str | None = None,
        test: bool = True,
        push_to: str | None = None,
        save_every: int | None = None,
    ) -> None:
        if save_every is not None and save_every < 1:
            raise ValueError(f"save_every={save_every}: expected a number of steps, or none")
        self.folder = Path(folder or "runs/unnamed")
        self.tag = tag
        self.license = license
        self.test = test
        self.push_to = push_to
        self.history: list[Row] = []
        self.seed: int | None = None
        self.save_every = save_every
        self.checkpoints = Checkpoints(self.folder / "checkpoints")
        self._lock = Lock(self.folder)
        self._best: list[float] | None = None  # `score` of the epoch in best.ckpt
        self._signals = Signals()
        self._stop = 0  # the signal that all processes know of
        self._batch: tuple[Any, int] = (None, 0)  # of the running step, and its number in the epoch
        self._previous: tuple[Any, int, Tensor | None] = (None, 0, None)  # the previous batch, its number and its loss
        self._rehearsal = False  # Trainer(fast_dev_run=True): nothing is kept
        self._epoch_start = self._validation_seconds = 0.0
        self._images = 0
        self._validated = False  # in this epoch
        self.has_begun = False
        """Whether the training has started."""
        self._made: list[Path] = []  # folders that this run created, the innermost first
        self._made_lock = False
        self._epochs: int | None = None  # of the run
        self._changes: list[dict[str, Any]] = []  # options that were changed on resume
        self._resumed_step = 0
        self._limits: dict[str, Any] = {}  # of the trainer's evaluations; a Python program has no options

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.checkpoints.last

    @property
    def best(self) -> Path:
        """The checkpoint with the highest validation accuracy."""
        return self.checkpoints.best

    # State in checkpoints: plain values only.

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run goes on with."""
        about: dict[str, Any] = {"command": self.command, "recipe": self.recipe, "tag": self.tag}
        about |= {"license": self.license, "options": self.options, "changes": self._changes}
        about["limits"] = self._limits
        return {"history": self.history, "best": self._best, "seed": self.seed, "epochs": self._epochs, **about}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note where the checkpoint stands, for the record."""
        self._resumed_step = int(checkpoint.get("global_step", 0))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from the state of a checkpoint.

        The record keeps the command that started the run. If the new command changes how the run continues, for example
        with more epochs, the record gets the new command and lists the change.
        """
        self.history = list(state_dict["history"])
        self._best, self.seed, self._epochs = state_dict["best"], state_dict["seed"], state_dict.get("epochs")
        self._changes = list(state_dict.get("changes", []))
        changed = recorded_changes(state_dict.get("options") or {}, self.options)
        if changed:
            self._changes.append({"step": self._resumed_step, "options": {k: list(v) for k, v in changed.items()}})
        elif state_dict.get("command"):
            self.command, self.recipe = state_dict["command"], state_dict.get("recipe")

    # Fit.

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let other callbacks use the log from here on."""
        for logger in trainer.loggers:
            if isinstance(logger, Log):
                logger.is_ready = True

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the folder and lock it, unless this is a rehearsal.

        Raises:
            OSError: another process writes in it; in all processes of the run.
        """
        self._rehearsal = bool(getattr(trainer, "fast_dev_run", False))
        self._limits = evaluation_limits(trainer)
        if not self._rehearsal:
            place = self.last.parent
            self._made = [path for path in (place, *place.parents) if not path.exists()]
            self._made_lock = not self._lock.path.exists()
            place.mkdir(parents=True, exist_ok=True)
            self._take_lock(trainer)
        if self.seed is None:
            self.seed = torch.initial_seed()
        if trainer.is_global_zero:
            print(start_message(trainer, pl_module), flush=True)
        if self.push_to and not self._rehearsal:
            check_push(self.push_to)  # now, rather than after the last epoch

    def _take_lock(self, trainer: L.Trainer) -> None:
        refused = None
        if trainer.is_global_zero:
            try:
                self._lock.take()
            except OSError as error:
                refused = str(error)
        refused = trainer.strategy.broadcast(refused)
        if refused:
            raise OSError(refused)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let another run have the folder."""
        self._lock.release()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals, after Lightning has put its own handlers in place."""
        self._signals.take()
        self.has_begun = True
        if trainer.is_global_zero and not trainer.global_step and not self._rehearsal:
            print(f"New run in {self.folder}", flush=True)
        if trainer.is_global_zero and trainer.global_step:
            steps = f"step {trainer.global_step} of {trainer.estimated_stepping_batches:.0f}"
            print(f"Resuming from epoch {trainer.current_epoch + 1} of {trainer.max_epochs} ({steps})", flush=True)
            if self._epochs not in (None, trainer.max_epochs):
                now = f"From here on it follows the schedule of {trainer.max_epochs} epochs. A new run would differ"
                print(f"OTHER SCHEDULE: the run was planned for {self._epochs} epochs. {now}", flush=True)
        self._epochs = trainer.max_epochs
        self._previous = (None, 0, None)
        self._start_clock()  # a run that goes on within an epoch does not start one

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the epoch's clock."""
        self._start_clock()
        self._validated = False

    def _start_clock(self) -> None:
        self._epoch_start, self._validation_seconds, self._images = time.perf_counter(), 0.0, 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed dropout and its kin by (seed, epoch, batch), so that a resumed run draws what an unbroken one draws."""
        assert self.seed is not None
        self._batch = batch, batch_idx
        rank = np.array([trainer.global_rank])
        key = int(image_keys(self.seed, trainer.current_epoch, batch_idx, images=rank)[0])
        seed_globals(key)
        torch.manual_seed(key >> 1)  # the device's, too

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Agree with the other processes on signals, and on whether every loss is finite.

        A GPU has not computed the current loss yet. To avoid waiting for it, the previous loss is checked instead, and
        the last one is checked before anything is saved.
        """
        own = ~loss.detach().isfinite()
        self._stop, broken = self._signals.agree_behind(loss.device, own)
        seen, is_behind = (*self._batch, loss.detach()), self._signals.is_behind(loss.device)
        if broken:
            self._end_broken(trainer, *(self._previous if is_behind else seen), is_behind)
        if is_behind:
            self._previous = seen

    def _end_broken(
        self, trainer: L.Trainer, batch: Any, index: int, loss: Tensor | None, is_behind: bool = True
    ) -> None:
        """
        Raises:
            NotFinite: the loss of a batch is NaN or infinite in this or another process.
        """
        is_own = loss is not None and not bool(loss.isfinite())
        if loss is not None and is_own:
            where, value = keep_batch(self.folder, trainer, batch, index, loss), f"{float(loss)}"
        else:  # the first process with such a loss reports it
            where, value = "the batch is in another process", "not finite"
        spared = "The affected weights were not saved." if is_behind else "The weights were not changed by it."
        raise NotFinite(
            f"the loss is {value} at epoch {trainer.current_epoch + 1}, step {trainer.global_step}; {where}. {spared} "
            f"{self.resume_message} To avoid this, start a new run with a lower model.lr, a longer "
            "model.warmup_epochs, trainer.gradient_clip_val, or bf16-mixed instead of 16-mixed"
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count images; save between two steps when it is time, or after a signal. The last step goes on to the end."""
        self._images += len(batch[0]) * trainer.world_size
        whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if self._rehearsal or trainer.is_last_batch or not whole:
            return
        if trainer.world_size == 1:
            self._stop = self._signals.number or 0  # of this very step
        if self._stop or (self.save_every and trainer.global_step % self.save_every == 0):
            self._save(trainer, pl_module)
        self._end_if_asked(trainer)

    def _end_if_asked(self, trainer: L.Trainer) -> None:
        if self._stop:
            if self._stop == getattr(signal, "SIGUSR1", None) and trainer.is_global_zero:
                requeue()
            trainer.strategy.barrier("requeue")  # srun kills the other tasks when the first one ends
            raise Interrupted(128 + self._stop)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock of training."""
        self._validation_seconds -= time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on with the clock of training."""
        self._validation_seconds += time.perf_counter()
        self._validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the epoch's row, save, and stop if a signal came meanwhile."""
        if self._rehearsal:
            return
        seconds = time.perf_counter() - self._epoch_start
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row = {"epoch": float(trainer.current_epoch + 1), "step": float(trainer.global_step)}
        new = ("train/", "speed/", "val/") if self._validated else ("train/", "speed/")  # others are an older epoch's
        row |= {name: metrics[name] for name in metrics if name.startswith(new)}
        row["lr"] = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        row["seconds"] = seconds
        row["images_per_second"] = self._images / max(1e-9, seconds - self._validation_seconds)
        self.history.append(row)

        own = score(row)
        better = self._best is None or own > self._best
        previous, self._best = self._best, own if better else self._best
        if not self._save(trainer, pl_module, better) and better:
            self._best = previous  # a later epoch may then take its place
        if trainer.is_global_zero:
            write_csv(self.folder / "metrics.csv", self.history)
            print(epoch_line(self.history, trainer.max_epochs or 0, self._best), flush=True)
        (self._stop,) = self._signals.agree(pl_module.device)
        if trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            self._end_if_asked(trainer)  # after the last epoch all that is left is to finish

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the signals back, wait until the files are in place, and fail if the last epoch's are not."""
        self._signals.release()
        trainer.strategy.barrier("run folder")
        if self.checkpoints.unsaved:
            raise OSError(
                f"the last epoch of the run could not be saved: {self.checkpoints.unsaved}. {self.resume_message}"
            )

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give signals and folder back; say what is kept and how to go on."""
        self._signals.release()
        if not self.has_begun and trainer.is_global_zero:
            self._withdraw()
        self._lock.release()
        if (
            self.has_begun
            and trainer.state.fn == "fit"
            and trainer.is_global_zero
            and not isinstance(exception, NotFinite)
        ):
            reason = (
                "was interrupted" if isinstance(exception, KeyboardInterrupt | Interrupted) else "ended in an error"
            )
            print(f"The run {reason}. {self.resume_message}", flush=True)

    def _withdraw(self) -> None:
        """Remove what was created for a run that did not begin, so that a refused command leaves nothing behind."""
        self._lock.release(remove=self._made_lock)
        for path in self._made:
            with contextlib.suppress(OSError):  # it is not empty: somebody else uses it
                path.rmdir()

    @property
    def resume_message(self) -> str:
        """A sentence that says how to resume the run."""
        if not self.last.exists():
            return "Nothing had been saved yet."
        if not self.options:
            return f"The last state is in {self.last}; pass it to Trainer.fit as ckpt_path to resume."
        ask = "" if self.resumes_by_itself else " with --ckpt_path last"
        return f"The last state is in {self.last}; run the same command again{ask} to resume."

    def _save(self, trainer: L.Trainer, pl_module: L.LightningModule, best: bool = False) -> bool:
        """Save, unless the weights are not finite, which can happen even after a finite loss."""
        if any(self._signals.settle()[1:]):
            self._end_broken(trainer, *self._previous)
        # each process has its own batch-norm statistics
        if not trainer.strategy.reduce_boolean_decision(weights_are_finite(pl_module)):
            raise NotFinite(
                f"the weights are not finite after step {trainer.global_step}, so they were not saved. "
                f"{self.resume_message} To avoid this, start a new run with a lower model.lr, a longer "
                "model.warmup_epochs, or trainer.gradient_clip_val"
            )
        return self.checkpoints.save(trainer, best)
