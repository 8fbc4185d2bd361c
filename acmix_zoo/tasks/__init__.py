"""Tasks for Lightning's Trainer: what is trained, with which loss, optimiser and metrics.

`ClassificationTask` trains a network on labelled images.
"""

from acmix_zoo.tasks.classification import ClassificationTask

__all__ = ["ClassificationTask"]
