"""Image classification with any timm model: cross-entropy, AdamW or SGD, linear warm-up and a cosine schedule.

trainer = L.Trainer(max_epochs=5)
data = ImageDataModule("folder/of/class/folders", image_size=32)
trainer.fit(ClassificationTask("acmix_resnet_pico", num_classes=data.num_classes, pretrained=True), data)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from acmix_zoo.models.task_kinds import CLASSIFICATION
from acmix_zoo.tasks.metrics import EvaluationMetrics, TaskMetrics
from acmix_zoo.tasks.task import Task
from acmix_zoo.tasks.task_views import ShownTarget

Batch = tuple[Tensor, Tensor]  # (B, C, H, W) float, and (B,) int64 labels or, with mixup, (B, classes) float

_UNEVEN = 1.5  # ratio of the class weights from which they are worth a remark


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
        class_weights: the weight of each class in the training loss. "balanced": in inverse proportion to the number of
            its training images, with a mean of 1 over the images. null: equal weights.
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
        class_weights: Literal["balanced"] | list[float] | None = None,
        linear_probe: bool = False,
        **kwargs: Any,
    ) -> None:
        if isinstance(class_weights, list) and len(class_weights) != num_classes:
            raise ValueError(f"there are {len(class_weights)} class_weights. Expected {num_classes}, one per class")
        super().__init__(model, num_classes, pretrained, model_kwargs, **kwargs)

    def trained_modules(self) -> Sequence[nn.Module] | None:
        """Return the network's last layer in a linear probe, and None otherwise."""
        return [self.model.get_classifier()] if self.hparams["linear_probe"] else None  # type: ignore[operator]

    def configure_losses(self) -> None:
        """Set the loss for training and the one for evaluation."""
        self.train_criterion = nn.CrossEntropyLoss(label_smoothing=self.hparams["label_smoothing"])
        if (weights := self.hparams["class_weights"]) is not None:
            initial = (
                torch.ones(self.num_classes) if weights == "balanced" else torch.tensor(weights, dtype=torch.float32)
            )
            # not in checkpoints, because the option or the data determine it
            self.train_criterion.register_buffer("weight", initial, persistent=False)
        self.eval_criterion = nn.CrossEntropyLoss(reduction="none")  # per image, for an exact mean

    def setup(self, stage: str) -> None:
        """Check that the network fits the data, and weight the classes by their number of training images."""
        super().setup(stage)
        if stage == "fit" and self.hparams["class_weights"] == "balanced":
            counts = torch.tensor(self.trainer.datamodule.class_counts())  # type: ignore[attr-defined]
            weights = counts.sum() / ((counts > 0).sum() * counts.clamp(min=1))
            assert self.train_criterion.weight is not None
            self.train_criterion.weight.copy_(weights)

    def remarks(self) -> list[str]:
        weights = self.train_criterion.weight
        if self.hparams["class_weights"] != "balanced" or weights is None:
            return []
        ratio = float(weights.max() / weights.min())
        if ratio < _UNEVEN:
            return []
        return [f"Classes are uneven, so an image of the rarest class counts {ratio:.1f} times as much in the loss"]

    def show_target(self, picture: Image.Image, batch: Any, number: int, class_names: Sequence[str]) -> ShownTarget:
        target = batch[1][number]
        if target.ndim == 0:
            return ShownTarget(picture, class_names[int(target)])
        fractions, classes = target.topk(min(2, len(class_names)))  # mixed by mixup or cutmix
        mixed = zip(fractions.tolist(), classes.tolist(), strict=True)
        return ShownTarget(picture, "\n".join(f"{100 * part:.0f} % {class_names[i]}" for part, i in mixed if part))

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
