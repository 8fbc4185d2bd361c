"""`ResumableTask`: what a task saves in a checkpoint, and what it checks when one is loaded."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import lightning as L

from acmix_zoo.models.task_kinds import TaskKind, config_task
from acmix_zoo.tasks.hyperparameters import (
    check_same_hyperparameters,
    check_same_network,
    resolve_hyperparameters,
)
from acmix_zoo.tasks.metrics import ExactMean
from acmix_zoo.tasks.start_weights import without_start_weights


class ResumableTask(L.LightningModule):
    """A LightningModule whose checkpoints state its task, and are rejected by other tasks and networks.

    Attributes:
        kind: the task.
        num_classes: number of classes.
        train_loss: the mean training loss of the epoch. A checkpoint saved within an epoch contains its sums.
    """

    kind: ClassVar[TaskKind]
    num_classes: int

    def __init__(self) -> None:
        super().__init__()
        self.train_loss = ExactMean()

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Self:
        """Load a task from a checkpoint, like Lightning, but without first loading the weights that training started
        from, which may no longer exist. No code from the file is run unless `weights_only` is False."""
        with without_start_weights():
            return super().load_from_checkpoint(
                checkpoint_path, map_location, hparams_file, strict, weights_only=weights_only, **kwargs
            )

    def _find_trainer(self) -> L.Trainer | None:
        """Return the trainer, or None without one, as in `load_from_checkpoint`."""
        try:
            return self.trainer
        except RuntimeError:
            return None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint belongs to this model, and that the options with which a run is resumed do not
        change its result. The errors are short, unlike torch's list of mismatched keys."""
        recorded, trainer = resolve_hyperparameters(checkpoint.get("hyper_parameters", {})), self._find_trainer()
        if (task := config_task(checkpoint)) is not self.kind:
            raise ValueError(
                f"the checkpoint contains a network for {task.title}. Expected one for {self.kind.title}. Use --task "
                f"{task.name}"
            )
        for key in ("model", "num_classes"):
            if key in recorded and recorded[key] != self.hparams[key]:
                raise ValueError(
                    f"the checkpoint contains {recorded['model']} with {recorded['num_classes']} classes. Expected "
                    f"{self.hparams['model']} with {self.num_classes} classes. Pass a checkpoint of this run. To only "
                    "start from the weights of the checkpoint, use --model.pretrained PATH"
                )
        is_fit = trainer is not None and trainer.state.fn == "fit"
        # nothing depends on the hyper-parameters before the first step, where Lightning's Tuner saves
        if is_fit and checkpoint.get("global_step"):
            check_same_hyperparameters(recorded, self.hparams)
        check_same_network(recorded, self.hparams)
        if is_fit and "train_loss" in checkpoint and trainer is not None and trainer.is_global_zero:
            self.train_loss.restore(checkpoint["train_loss"])  # saved within an epoch: continue its sums

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the name of the task and, within an epoch, the sums of the training loss so far, over all processes."""
        trainer = self._find_trainer()
        if trainer is None:
            return
        checkpoint["task"] = self.kind.name
        loop: Any = trainer.fit_loop.epoch_loop
        done = loop.batch_progress.current.processed
        if 0 < done < trainer.num_training_batches:
            sums = self.train_loss.sums()
            checkpoint["train_loss"] = trainer.strategy.reduce(sums, reduce_op="sum").cpu()
