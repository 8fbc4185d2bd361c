"""Image classification with any timm model: cross-entropy, AdamW or SGD, linear warm-up and a cosine schedule.

trainer = L.Trainer(max_epochs=5)
data = ImageDataModule("folder/of/class/folders", image_size=32)
trainer.fit(ClassificationTask("acmix_resnet_pico", num_classes=data.num_classes, pretrained=True), data)
"""

from __future__ import annotations

from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from acmix_zoo.tasks.ema import EMA
from acmix_zoo.tasks.hyperparameters import (
    check_ranges,
    check_same_hyperparameters,
    check_same_network,
    resolve_hyperparameters,
)
from acmix_zoo.tasks.image_size import check_image_size
from acmix_zoo.tasks.metrics import EvaluationMetrics, ExactMean
from acmix_zoo.tasks.optim import batch_size_factor, make_optimizer, warmup_cosine
from acmix_zoo.tasks.sharded import is_sharded, shard
from acmix_zoo.tasks.start_weights import are_start_weights_loaded, choose_network, without_start_weights
from acmix_zoo.weights import create_model

Batch = tuple[Tensor, Tensor]  # (B, C, H, W) float, and (B,) int64 labels or, with mixup, (B, classes) float


class ClassificationTask(L.LightningModule):
    """Train, evaluate and apply a classifier. The network is `self.model`.

    Subclasses may override four hooks: configure_models, configure_losses, configure_metrics, configure_optimizers.
    Logs train/loss (including smoothing and mixing). For val/ and test/, logs the loss (plain cross-entropy), top1 and,
    with more than five classes, top5, both between 0 and 1.

    Args:
        model: name of a model of this project or of timm, or a weight folder.
        num_classes: number of classes; the command line takes it from the data.
        pretrained: true, a tag, a weight folder or a checkpoint file, see `acmix_zoo.create_model`.
        model_kwargs: further arguments of the model, such as drop_path_rate.
        optimizer: "adamw" or "sgd".
        lr: peak learning rate, for a batch of `base_batch_size` images.
        base_batch_size: batch size that lr, min_lr and warmup_lr refer to. They are scaled linearly to the effective
            batch size (images per device × processes × accumulated batches). null: no scaling.
        weight_decay: weight decay; biases, norms, scalars and the parameters that the model exempts have none.
        momentum: momentum for SGD, beta1 for AdamW.
        nesterov: use Nesterov momentum with SGD.
        warmup_epochs: length of the linear warm-up, in epochs.
        warmup_lr: learning rate at the start of the warm-up.
        min_lr: learning rate at the end of the cosine schedule.
        label_smoothing: label smoothing of the training loss.
        layer_decay: factor on the learning rate per layer below the head. null: the same rate for all layers.
        ema_decay: decay of a moving average of the weights, which is then evaluated and saved. null: no average.
        channels_last: use the channels_last memory format, which is faster for convolutions.
        compile: compile the network with torch.compile. The first step then takes longer.
        grad_checkpointing: recompute activations in the backward pass. The gradients are the same; training needs less
            memory and about a third more time.
        linear_probe: train only the classifier. All other weights and the batch-norm statistics stay unchanged.

    Raises:
        ValueError: unknown model or weights (from create_model), or an impossible setting.
    """

    def __init__(
        self,
        model: str,
        num_classes: int = 1000,
        pretrained: bool | str = False,
        model_kwargs: dict[str, Any] | None = None,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        lr: float = 1e-3,
        base_batch_size: int | None = None,
        weight_decay: float = 0.05,
        momentum: float = 0.9,
        nesterov: bool = True,
        warmup_epochs: float = 1.0,
        warmup_lr: float = 0.0,
        min_lr: float = 1e-6,
        label_smoothing: float = 0.0,
        layer_decay: float | None = None,
        ema_decay: float | None = None,
        channels_last: bool = True,
        compile: bool = False,
        grad_checkpointing: bool = False,
        linear_probe: bool = False,
    ) -> None:
        super().__init__()
        # save_hyperparameters stores these local variables
        model, pretrained, model_kwargs = choose_network(model, pretrained, model_kwargs)
        self.save_hyperparameters()
        self.num_classes = num_classes
        self._checked_size: tuple[int, ...] | None = None  # the image size for which the network was last checked
        check_ranges(self.hparams)
        self.configure_models()
        self.configure_losses()
        self.configure_metrics()

    def configure_models(self) -> None:
        """Build the network."""
        h = self.hparams
        pretrained = h["pretrained"] if are_start_weights_loaded() else False
        try:
            self.model = create_model(h["model"], pretrained, num_classes=self.num_classes, **h["model_kwargs"] or {})
        except TypeError as error:
            if not h["model_kwargs"]:
                raise
            raise ValueError(
                f"{h['model']} cannot be built with model_kwargs={h['model_kwargs']}: {error}. Expected arguments of "
                "its constructor, such as {drop_path_rate: 0.1}"
            ) from error
        if h["grad_checkpointing"]:
            self.model.set_grad_checkpointing(True)  # type: ignore[operator]
        if h["linear_probe"]:
            self.model.requires_grad_(False)
            self.classifier().requires_grad_(True)

    def classifier(self) -> nn.Module:
        """Return the network's last layer."""
        layer: nn.Module = self.model.get_classifier()  # type: ignore[operator]
        return layer

    def train(self, mode: bool = True) -> ClassificationTask:
        """Set the mode. In a linear probe, only the classifier is ever in training mode."""
        super().train(mode)
        if mode and self.hparams["linear_probe"]:
            self.model.eval()
            self.classifier().train()
        return self

    def configure_model(self) -> None:
        """Shard the network over the processes if the strategy (ModelParallelStrategy) asks for it."""
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh["data_parallel"])

    def configure_losses(self) -> None:
        """Set the loss for training and the one for evaluation."""
        self.train_criterion = nn.CrossEntropyLoss(label_smoothing=self.hparams["label_smoothing"])
        self.eval_criterion = nn.CrossEntropyLoss(reduction="none")  # per image, for an exact mean

    def configure_metrics(self) -> None:
        """Create the metrics of each stage."""
        self.train_loss = ExactMean()
        self.val_metrics = EvaluationMetrics(self.num_classes)
        self.test_metrics = EvaluationMetrics(self.num_classes)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimiser, and the schedule, which is stepped after every optimiser step."""
        h = self.hparams
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise ValueError(
                f"max_epochs={epochs}, but the schedule depends on the length of the run. Expected 1 or more. Set "
                "--trainer.max_epochs; in Python, use Trainer(max_epochs=...)"
            )
        total = int(self.trainer.estimated_stepping_batches)  # also creates the loaders
        lr = h["lr"] * batch_size_factor(self.trainer, h["lr"], h["base_batch_size"])
        optimizer = make_optimizer(self.model, lr, h)
        warmup = round(total * h["warmup_epochs"] / epochs)
        factor = warmup_cosine(warmup, total, h["min_lr"] / h["lr"], h["warmup_lr"] / h["lr"])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_callbacks(self) -> list[L.Callback]:
        """Return the callback that averages the weights in a fit, if `ema_decay` is set."""
        decay = self.hparams["ema_decay"]
        if decay and isinstance(self.trainer.strategy, ModelParallelStrategy):
            raise ValueError(
                "ema_decay does not work with a network that is sharded over processes (ModelParallelStrategy). Set "
                "--model.ema_decay null, or use --trainer.strategy ddp"
            )
        return [EMA(decay)] if decay and self.trainer.state.fn == "fit" else []

    def setup(self, stage: str) -> None:
        """Check that the network fits the data, set its memory format, and compile it."""
        classes = getattr(getattr(self.trainer, "datamodule", None), "num_classes", self.num_classes)
        if classes != self.num_classes:
            raise ValueError(
                f"the model has {self.num_classes} classes, but the data has {classes}. Use "
                f"ClassificationTask(..., num_classes={classes})"
            )
        self._check_image_size()
        if self.hparams["channels_last"] and not is_sharded(self.model):
            self.model.to(memory_format=torch.channels_last)
        if self.hparams["compile"] and self.model._compiled_call_impl is None:
            self.model.compile()  # in place, so that the keys of the state dict do not change

    def _check_image_size(self) -> None:
        data = getattr(self.trainer, "datamodule", None)
        size = getattr(data, "input_size", None)
        if size is not None and size != self._checked_size and not is_sharded(self.model):
            check_image_size(self.model, size, self.hparams["model"])
            train_sizes = getattr(data, "train_sizes", None)
            for side in sorted(set(train_sizes.sizes.values())) if train_sizes else ():
                check_image_size(self.model, (size[0], side, side), self.hparams["model"], is_train_size=True)
            self._checked_size = tuple(size)

    def on_train_start(self) -> None:
        """Put the frozen modules of a linear probe in eval mode, because Lightning does not change module modes
        itself."""
        self.train()

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> ClassificationTask:
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
        """Within an epoch, save the sums of the training loss so far, over all processes."""
        trainer = self._find_trainer()
        if trainer is None:
            return
        loop: Any = trainer.fit_loop.epoch_loop
        done = loop.batch_progress.current.processed
        if 0 < done < trainer.num_training_batches:
            sums = self.train_loss.sums()
            checkpoint["train_loss"] = trainer.strategy.reduce(sums, reduce_op="sum").cpu()

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        if self.hparams["channels_last"]:
            x = x.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.model(x)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        x, y = batch
        loss: Tensor = self.train_criterion(self(x), y)
        self.train_loss.update(loss.detach().expand(len(x)))
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        if (trainer := self._find_trainer()) is not None:
            # a CPU tensor, because Lightning would copy a number to the device and wait for it
            self.log("lr", torch.tensor(max(group["lr"] for group in trainer.optimizers[0].param_groups)))
        return loss

    def _evaluate(self, batch: Batch, stage: str) -> None:
        x, y = batch
        logits = self(x).float()
        is_counted = y >= 0  # -1 marks a padding image, added so that every process has the same number of batches
        logits, y = logits[is_counted], y[is_counted]
        metrics = self.val_metrics if stage == "val" else self.test_metrics
        metrics.add_batch(logits, y, self.eval_criterion(logits, y))
        for name, metric in metrics.metrics():
            self.log(f"{stage}/{name}", metric, on_step=False, on_epoch=True, prog_bar=name == "top1")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the validation metrics with a batch."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the test metrics with a batch."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor | tuple[Tensor, Tensor]:
        """Return the probabilities (B, num_classes), and the images' positions (B,) in the data's `predict_paths`.

        If the loader yields only images, as a tensor or a sequence of one tensor, only the probabilities are returned.
        """
        x, *index = [batch] if isinstance(batch, Tensor) else batch
        probabilities = self(x).float().softmax(-1)
        return (probabilities, index[0]) if index else probabilities
