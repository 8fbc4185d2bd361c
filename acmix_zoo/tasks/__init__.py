"""Tasks for Lightning's Trainer: what is trained, with which loss, optimiser and metrics."""

from acmix_zoo.tasks.classification import ClassificationTask

__all__ = ["ClassificationTask"]
