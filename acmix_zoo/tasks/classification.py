"""Image classification: any timm model, cross-entropy, AdamW or SGD with warm-up and cosine.

trainer = L.Trainer(max_epochs=5)
data = ImageDataModule("folder/of/class/folders", image_size=32)
trainer.fit(ClassificationTask("acmix_resnet_pico", num_classes=data.num_classes, pretrained=True), data)
"""

from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from acmix_zoo.training.ema import EMA
from acmix_zoo.training.optim import param_groups, warmup_cosine
from acmix_zoo.weights import create_model

Batch = tuple[Tensor, Tensor]  # (B, C, H, W) float, and (B,) int64 labels or, with mixup, (B, classes) float


class ClassificationTask(L.LightningModule):
    """Train, evaluate and apply a classifier; the network is `self.model`.

    Four hooks are there to be overridden: configure_models, configure_losses, configure_metrics, configure_optimizers.
    Logged: train/loss (as trained: smoothed, mixed), val/ and test/ loss (plain cross-entropy), top1 and top5 in 0..1.

    Args:
        model: name of one of this project's or timm's models, or a weight folder.
        num_classes: the command line takes it from the data.
        pretrained: True, a tag, a weight folder or a checkpoint file, see `acmix_zoo.create_model`.
        model_kwargs: further arguments of the model, such as drop_path_rate.
        optimizer: "adamw" or "sgd" (Nesterov).
        lr: peak learning rate for the recipe's total batch size; it is not scaled behind your back.
        weight_decay: not applied to biases, norms, scalars, nor to what the model exempts.
        momentum: of SGD; beta1 of AdamW.
        warmup_epochs: linear warm-up, in epochs.
        min_lr: where the cosine ends.
        label_smoothing: in training only.
        layer_decay: factor on the learning rate a layer, counted from the head; None for none.
        ema_decay: evaluate and keep a moving average of the weights; None for none.
        channels_last: memory format of network and images; faster for convolutions.
        compile: compile the network; the first step takes a while.

    Raises:
        ValueError: unknown model or weights (from create_model), impossible settings.
    """

    def __init__(
        self,
        model: str,
        num_classes: int = 1000,
        pretrained: bool | str = False,
        model_kwargs: dict[str, Any] | None = None,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        momentum: float = 0.9,
        warmup_epochs: float = 1.0,
        min_lr: float = 1e-6,
        label_smoothing: float = 0.0,
        layer_decay: float | None = None,
        ema_decay: float | None = None,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.num_classes = num_classes
        self.configure_models()
        self.configure_losses()
        self.configure_metrics()

    def configure_models(self) -> None:
        """Build the network."""
        h = self.hparams
        self.model = create_model(h["model"], h["pretrained"], num_classes=self.num_classes, **h["model_kwargs"] or {})

    def configure_losses(self) -> None:
        """Set the losses: for training, and for evaluation."""
        self.train_criterion = nn.CrossEntropyLoss(label_smoothing=self.hparams["label_smoothing"])
        self.eval_criterion = nn.CrossEntropyLoss()

    def configure_metrics(self) -> None:
        """Make one set of metrics a stage. They are torchmetrics objects, so that they sum exactly over processes."""
        k = min(5, self.num_classes)
        self.train_loss = MeanMetric()
        for stage in ("val", "test"):
            metrics: dict[str, Metric] = {
                "loss": MeanMetric(),
                # micro: the share of images; torchmetrics' default is the mean over classes
                "top1": MulticlassAccuracy(self.num_classes, average="micro"),
                "top5": MulticlassAccuracy(self.num_classes, average="micro", top_k=k),
            }
            setattr(self, f"{stage}_metrics", nn.ModuleDict(metrics))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return optimiser and schedule, the latter stepped with every optimiser step."""
        h = self.hparams
        groups = param_groups(self.model, h["lr"], h["weight_decay"], h["layer_decay"])
        optimizer: torch.optim.Optimizer
        if h["optimizer"] == "sgd":
            optimizer = torch.optim.SGD(groups, lr=h["lr"], momentum=h["momentum"], nesterov=h["momentum"] > 0)
        elif h["optimizer"] == "adamw":
            optimizer = torch.optim.AdamW(groups, lr=h["lr"], betas=(h["momentum"], 0.999))
        else:
            raise ValueError(f"optimizer={h['optimizer']!r} was given; expected 'adamw' or 'sgd'")
        total = int(self.trainer.estimated_stepping_batches)
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise ValueError("ClassificationTask: the schedule counts in epochs; set Trainer(max_epochs=...)")
        warmup = round(total * h["warmup_epochs"] / epochs)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(warmup, total, h["min_lr"] / h["lr"]))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_callbacks(self) -> list[L.Callback]:
        """Average the weights while fitting, when asked to."""
        decay = self.hparams["ema_decay"]
        return [EMA(decay)] if decay and self.trainer.state.fn == "fit" else []

    def setup(self, stage: str) -> None:
        """Check that the data has the network's classes; set the memory format; compile."""
        classes = getattr(getattr(self.trainer, "datamodule", None), "num_classes", self.num_classes)
        if classes != self.num_classes:
            raise ValueError(
                f"the data has {classes} classes, the model {self.num_classes}; "
                f"build ClassificationTask(..., num_classes={classes})"
            )
        if self.hparams["channels_last"]:
            self.model.to(memory_format=torch.channels_last)
        if self.hparams["compile"] and self.model._compiled_call_impl is None:
            self.model.compile()  # in place: keys of the state dict stay what they are

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another model, in words, before torch does in hundreds of lines."""
        theirs = checkpoint.get("hyper_parameters", {})
        for key in ("model", "num_classes"):
            if key in theirs and theirs[key] != self.hparams[key]:
                raise ValueError(
                    f"the checkpoint is of another model: {theirs['model']} with {theirs['num_classes']} classes; this "
                    f"run has {self.hparams['model']} with {self.num_classes}. Give this run's checkpoint, or start "
                    "from its weights with --model.pretrained PATH"
                )

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
        self.train_loss.update(loss.detach(), len(x))
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        self.log("lr", max(group["lr"] for group in self.trainer.optimizers[0].param_groups))
        return loss

    def _evaluate(self, batch: Batch, stage: str) -> None:
        x, y = batch
        logits = self(x).float()
        for name, metric in getattr(self, f"{stage}_metrics").items():
            if name == "loss":
                metric.update(self.eval_criterion(logits, y), len(x))
            else:
                metric.update(logits, y)
            self.log(f"{stage}/{name}", metric, on_step=False, on_epoch=True, prog_bar=name == "top1")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a batch of the validation split."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a batch of the test split."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> tuple[Tensor, Tensor]:
        """Return probabilities (B, num_classes) and the images' positions (B,) in the data's `predict_paths`."""
        x, index = batch
        return self(x).float().softmax(-1), index
