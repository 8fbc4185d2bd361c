"""LightningModules, one a task."""

from acmix_zoo.tasks.classification import ClassificationTask

__all__ = ["ClassificationTask"]
