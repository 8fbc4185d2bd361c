"""The run folder: what a training run writes, and what it is resumed from.

config.yaml        the resolved configuration: `fit --config` on this file resumes the run; add another --run.folder to
                   start it again from scratch
metrics.csv        one row per epoch              curves.png   the same, plotted
tensorboard/       the same, and the learning rate per step
checkpoints/       last.ckpt (to resume), previous.ckpt (the one before), best.ckpt (highest validation accuracy)
weights/           the best weights as a weight folder, tested on the test split
.lock              names the process that writes
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from acmix_zoo.data.augment import image_keys, seed_globals
from acmix_zoo.training.checkpoints import Checkpoints
from acmix_zoo.training.clock import TrainingClock
from acmix_zoo.training.guard import NotFinite, Step, are_weights_finite, loss_error, weights_error
from acmix_zoo.training.history import Row, epoch_line, make_row, score, write_csv
from acmix_zoo.training.launch import model_message, progress_message
from acmix_zoo.training.lock import ClaimedFolder
from acmix_zoo.training.logs import Log
from acmix_zoo.training.option_rules import Options
from acmix_zoo.training.record import evaluation_limits
from acmix_zoo.training.resume import changes_to_record
from acmix_zoo.training.signals import Interrupted, Signals, requeue
from acmix_zoo.weights.hub import check_push


class RunFolder(Checkpoint):
    """Keep the run folder: history, metrics.csv and checkpoints. Stop cleanly on signals and on a loss that is NaN.

    On SIGINT, SIGTERM or SIGUSR1 the current step is finished, `last.ckpt` is written and the process exits with 128 +
    the signal's number. During validation, the validation is finished first. On SIGUSR1 a SLURM job is requeued. With
    several processes any of them may get the signal. A second SIGINT exits at once, with the state last saved.
    If a checkpoint cannot be written, for example to a full disk, this is reported, the previous one is kept, training
    continues, and the next save tries again. The run fails only if its last checkpoint cannot be saved either.
    If the loss is NaN or infinite, the run stops and saves the batch. On a GPU this is noticed one step later; the
    affected weights are not saved.

    Args:
        folder: output folder, created if needed. If None, the command line uses `runs/<recipe>-<data>`, or
            `runs/<model>-<data>` if no recipe is given.
        tag: second half of the name of the weights, `<model>.<tag>`; by default the name of the data.
        license: license of the weights, for their card.
        test: evaluate the best weights on the test split when the run ends. Turn it off for a run whose weights are
            only the start of another run, so that the test set is used once.
        push_to: "org/name" or "org/name@branch" on the Hugging Face Hub, where the weights are published when the run
            ends. If that fails, the run does not fail; the message says how to publish them later.
        save_every: also save last.ckpt every N optimiser steps (bounds the work lost on a crash).
    """

    command: str | None = None
    """The command line as given, for the record."""
    recipe: str | None = None
    """The recipe that the command line names, for the record."""
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
            raise ValueError(f"save_every={save_every} was given; expected a number of steps such as 1000, or null")
        self.folder = Path(folder or "runs/unnamed")
        self.tag = tag
        self.license = license
        self.test = test
        self.push_to = push_to
        self.history: list[Row] = []
        self.seed: int | None = None
        self.save_every = save_every
        self.checkpoints = Checkpoints(self.folder / "checkpoints")
        self.has_begun = False
        """Whether the training has started."""
        self._claim = ClaimedFolder(self.folder)
        self._clock = TrainingClock()
        self._signals = Signals()
        self._best: list[float] | None = None  # `score` of the epoch in best.ckpt
        self._stop_signal = 0  # the signal that all processes have agreed on
        self._step = Step()  # the current step
        self._previous_step = Step()
        self._is_dry_run = False  # Trainer(fast_dev_run=True): nothing is kept
        self._images = 0  # trained on in this epoch, by all processes
        self._is_validated = False  # whether this epoch was
        self._epochs: int | None = None  # of the run, as planned when it was saved
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

    @property
    def resume_message(self) -> str:
        """A sentence that says how to resume the run."""
        if not self.last.exists():
            return "Nothing had been saved yet."
        if not self.options:
            return f"The last state is in {self.last}; pass it to Trainer.fit as ckpt_path to resume."
        option = "" if self.resumes_by_itself else " with --ckpt_path last"
        return f"The last state is in {self.last}; run the same command again{option} to resume."

    # State in checkpoints: plain values only.

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run continues with, and what the record of its weights states."""
        return {
            "history": self.history,
            "best": self._best,
            "seed": self.seed,
            "epochs": self._epochs,
            "command": self.command,
            "recipe": self.recipe,
            "tag": self.tag,
            "license": self.license,
            "options": self.options,
            "changes": self._changes,
            "limits": self._limits,
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note the checkpoint's step, for the record."""
        self._resumed_step = int(checkpoint.get("global_step", 0))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from the state of a checkpoint.

        The record keeps the command that started the run. If the new command changes how the run continues, for example
        with more epochs, the record gets the new command and lists the change.
        """
        self.history = list(state_dict["history"])
        self._best, self.seed, self._epochs = state_dict["best"], state_dict["seed"], state_dict.get("epochs")
        self._changes = list(state_dict.get("changes", []))
        changed = changes_to_record(state_dict.get("options") or {}, self.options)
        if changed:
            self._changes.append({"step": self._resumed_step, "options": {k: list(v) for k, v in changed.items()}})
        elif state_dict.get("command"):
            self.command, self.recipe = state_dict["command"], state_dict.get("recipe")

    # Before the first step.

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let other callbacks use the log from here on."""
        for logger in trainer.loggers:
            if isinstance(logger, Log):
                logger.is_ready = True

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Create the folder and lock it, unless this is a dry run.

        Raises:
            OSError: another process writes in it; raised in all processes of the run.
        """
        self._is_dry_run = bool(getattr(trainer, "fast_dev_run", False))
        self._limits = evaluation_limits(trainer)
        if not self._is_dry_run:
            self._claim.claim(trainer)
        if self.seed is None:
            self.seed = torch.initial_seed()
        if trainer.is_global_zero:
            print(model_message(trainer, pl_module), flush=True)
        if self.push_to and not self._is_dry_run:
            check_push(self.push_to)  # now, rather than after the last epoch

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install signal handlers, after Lightning has installed its own handlers, and print where the run starts."""
        self._signals.take()
        self.has_begun = True
        if trainer.is_global_zero and not (self._is_dry_run and not trainer.global_step):
            print(progress_message(trainer, self.folder, self._epochs), flush=True)
        self._epochs = trainer.max_epochs
        self._previous_step = Step()
        self._start_epoch()  # on_train_epoch_start is not called for a run that is resumed within an epoch

    # Steps and epochs.

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the epoch's clock."""
        self._start_epoch()
        self._is_validated = False

    def _start_epoch(self) -> None:
        self._clock.start()
        self._images = 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed dropout and the like by (seed, epoch, batch), so that a resumed run draws the same numbers."""
        assert self.seed is not None
        self._step = Step(batch, batch_idx)
        rank = np.array([trainer.global_rank])
        key = int(image_keys(self.seed, trainer.current_epoch, batch_idx, images=rank)[0])
        seed_globals(key)
        torch.manual_seed(key >> 1)  # the device's, too

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Agree with the other processes on signals, and on whether every loss is finite.

        A GPU has not computed the current loss yet. To avoid waiting for it, the previous loss is checked instead, and
        the last one is checked before anything is saved.
        """
        is_broken_here = ~loss.detach().isfinite()
        self._stop_signal, is_broken = self._signals.agree_behind(loss.device, is_broken_here)
        step, is_behind = self._step._replace(loss=loss.detach()), self._signals.is_behind(loss.device)
        if is_broken:
            step = self._previous_step if is_behind else step
            raise loss_error(self.folder, trainer, step, is_behind, self.resume_message)
        if is_behind:
            self._previous_step = step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count images. Save after an optimiser step when it is time or a signal came, but not after the epoch's last
        one, which on_train_epoch_end saves."""
        self._images += len(batch[0]) * trainer.world_size
        is_step_complete = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if self._is_dry_run or trainer.is_last_batch or not is_step_complete:
            return
        if trainer.world_size == 1:
            self._stop_signal = self._signals.number or 0  # of this very step
        if self._stop_signal or (self.save_every and trainer.global_step % self.save_every == 0):
            self._save(trainer, pl_module)
        self._exit_if_asked(trainer)

    def _exit_if_asked(self, trainer: L.Trainer) -> None:
        if self._stop_signal:
            if self._stop_signal == getattr(signal, "SIGUSR1", None) and trainer.is_global_zero:
                requeue()
            trainer.strategy.barrier("requeue")  # srun kills the other tasks when the first one ends
            raise Interrupted(128 + self._stop_signal)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Pause the clock."""
        self._clock.pause()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Continue the clock."""
        self._clock.unpause()
        self._is_validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the epoch's row to the history, save, and exit if a signal came meanwhile."""
        if self._is_dry_run:
            return
        row = make_row(trainer, self._clock, self._images, self._is_validated)
        self.history.append(row)
        previous_best = self._best
        is_best = previous_best is None or score(row) > previous_best
        if is_best:
            self._best = score(row)
        if not self._save(trainer, pl_module, is_best) and is_best:
            self._best = previous_best  # a later epoch may then take its place
        if trainer.is_global_zero:
            write_csv(self.folder / "metrics.csv", self.history)
            print(epoch_line(self.history, trainer.max_epochs or 0, self._best), flush=True)
        (self._stop_signal,) = self._signals.agree(pl_module.device)
        if trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            self._exit_if_asked(trainer)  # after the last epoch, the run is finished instead

    def _save(self, trainer: L.Trainer, pl_module: L.LightningModule, is_best: bool = False) -> bool:
        """Save a checkpoint and return whether that succeeded. Raise NotFinite instead if the weights or a loss are not
        finite; weights may not be even after a finite loss."""
        if any(self._signals.settle()[1:]):
            raise loss_error(self.folder, trainer, self._previous_step, True, self.resume_message)
        # each process has its own batch-norm statistics
        if not trainer.strategy.reduce_boolean_decision(are_weights_finite(pl_module)):
            raise weights_error(trainer.global_step, self.resume_message)
        return self.checkpoints.save(trainer, is_best)

    # The end.

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the previous signal handlers, wait until the files are in place, and fail if the last epoch could not
        be saved."""
        self._signals.release()
        trainer.strategy.barrier("run folder")
        if self.checkpoints.unsaved:
            raise OSError(
                f"the last epoch of the run could not be saved: {self.checkpoints.unsaved}. {self.resume_message}"
            )

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Restore the previous signal handlers, release the folder, and print how to resume."""
        self._signals.release()
        if not self.has_begun and trainer.is_global_zero:
            self._claim.withdraw()
        self._claim.release()
        is_told = isinstance(exception, NotFinite)  # its message says how to resume
        if self.has_begun and trainer.state.fn == "fit" and trainer.is_global_zero and not is_told:
            is_interrupted = isinstance(exception, KeyboardInterrupt | Interrupted)
            reason = "was interrupted" if is_interrupted else "ended in an error"
            print(f"The run {reason}. {self.resume_message}", flush=True)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let another run use the folder."""
        self._claim.release()
