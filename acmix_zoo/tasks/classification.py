"""Image classification with any timm model: cross-entropy, AdamW or SGD, linear warm-up and a cosine schedule.

trainer = L.Trainer(max_epochs=5)
data = ImageDataModule("folder/of/class/folders", image_size=32)
trainer.fit(ClassificationTask("acmix_resnet_pico", num_classes=data.num_classes, pretrained=True), data)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from acmix_zoo.models.task_kinds import CLASSIFICATION
from acmix_zoo.tasks.metrics import EvaluationMetrics, TaskMetrics
from acmix_zoo.tasks.task import Task

Batch = tuple[Tensor, Tensor]  # (B, C, H, W) float, and (B,) int64 labels or, with mixup, (B, classes) float


class ClassificationTask(Task):
    """Train, evaluate and apply a classifier. The network is `self.model`.

    Subclasses may override four hooks: configure_models, configure_losses, configure_metrics, configure_optimizers.
    Logs train/loss (including smoothing and mixing). For val/ and test/, logs the loss (plain cross-entropy), top1 and,
    with more than five classes, top5, both between 0 and 1.

    Args:
        model: name of a model of this project or of timm, or a weight folder.
        num_classes: number of classes; the command line takes it from the data.
        pretrained: true, a tag, a weight folder or a checkpoint file, see `acmix_zoo.create_model`.
        model_kwargs: further arguments of the model, such as drop_path_rate.
        label_smoothing: label smoothing of the training loss.
        linear_probe: train only the classifier. All other weights and the batch-norm statistics stay unchanged.
        kwargs: optimiser, learning rate and everything else that all tasks share, see `acmix_zoo.tasks.Task`.

    Raises:
        ValueError: unknown model or weights (from create_model), or an impossible setting.
    """

    kind = CLASSIFICATION

    def __init__(
        self,
        model: str,
        num_classes: int = 1000,
        pretrained: bool | str = False,
        model_kwargs: dict[str, Any] | None = None,
        *,
        label_smoothing: float = 0.0,
        linear_probe: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, num_classes, pretrained, model_kwargs, **kwargs)

    def trained_modules(self) -> Sequence[nn.Module] | None:
        """Return the network's last layer in a linear probe, and None otherwise."""
        return [self.model.get_classifier()] if self.hparams["linear_probe"] else None  # type: ignore[operator]

    def configure_losses(self) -> None:
        """Set the loss for training and the one for evaluation."""
        self.train_criterion = nn.CrossEntropyLoss(label_smoothing=self.hparams["label_smoothing"])
        self.eval_criterion = nn.CrossEntropyLoss(reduction="none")  # per image, for an exact mean

    def configure_metrics(self) -> None:
        """Create the metrics of each split."""
        self.val_metrics = EvaluationMetrics(self.num_classes)
        self.test_metrics = EvaluationMetrics(self.num_classes)

    def batch_loss(self, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        x, y = batch
        loss: Tensor = self.train_criterion(self(x), y)
        return loss

    def update_metrics(self, metrics: TaskMetrics, batch: Batch) -> None:
        """Count the images of a batch, except those of class -1."""
        x, y = batch
        logits = self(x).float()
        is_counted = y >= 0  # -1 marks a padding image, added so that every process has the same number of batches
        logits, y = logits[is_counted], y[is_counted]
        assert isinstance(metrics, EvaluationMetrics)
        metrics.add_batch(logits, y, self.eval_criterion(logits, y))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor | tuple[Tensor, Tensor]:
        """Return the probabilities (B, num_classes), and the images' positions (B,) in the data's `predict_paths`.

        If the loader yields only images, as a tensor or a sequence of one tensor, only the probabilities are returned.
        """
        x, *index = [batch] if isinstance(batch, Tensor) else batch
        probabilities = self(x).float().softmax(-1)
        return (probabilities, index[0]) if index else probabilities
