"""Image classification: any timm model, cross-entropy, AdamW or SGD with warm-up and cosine.

trainer = L.Trainer(max_epochs=5)
data = ImageDataModule("folder/of/class/folders", image_size=32)
trainer.fit(ClassificationTask("acmix_resnet_pico", num_classes=data.num_classes, pretrained=True), data)
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from acmix_zoo.tasks.ema import EMA
from acmix_zoo.tasks.metrics import ExactMean
from acmix_zoo.tasks.optim import param_groups, warmup_cosine
from acmix_zoo.tasks.sharded import is_sharded, shard
from acmix_zoo.training.resume import check_hyperparameters, check_network
from acmix_zoo.weights import create_model
from acmix_zoo.weights.resolve import resolve_network

Batch = tuple[Tensor, Tensor]  # (B, C, H, W) float, and (B,) int64 labels or, with mixup, (B, classes) float

_start_weights_wanted: ContextVar[bool] = ContextVar("_start_weights_wanted", default=True)
_recorded: ContextVar[Mapping[str, Any] | None] = ContextVar("_recorded", default=None)


@contextmanager
def without_start_weights(active: bool = True, recorded: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Build tasks without loading the weights that `pretrained` names, because a complete checkpoint is loaded next.

    Checkpoints therefore do not depend on the file that the run started from. The hyper-parameters still contain
    `pretrained`, so that the run's record says what it started from.

    Args:
        active: if False, do nothing.
        recorded: the hyper-parameters of the checkpoint. A task of the same model takes its `model_kwargs` from them.
    """
    wanted = _start_weights_wanted.set(_start_weights_wanted.get() and not active)
    known = _recorded.set(recorded if active else _recorded.get())
    try:
        yield
    finally:
        _start_weights_wanted.reset(wanted)
        _recorded.reset(known)


def settle_hyperparameters(hyper_parameters: Mapping[str, Any], is_new: bool = False) -> dict[str, Any]:
    """Return hyper-parameters as a task keeps them, see `resolve_network`.

    They are those of a checkpoint that an older version wrote or, with `is_new`, the options of a command.
    """
    if "model" not in hyper_parameters:
        return dict(hyper_parameters)
    pretrained, model_kwargs = hyper_parameters.get("pretrained") or False, hyper_parameters.get("model_kwargs")
    settled = resolve_network(hyper_parameters["model"], pretrained, model_kwargs, is_new)
    return {**hyper_parameters, **dict(zip(("model", "pretrained", "model_kwargs"), settled, strict=True))}


def _settle(model: str, pretrained: Any, model_kwargs: dict[str, Any] | None) -> tuple[str, Any, dict[str, Any] | None]:
    """`resolve_network`, from the checkpoint that follows if it is of the same model: the weight folder may be gone."""
    theirs = settle_hyperparameters(_recorded.get() or {})
    start = theirs.get("pretrained")
    if not pretrained and isinstance(start, str) and Path(model).absolute() == Path(start).absolute():
        model, pretrained = theirs["model"], start  # the folder was given as the model
    if model == theirs.get("model"):
        return model, pretrained, {**(theirs["model_kwargs"] or {}), **(model_kwargs or {})} or None
    return resolve_network(model, pretrained, model_kwargs, is_new=_start_weights_wanted.get())


class ClassificationTask(L.LightningModule):
    """Train, evaluate and apply a classifier; the network is `self.model`.

    Four hooks are there to be overridden: configure_models, configure_losses, configure_metrics, configure_optimizers.
    Logged: train/loss (as trained: smoothed, mixed), val/ and test/ loss (plain cross-entropy), top1 and, with
    more than five classes, top5, both between 0 and 1.

    Args:
        model: name of one of this project's or timm's models, or a weight folder.
        num_classes: the command line takes it from the data.
        pretrained: True, a tag, a weight folder or a checkpoint file, see `acmix_zoo.create_model`.
        model_kwargs: further arguments of the model, such as drop_path_rate.
        optimizer: "adamw" or "sgd".
        lr: peak learning rate, for a batch of `lr_batch` images.
        lr_batch: the rates (lr, min_lr, warmup_lr) are multiplied by B / lr_batch, where B is the global batch: images
            of a device × processes × accumulated batches. None: they stay as they are. What they become is printed.
        weight_decay: not applied to biases, norms, scalars, nor to what the model exempts.
        momentum: of SGD; beta1 of AdamW.
        nesterov: the form of SGD's momentum.
        warmup_epochs: linear warm-up, in epochs.
        warmup_lr: where the warm-up starts.
        min_lr: where the cosine ends.
        label_smoothing: in training only.
        layer_decay: factor on the learning rate a layer, counted from the head; None for none.
        ema_decay: evaluate and keep a moving average of the weights; None for none.
        channels_last: memory format of network and images; faster for convolutions.
        compile: compile the network; the first step takes a while.
        grad_checkpointing: keep only what enters a block for the backward pass and compute the rest again: the same
            gradients, less memory, about a third more time.
        linear_probe: train the classifier only; the rest stays as it is, batch-norm statistics and all.

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
        lr_batch: int | None = None,
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
        model, pretrained, model_kwargs = _settle(model, pretrained, model_kwargs)
        self.save_hyperparameters()
        self.num_classes = num_classes
        self._checked_size: tuple[int, ...] | None = None  # the image size for which the network was last checked
        self._check_hyperparameters()
        self.configure_models()
        self.configure_losses()
        self.configure_metrics()

    def _check_hyperparameters(self) -> None:
        """
        Raises:
            ValueError: a hyper-parameter is out of range.
        """
        ranges: dict[str, tuple[Callable[[Any], bool], str]] = {
            "lr": (lambda v: v > 0, "a number above 0, such as 0.001"),
            "lr_batch": (lambda v: v is None or v > 0, "a number of images, such as 128, or null"),
            "weight_decay": (lambda v: v >= 0, "0 or more"),
            "momentum": (lambda v: 0 <= v < 1, "a number from 0 to below 1, such as 0.9"),
            "warmup_epochs": (lambda v: v >= 0, "0 or more"),
            "warmup_lr": (lambda v: v >= 0, "0 or more"),
            "min_lr": (lambda v: v >= 0, "0 or more"),
            "label_smoothing": (lambda v: 0 <= v <= 1, "a number from 0 to 1"),
            "ema_decay": (lambda v: v is None or 0 <= v < 1, "a number from 0 to below 1, such as 0.999, or null"),
        }
        for name, (is_valid, expected) in ranges.items():
            if not is_valid(self.hparams[name]):
                raise ValueError(f"{name}={self.hparams[name]} was given; expected {expected}")

    def configure_models(self) -> None:
        """Build the network."""
        h = self.hparams
        pretrained = h["pretrained"] if _start_weights_wanted.get() else False
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
        """The network's last layer."""
        layer: nn.Module = self.model.get_classifier()  # type: ignore[operator]
        return layer

    def train(self, mode: bool = True) -> "ClassificationTask":
        """Set the mode; in a linear probe only the classifier is ever in training mode."""
        super().train(mode)
        if mode and self.hparams["linear_probe"]:
            self.model.eval()
            self.classifier().train()
        return self

    def configure_model(self) -> None:
        """Spread the network over the processes, under a strategy that does so (ModelParallelStrategy)."""
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh["data_parallel"])

    def configure_losses(self) -> None:
        """Set the losses: for training, and for evaluation."""
        self.train_criterion = nn.CrossEntropyLoss(label_smoothing=self.hparams["label_smoothing"])
        self.eval_criterion = nn.CrossEntropyLoss(reduction="none")  # an image's, for an exact mean

    def configure_metrics(self) -> None:
        """Make one set of metrics a stage: torchmetrics objects of integers, so that they are the same, to the bit,
        over any number of processes."""
        self.train_loss = ExactMean()
        for stage in ("val", "test"):
            metrics: dict[str, Metric] = {
                "loss": ExactMean(),
                # micro: the share of images; torchmetrics' default is the mean over classes
                "top1": MulticlassAccuracy(self.num_classes, average="micro"),
            }
            if self.num_classes > 5:  # with five classes or fewer, top-5 is always 1
                metrics["top5"] = MulticlassAccuracy(self.num_classes, average="micro", top_k=5)
            setattr(self, f"{stage}_metrics", nn.ModuleDict(metrics))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return optimiser and schedule, the latter stepped with every optimiser step."""
        h = self.hparams
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise ValueError(
                f"max_epochs={epochs} was given, but the schedule needs the length of the run. Set "
                "--trainer.max_epochs to 1 or more; in Python, use Trainer(max_epochs=...)"
            )
        total = int(self.trainer.estimated_stepping_batches)  # also creates the loaders
        lr = h["lr"] * self._lr_factor()
        groups = param_groups(self.model, lr, h["weight_decay"], h["layer_decay"])
        optimizer: torch.optim.Optimizer
        if h["optimizer"] == "sgd":
            nesterov = h["nesterov"] and h["momentum"] > 0
            optimizer = torch.optim.SGD(groups, lr=lr, momentum=h["momentum"], nesterov=nesterov)
        elif h["optimizer"] == "adamw":
            optimizer = torch.optim.AdamW(groups, lr=lr, betas=(h["momentum"], 0.999))
        else:
            raise ValueError(f"optimizer={h['optimizer']!r} was given; expected 'adamw' or 'sgd'")
        warmup = round(total * h["warmup_epochs"] / epochs)
        factor = warmup_cosine(warmup, total, h["min_lr"] / h["lr"], h["warmup_lr"] / h["lr"])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _lr_factor(self) -> float:
        """What the global batch makes of the learning rates (1 without `lr_batch`); says so."""
        h, trainer = self.hparams, self.trainer
        images = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
        if images is None:
            if h["lr_batch"] is not None:
                raise ValueError("lr_batch is set, but the data has no batch_size; train with an ImageDataModule")
            return 1.0
        sampler = getattr(trainer.train_dataloader, "sampler", None)  # a stream has none
        size = len(sampler) if sampler is not None else images
        if images > size:  # the loader then puts all images into one batch
            if trainer.is_global_zero:
                print(
                    f"Warning: data.batch_size {images} is larger than the {size} training images per process. Each "
                    f"step uses {size}, and the learning rate is scaled accordingly. Use --data.batch_size "
                    f"{max(1, size // 8)} or less for several steps per epoch",
                    flush=True,
                )
            images = size
        accumulated = min(trainer.accumulate_grad_batches, int(min(trainer.num_training_batches, 2**31)))
        batch = images * trainer.world_size * accumulated
        factor = batch / h["lr_batch"] if h["lr_batch"] else 1.0
        parts = f"{trainer.world_size} × {images}" + f" × {accumulated} accumulated" * (accumulated > 1)
        rule = f" = {h['lr']:g} × {batch} / {h['lr_batch']}" if h["lr_batch"] else ", not scaled (no lr_batch)"
        if trainer.is_global_zero:
            print(f"batch: {parts} = {batch} images a step; lr {h['lr'] * factor:g}{rule}", flush=True)
        return factor

    def configure_callbacks(self) -> list[L.Callback]:
        """Average the weights while fitting, when asked to."""
        decay = self.hparams["ema_decay"]
        if decay and isinstance(self.trainer.strategy, ModelParallelStrategy):
            raise ValueError(
                "ema_decay is set, but a network that is spread over processes (ModelParallelStrategy) cannot be "
                "averaged; set --model.ema_decay null, or use --trainer.strategy ddp"
            )
        return [EMA(decay)] if decay and self.trainer.state.fn == "fit" else []

    def setup(self, stage: str) -> None:
        """Check that the data has the network's classes; set the memory format; compile."""
        classes = getattr(getattr(self.trainer, "datamodule", None), "num_classes", self.num_classes)
        if classes != self.num_classes:
            raise ValueError(
                f"the data has {classes} classes, the model {self.num_classes}; "
                f"build ClassificationTask(..., num_classes={classes})"
            )
        self._check_image_size()
        if self.hparams["channels_last"] and not is_sharded(self.model):
            self.model.to(memory_format=torch.channels_last)
        if self.hparams["compile"] and self.model._compiled_call_impl is None:
            self.model.compile()  # in place: keys of the state dict stay what they are

    def _check_image_size(self) -> None:
        """
        Raises:
            ValueError: the network cannot process images of the data's size. Some networks are built for a fixed
                size.
        """
        size = getattr(getattr(self.trainer, "datamodule", None), "input_size", None)
        if size is None or size == self._checked_size or is_sharded(self.model):
            return
        cfg = getattr(self.model, "pretrained_cfg", None) or {}
        built = getattr(getattr(self.model, "patch_embed", None), "img_size", None)
        modes = [(module, module.training) for module in self.model.modules()]
        parameter = next(self.model.parameters())
        try:
            with torch.no_grad():
                self.model.eval()(torch.zeros(1, *size, dtype=parameter.dtype, device=parameter.device))
            if cfg.get("fixed_input_size") and built is not None and tuple(built) != tuple(size[1:]):
                # it would resize its positions at every step, and its weights would not fit a network of this size
                raise ValueError(f"it was built for {built[0]} × {built[1]}")
        except Exception as error:  # different networks raise different exceptions
            fits = built[0] if built else cfg.get("input_size", (3, "of another size"))[1]
            rebuild = f", or build it for this size with --model.model_kwargs '{{img_size: {size[1]}}}'"
            raise ValueError(
                f"{self.hparams['model']} cannot process images of {size[1]} × {size[2]} pixels "
                f"({str(error).splitlines()[0] if str(error) else type(error).__name__}). Set --data.image_size {fits}"
                + (rebuild if built else "")
            ) from error
        finally:
            for module, mode in modes:
                module.training = mode
        self._checked_size = tuple(size)

    def on_train_start(self) -> None:
        """Set the mode: Lightning keeps the one that each part was built in, and what a linear probe freezes is built
        for training."""
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
    ) -> "ClassificationTask":
        """Load a task from a checkpoint, like Lightning, but without the weights that its training started from. The
        checkpoint contains all weights. No code from the file is run unless `weights_only` is False."""
        with without_start_weights():
            return super().load_from_checkpoint(
                checkpoint_path, map_location, hparams_file, strict, weights_only=weights_only, **kwargs
            )

    def _attached(self) -> L.Trainer | None:
        """The trainer, or None without one, as in `load_from_checkpoint`."""
        try:
            return self.trainer
        except RuntimeError:
            return None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model, before torch does so in hundreds of lines, and refuse to resume with
        options that would change the result."""
        theirs, trainer = settle_hyperparameters(checkpoint.get("hyper_parameters", {})), self._attached()
        for key in ("model", "num_classes"):
            if key in theirs and theirs[key] != self.hparams[key]:
                raise ValueError(
                    f"the checkpoint is of another model: {theirs['model']} with {theirs['num_classes']} classes; this "
                    f"run has {self.hparams['model']} with {self.num_classes}. Give this run's checkpoint, or start "
                    "from its weights with --model.pretrained PATH"
                )
        is_fit = trainer is not None and trainer.state.fn == "fit"
        if is_fit and checkpoint.get("global_step"):  # before the first step, as with Lightning's Tuner, nothing
            check_hyperparameters(theirs, dict(self.hparams))  # depends on them
        check_network(theirs, self.hparams)
        if trainer is None or not is_fit:
            return
        if "train_loss" in checkpoint and trainer.is_global_zero:  # saved within an epoch: continue the sum
            self.train_loss.restore(checkpoint["train_loss"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Within an epoch, keep the sums of the training loss so far, of all processes."""
        trainer = self._attached()
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
        if (trainer := self._attached()) is not None:
            # a CPU tensor, because Lightning would copy a number to the device and wait for it
            self.log("lr", torch.tensor(max(group["lr"] for group in trainer.optimizers[0].param_groups)))
        return loss

    def _evaluate(self, batch: Batch, stage: str) -> None:
        x, y = batch
        logits = self(x).float()
        logits, y = logits[y >= 0], y[y >= 0]  # -1: an image that is there only to give every process as many batches
        for name, metric in getattr(self, f"{stage}_metrics").items():
            if name == "loss":
                metric.update(self.eval_criterion(logits, y))
            elif len(y):
                metric.update(logits, y)
            self.log(f"{stage}/{name}", metric, on_step=False, on_epoch=True, prog_bar=name == "top1")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a batch of the validation split."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a batch of the test split."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor | tuple[Tensor, Tensor]:
        """Return probabilities (B, num_classes), and the images' positions (B,) in the data's `predict_paths`.

        If the loader yields only images, as a tensor or a sequence of one tensor, only the probabilities are returned.
        """
        x, *index = [batch] if isinstance(batch, Tensor) else batch
        probabilities = self(x).float().softmax(-1)
        return (probabilities, index[0]) if index else probabilities
