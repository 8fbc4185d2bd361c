"""`RunFolder`: the callback that writes a run folder, from which a run is resumed.

config.yaml        the resolved configuration: `fit --config` on this file resumes the run; add a different --run.folder
                   to start it again from scratch
metrics.csv        one row per epoch              curves.png   the same, plotted
tensorboard/       the same, and the learning rate per step
checkpoints/       last.ckpt (to resume), previous.ckpt (the one before), best.ckpt (highest validation score)
weights/           the best weights as a weight folder, tested on the test split
augmented.png      training images of the first step, as the network received them
learning_rate.png  the loss at different learning rates, if `acmix-zoo fit --run.find_lr true` has looked for one
test/, val/        what the best weights get right and wrong on a split: classes.csv, confusion.png, mistakes.png
predictions.png    images with the predicted masks or boxes beside the true ones, for segmentation and detection
.lock              states which process is writing to the folder
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from acmix_zoo.data.augment import image_keys, seed_globals
from acmix_zoo.training.augmented_sheet import write_augmented
from acmix_zoo.training.checkpoints import Checkpoints
from acmix_zoo.training.clock import TrainingClock
from acmix_zoo.training.early_stopping import early_stop_line, start_early_stopping
from acmix_zoo.training.guard import LossGuard, NotFinite, are_weights_finite, weights_error
from acmix_zoo.training.history import Row, check_validation_schedule, make_row, write_csv
from acmix_zoo.training.loaded_state import correct_loaded_state
from acmix_zoo.training.lock import ClaimedFolder
from acmix_zoo.training.logs import Log
from acmix_zoo.training.record import evaluation_limits, parent_record, task_of
from acmix_zoo.training.run_messages import epoch_line, start_lines
from acmix_zoo.training.run_state import RunState
from acmix_zoo.training.signals import Interrupted, Signals, exit_after_signal
from acmix_zoo.weights.hub import check_push
from acmix_zoo.weights.replace import check_target


class RunFolder(Checkpoint):
    """Write the run folder: history, metrics.csv and checkpoints. Stop cleanly on signals and on a loss that is NaN.

    On SIGINT, SIGTERM or SIGUSR1, the current step is finished, `last.ckpt` is written and the process exits with 128 +
    the signal's number. A validation is finished first. On SIGUSR1, a SLURM job is requeued. With several processes,
    any of them may receive the signal. A second SIGINT exits at once, without saving.
    If a checkpoint cannot be written, for example because the disk is full, this is reported and the previous one is
    kept. Training continues, and the next save tries again. The run fails only if its last checkpoint cannot be saved.
    If the loss is NaN or infinite, the run saves the batch and stops. The affected weights are not saved.

    Args:
        folder: output folder, created if needed. If None, the command line uses `runs/<recipe>-<data>`, or
            `runs/<model>-<data>` if no recipe is given.
        tag: second half of the name of the weights, `<model>.<tag>`; by default the name of the data.
        license: license of the weights, for their card: the Hub's id of a licence, such as mit, or the terms in words,
            such as "research use only, because …". The words before the first comma become the Hub's license_name.
        test: evaluate the best weights on the test split when the run ends. Turn it off for a run whose weights are
            only used to start a second run, so that the test set is used once.
        push_to: "org/name" or "org/name@branch" on the Hugging Face Hub, where the weights are published when the run
            ends. A failure is reported, with the command to try again, and does not fail the run.
        save_every: also save last.ckpt every N optimiser steps (bounds the work lost on a crash).
        verbose: also print the learning rate, the throughput, the time waiting for data and MFU (the fraction of the
            device's peak FLOP/s that is used).
        find_lr: try learning rates from 1e-7 to 1 in up to 100 steps, write the losses to learning_rate.png, print the
            rate at which the loss falls fastest, and stop. Nothing is trained, so that the config.yaml of every run
            states the learning rate it was trained with. The command to train with the suggested rate is printed, too.
            Only for new runs on the command line.
    """

    resume_command = ""
    """What to run to resume, such as "the same command again"; "" for programs that use the trainer themselves."""

    def __init__(
        self,
        folder: str | None = None,
        tag: str | None = None,
        license: str | None = None,
        test: bool = True,
        push_to: str | None = None,
        save_every: int | None = None,
        verbose: bool = False,
        find_lr: bool = False,
    ) -> None:
        if save_every is not None and save_every < 1:
            raise ValueError(f"save_every={save_every} is not positive. Use a number of steps such as 1000, or null")
        self.folder = Path(folder or "runs/unnamed")
        self.test = test
        self.push_to = push_to
        self.save_every = save_every
        self.verbose = verbose
        self.find_lr = find_lr
        self.state = RunState(tag, license)
        self.checkpoints = Checkpoints(self.folder / "checkpoints")
        self.has_begun = False
        """Whether the training has started."""
        self._claim = ClaimedFolder(self.folder)
        self._clock = TrainingClock()
        self._signals = Signals()
        self._loss_guard = LossGuard()
        self._stop_signal = 0  # the signal that all processes have agreed on
        self._is_dry_run = False  # Trainer(fast_dev_run=True): nothing is written
        self._images = 0  # number of images that all processes have trained on since the clock was started
        self._earlier = 0.0  # seconds of this epoch before that, in an earlier process
        self._validated_step = -1  # number of optimiser steps before the last validation
        self._resumed_step = 0

    @property
    def history(self) -> list[Row]:
        """One row per epoch."""
        return self.state.history

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.checkpoints.last

    @property
    def best(self) -> Path:
        """The checkpoint with the highest validation score, the main metric of the task."""
        return self.checkpoints.best

    @property
    def resume_message(self) -> str:
        """A sentence that says how to resume the run."""
        return self.checkpoints.resume_message(self.resume_command)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs, and what the record of its weights states."""
        return self.state.to_dict()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note the step of the checkpoint, for the record."""
        self._resumed_step = int(checkpoint.get("global_step", 0))
        correct_loaded_state(trainer, checkpoint)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from the state of a checkpoint."""
        self.state.restore(state_dict, self._resumed_step)

    # Before the first step.

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let other callbacks use the log from here on."""
        for logger in trainer.loggers:
            if isinstance(logger, Log):
                logger.is_ready = True

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Create the folder and lock it, unless this is a dry run.

        Raises:
            OSError: another run writes to the folder, or its weights/ is no weight folder. Raised in all processes.
            ValueError: `find_lr` is set. The command line looks for a learning rate without this callback.
        """
        if self.find_lr:
            raise ValueError(
                "find_lr=True has no effect in a Python program. Expected False. To look for a learning rate, call "
                "acmix_zoo.training.learning_rate_finder.find_learning_rate(trainer, task, data)"
            )
        self._is_dry_run = bool(getattr(trainer, "fast_dev_run", False))
        self.state.limits = evaluation_limits(trainer)
        if not self._is_dry_run:
            check_target(self.folder / "weights")  # now, rather than after the last epoch
            if self.push_to:
                check_push(self.push_to)
            self._claim.claim(trainer)
        if self.state.seed is None:
            self.state.seed = torch.initial_seed()
        if self.state.parent is None:
            cfg = getattr(getattr(pl_module, "model", None), "pretrained_cfg", None) or {}
            self.state.parent = parent_record({}, pl_module.hparams.get("pretrained"), cfg)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install signal handlers (after Lightning has installed its own), and print where the run starts."""
        check_validation_schedule(trainer)
        start_early_stopping(trainer, self.history)
        self._signals.take()
        self.has_begun = True
        if trainer.is_global_zero:
            folder = None if self._is_dry_run else self.folder
            print(*start_lines(trainer, pl_module, folder, self.state.epochs), sep="\n", flush=True)
        self.state.epochs = trainer.max_epochs
        if self.state.best and not self._is_dry_run and not self.checkpoints.take_best(trainer, self.state.best):
            self.state.best = None
        # on_train_epoch_start is not called for a run that is resumed within an epoch
        self._start_epoch(self.state.take_seconds(trainer.current_epoch + 1))

    # Steps and epochs.

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the epoch's clock."""
        self._start_epoch(0.0)

    def _start_epoch(self, earlier: float) -> None:
        self._clock.start()
        self._images, self._earlier = 0, earlier

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed dropout and similar layers with (seed, epoch, batch), so that a resumed run draws the same numbers."""
        assert self.state.seed is not None
        if trainer.is_global_zero and not trainer.global_step and not batch_idx and not self._is_dry_run:
            write_augmented(trainer, pl_module, batch, self.folder / "augmented.png")
        self._loss_guard.start_step(batch, batch_idx)
        rank = np.array([trainer.global_rank])
        key = int(image_keys(self.state.seed, trainer.current_epoch, batch_idx, images=rank)[0])
        seed_globals(key)
        torch.manual_seed(key >> 1)  # the device's, too

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Check the loss, and exchange signals with the other processes."""
        self._stop_signal = self._loss_guard.check(self, trainer, loss, self._signals)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count images. After an optimiser step, save if `save_every` is due or a signal was received. The last step of
        an epoch is saved by `on_train_epoch_end` instead."""
        self._images += len(batch[0]) * trainer.world_size
        is_step_complete = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if self._is_dry_run or trainer.is_last_batch or not is_step_complete:
            return
        if trainer.world_size == 1:
            self._stop_signal = self._signals.number or 0  # also a signal received in this step
        if self._stop_signal or (self.save_every and trainer.global_step % self.save_every == 0):
            self.state.unfinished_seconds = self._earlier + self._clock.elapsed()
            self._save(trainer, pl_module)
        exit_after_signal(trainer, self._stop_signal)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Pause the clock."""
        self._clock.pause()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Continue the clock."""
        self._clock.unpause()
        self._validated_step = trainer.global_step

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the epoch's row to the history, save, and exit if a signal was received in the meantime."""
        if self._is_dry_run:
            return
        state, previous_best, task = self.state, self.state.best, task_of(pl_module)
        row = make_row(trainer, self._clock, self._images, self._validated_step == trainer.global_step, self._earlier)
        state.unfinished_seconds = 0.0
        is_best = state.add_epoch(row, task)
        if not self._save(trainer, pl_module, is_best):
            state.best = previous_best  # so that a later epoch can become the best one
        if trainer.is_global_zero:
            write_csv(self.folder / "metrics.csv", state.history)
            epochs = trainer.max_epochs or 0
            print(epoch_line(state.history, epochs, state.best, task, self.verbose), flush=True)
        (self._stop_signal,) = self._signals.agree(pl_module.device)
        if trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            exit_after_signal(trainer, self._stop_signal)  # after the last epoch, the run is finished instead

    def _save(self, trainer: L.Trainer, pl_module: L.LightningModule, is_best: bool = False) -> bool:
        """Save a checkpoint and return whether that succeeded.

        Raises:
            NotFinite: a loss or the weights are not finite. Weights may be infinite even after a finite loss.
        """
        self._loss_guard.check_last(self, trainer, self._signals)
        # each process has its own batch-norm statistics
        if not trainer.strategy.reduce_boolean_decision(are_weights_finite(pl_module)):
            raise weights_error(trainer.global_step, self.resume_message)
        return self.checkpoints.save(trainer, is_best)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the signal handlers, wait for the other processes, and fail if the last epoch could not be saved."""
        self._signals.release()
        if trainer.is_global_zero and (line := early_stop_line(trainer, self.history)):
            print(line, flush=True)
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
        if isinstance(exception, NotFinite):  # its message says how to resume
            return
        if self.has_begun and trainer.state.fn == "fit" and trainer.is_global_zero:
            is_interrupted = isinstance(exception, KeyboardInterrupt | Interrupted)
            reason = "was interrupted" if is_interrupted else "ended in an error"
            print(f"The run {reason}. {self.resume_message}", flush=True)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let another run use the folder."""
        self._claim.release()
