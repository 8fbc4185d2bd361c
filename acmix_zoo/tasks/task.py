"""`Task`: what all tasks share, from the network to logging."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from acmix_zoo.data.loaders import Loaders
from acmix_zoo.models.task_kinds import TaskKind
from acmix_zoo.models.task_network import builder_options
from acmix_zoo.tasks.evaluation import Evaluation
from acmix_zoo.tasks.hyperparameters import check_ranges
from acmix_zoo.tasks.image_size import check_image_size
from acmix_zoo.tasks.metrics import TaskMetrics
from acmix_zoo.tasks.scheduled_task import ScheduledTask
from acmix_zoo.tasks.sharded import is_sharded, shard
from acmix_zoo.tasks.start_weights import are_start_weights_loaded, choose_network
from acmix_zoo.tasks.task_views import TaskViews
from acmix_zoo.weights.create import create_task_network

# The metrics have already been summed over all processes when they are logged.
_NEEDLESS_ADVICE = r".*recommended to use `self\.log\('(val|test)/.*sync_dist=True"


class Task(TaskViews, ScheduledTask):
    """Base class of all tasks. The network is `self.model`.

    A task sets `kind` and implements four methods: `configure_losses` and `configure_metrics` create the losses and
    metrics, `batch_loss` returns the training loss of a batch, and `update_metrics` counts an evaluation batch. It
    passes the arguments that all tasks share on to this class, and finds its own in `self.hparams`.

    A batch is a sequence that starts with its B images: a tensor (B, C, H, W), or a list of images of different sizes.
    What follows depends on the task.

    Logs train/loss and, at the end of an evaluation, the metrics over all processes as val/… or test/….

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
        layer_decay: factor on the learning rate per layer below the head. null: the same rate for all layers.
        ema_decay: decay of a moving average of the weights, which is then evaluated and saved. null: no average.
        channels_last: use the channels_last memory format, which is faster for convolutions.
        compile: compile the network with torch.compile. The first step then takes longer.
        grad_checkpointing: recompute activations in the backward pass. The gradients are the same; training needs less
            memory and about a third more time.

    Attributes:
        kind: the task's name, metrics and network.
        model: the network.
        val_metrics, test_metrics: the metrics of each split.
        class_scores: after an evaluation, {split: {metric: {class: score}}}, for tasks that measure each class.
        evaluations: after `trainer.validate` or `trainer.test`, the details for each split.

    Raises:
        ValueError: unknown model or weights (from create_model), or an impossible setting.
    """

    FROM_DATA: ClassVar[tuple[str, ...]] = ("num_classes",)
    """The arguments that the command line takes from attributes of the data module with the same names."""

    kind: ClassVar[TaskKind]
    model: nn.Module
    val_metrics: TaskMetrics
    test_metrics: TaskMetrics

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
        layer_decay: float | None = None,
        ema_decay: float | None = None,
        channels_last: bool = True,
        compile: bool = False,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()  # also the arguments of the subclass
        self.save_hyperparameters(choose_network(model, pretrained, model_kwargs)._asdict())
        self.num_classes = num_classes
        self.class_scores: dict[str, dict[str, dict[str, float]]] = {}
        self.evaluations: dict[str, Evaluation] = {}
        self._checked_size: tuple[int, ...] | None = None  # the image size for which the network was last checked
        check_ranges(self.hparams)
        warnings.filterwarnings("ignore", message=_NEEDLESS_ADVICE)
        self.configure_models()
        if grad_checkpointing:
            self.model.set_grad_checkpointing(True)  # type: ignore[operator]
        if (trained := self.trained_modules()) is not None:
            self.model.requires_grad_(False)
            for module in trained:
                module.requires_grad_(True)
        self.configure_losses()
        self.configure_metrics()

    # ---- what a task defines

    @abstractmethod
    def configure_losses(self) -> None:
        """Create the losses."""

    @abstractmethod
    def configure_metrics(self) -> None:
        """Create `val_metrics` and `test_metrics`."""

    @abstractmethod
    def batch_loss(self, batch: Any) -> Tensor:
        """Return the training loss of a batch, (), the mean over its images."""

    @abstractmethod
    def update_metrics(self, metrics: TaskMetrics, batch: Any) -> None:
        """Count the images of an evaluation batch, except padding images.

        The data add padding images so that every process has the same number of batches, and mark them.
        """

    def trained_modules(self) -> Sequence[nn.Module] | None:
        """Return the parts of the network that are trained, or None for all. The others are frozen, in eval mode."""
        return None

    @classmethod
    def evaluation_options(cls, hparams: Mapping[str, Any]) -> dict[str, Any]:
        """Return the hyper-parameters that affect the scores of given weights, for the record of the weights."""
        return {}

    # ---- network

    def configure_models(self) -> None:
        """Build the network."""
        h = self.hparams
        try:
            self.model = create_task_network(
                self.kind,
                h["model"],
                h["pretrained"] if are_start_weights_loaded() else False,
                num_classes=self.num_classes,
                model_kwargs=h["model_kwargs"],
                options={name: h[name] for name in builder_options(self.kind)},
            )
        except TypeError as error:
            if not h["model_kwargs"]:
                raise
            raise ValueError(
                f"{h['model']} cannot be built with model_kwargs={h['model_kwargs']}: {error}. Expected arguments of "
                "its constructor, such as {drop_path_rate: 0.1}"
            ) from error

    def train(self, mode: bool = True) -> Self:
        """Set the mode. Frozen parts of the network are always in eval mode."""
        super().train(mode)
        if mode and (trained := self.trained_modules()) is not None:
            self.model.eval()
            for module in trained:
                module.train()
        return self

    def configure_model(self) -> None:
        """Shard the network over the processes if the strategy (ModelParallelStrategy) asks for it."""
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh["data_parallel"])

    def setup(self, stage: str) -> None:
        """Check that the network fits the data, set its memory format, and compile it."""
        classes = getattr(getattr(self.trainer, "datamodule", None), "num_classes", self.num_classes)
        if classes != self.num_classes:
            raise ValueError(
                f"the model has {self.num_classes} classes, but the data has {classes}. Use "
                f"{type(self).__name__}(..., num_classes={classes})"
            )
        self.check_image_size()
        if self.hparams["channels_last"] and not is_sharded(self.model):
            self.model.to(memory_format=torch.channels_last)
        if self.hparams["compile"] and self.model._compiled_call_impl is None:
            self.model.compile()  # in place, so that the keys of the state dict do not change

    def check_image_size(self) -> None:
        """Check that the network can process images of the data's size. Called by `setup`.

        Raises:
            ValueError: it cannot.
        """
        data = getattr(self.trainer, "datamodule", None)
        size = getattr(data, "input_size", None)
        if size is not None and size != self._checked_size and not is_sharded(self.model):
            check_image_size(self.model, size, self.hparams["model"])
            train_sizes = getattr(data, "train_sizes", None)
            for side in sorted(set(train_sizes.sizes.values())) if train_sizes else ():
                check_image_size(self.model, (size[0], side, side), self.hparams["model"], is_train_size=True)
            self._checked_size = tuple(size)

    def forward(self, x: Tensor) -> Any:
        """Map images (B, C, H, W) to the output of the network."""
        if self.hparams["channels_last"]:
            x = x.contiguous(memory_format=torch.channels_last)
        return self.model(x)

    # ---- steps

    def on_train_start(self) -> None:
        """Put frozen modules in eval mode, because Lightning does not change module modes itself."""
        self.train()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch.

        Raises:
            ValueError: a batch norm has a single value per channel, as for one image whose last feature map is 1×1.
        """
        try:
            loss = self.batch_loss(batch)
        except ValueError as error:
            if not str(error).startswith("Expected more than 1 value per channel"):  # of torch's batch norm
                raise
            raise ValueError(
                f"a batch of {len(batch[0])} is too small for the batch norm of this network, which has one value per "
                "channel. Expected two images or more. Raise data.batch_size, or use larger images"
            ) from error
        self.train_loss.update(loss.detach().expand(len(batch[0])))
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        if (trainer := self._find_trainer()) is not None:
            # a CPU tensor, because Lightning would copy a number to the device and wait for it
            self.log("lr", torch.tensor(max(group["lr"] for group in trainer.optimizers[0].param_groups)))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Update the validation metrics with a batch."""
        self.update_metrics(self.val_metrics, batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Update the test metrics with a batch."""
        self.update_metrics(self.test_metrics, batch)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log_metrics("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._log_metrics("test", self.test_metrics)

    def _log_metrics(self, split: str, metrics: TaskMetrics) -> None:
        for name, value in metrics.compute().items():
            self.log(f"{split}/{name}", value, prog_bar=name == self.kind.main_metric)
        data = getattr(self.trainer, "datamodule", None)
        names = getattr(data, "class_names", None) or tuple(map(str, range(self.num_classes)))
        self.class_scores[split] = {
            metric: dict(zip(names, scores, strict=False)) for metric, scores in metrics.class_scores().items()
        }
        if self.trainer.state.fn != "fit":
            loaders = getattr(data, "loaders", None)
            positions = loaders.evaluated_positions(split) if isinstance(loaders, Loaders) else None
            self.evaluations[split] = metrics.evaluation(positions)
        metrics.reset()
