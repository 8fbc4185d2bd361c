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
from torch.nn.functional import cross_entropy

from acmix_zoo.models.task_kinds import CLASSIFICATION
from acmix_zoo.tasks.hyperparameters import check_class_weights
from acmix_zoo.tasks.metrics import EvaluationMetrics, TaskMetrics
from acmix_zoo.tasks.task import Task
from acmix_zoo.tasks.task_views import ShownTarget

Batch = tuple[Tensor, Tensor]  # (B, C, H, W) float, and (B,) int64 labels or, with mixup, (B, classes) float

_UNEVEN = 1.5  # ratio of the class weights from which they are worth a remark


def balanced_weights(counts: Sequence[int]) -> Tensor:
    """Return a weight for each class, (classes,), in inverse proportion to its number of images. Their mean over all
    images is 1, and a class without images has 0."""
    images = torch.tensor(counts, dtype=torch.float32)
    return (images.sum() / ((images > 0).sum() * images)).nan_to_num(posinf=0.0)


class WeightedCrossEntropy(nn.Module):
    """The mean over images of cross-entropy times the weight of the image's class.

    The weights of `nn.CrossEntropyLoss` also multiply the part of the target that label smoothing gives to every class,
    so that a very rare class would attract the images of all others. Besides, it divides by the sum of the weights in
    the batch, so that a batch without rare images would count as much as one with many.

    Args:
        weight: the weight of each class, (classes,).
        label_smoothing: as in `nn.CrossEntropyLoss`.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, label_smoothing: float) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("weight", weight, persistent=False)  # the option or the data determine it

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss, (), of logits (B, classes) and targets: (B,) classes, or (B, classes) if they are mixed."""
        losses = cross_entropy(logits, targets, label_smoothing=self.label_smoothing, reduction="none")  # (B,)
        weights = self.weight[targets] if targets.ndim == 1 else targets.to(self.weight.dtype) @ self.weight  # (B,)
        return (losses * weights).mean()


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
        class_weights: how much an image of each class counts in the training loss; they are divided by their mean.
            "balanced": in inverse proportion to the number of training images of the class, with a mean of 1 over the
            images. null: equal weights.
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
        if isinstance(class_weights, list):
            check_class_weights(class_weights, num_classes)
        super().__init__(model, num_classes, pretrained, model_kwargs, **kwargs)

    def trained_modules(self) -> Sequence[nn.Module] | None:
        """Return the network's last layer in a linear probe, and None otherwise."""
        if not self.hparams["linear_probe"]:
            return None
        last = self.model.get_classifier()  # type: ignore[operator]
        return list(last) if isinstance(last, tuple) else [last]  # distilled networks have two

    def configure_losses(self) -> None:
        """Set the loss for training and the one for evaluation."""
        smoothing, weights = self.hparams["label_smoothing"], self.hparams["class_weights"]
        self.train_criterion: nn.Module = nn.CrossEntropyLoss(label_smoothing=smoothing)
        if weights is not None:
            given = (
                torch.ones(self.num_classes) if weights == "balanced" else torch.tensor(weights, dtype=torch.float32)
            )
            self.train_criterion = WeightedCrossEntropy(given / given.mean(), smoothing)
        self.eval_criterion = nn.CrossEntropyLoss(reduction="none")  # per image, for an exact mean

    def setup(self, stage: str) -> None:
        """Check that the network fits the data, and weight the classes by their number of training images."""
        super().setup(stage)
        if stage == "fit" and self.hparams["class_weights"] == "balanced":
            assert isinstance(self.train_criterion, WeightedCrossEntropy)
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            if not hasattr(data, "class_counts"):
                raise ValueError(
                    "class_weights='balanced' needs the number of images of each class, which only an ImageDataModule "
                    "knows. Pass one to trainer.fit, or a list of weights"
                )
            self.train_criterion.weight.copy_(balanced_weights(data.class_counts()))

    def remarks(self) -> list[str]:
        if self.hparams["class_weights"] != "balanced" or not isinstance(self.train_criterion, WeightedCrossEntropy):
            return []
        weights = self.train_criterion.weight
        ratio = float(weights.max() / weights[weights > 0].min())
        if ratio < _UNEVEN:
            return []
        return [
            f"The classes are imbalanced, so in the loss an image of the rarest class counts {ratio:.1f} times as much "
            "as one of the most common class"
        ]

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
