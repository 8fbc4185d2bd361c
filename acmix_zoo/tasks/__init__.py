"""One LightningModule per task: `ClassificationTask`."""

from acmix_zoo.tasks.classification import ClassificationTask

__all__ = ["ClassificationTask"]
