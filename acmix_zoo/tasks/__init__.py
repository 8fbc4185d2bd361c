"""Tasks for Lightning's Trainer: what is trained, with which loss, optimiser and metrics.

`ClassificationTask` trains a network on labelled images, `SegmentationTask` one on images with masks, and
`DetectionTask` one on images with boxes. `Task` is the base class of all tasks.
"""

from acmix_zoo.tasks.classification import ClassificationTask
from acmix_zoo.tasks.detection import DetectionTask
from acmix_zoo.tasks.segmentation import SegmentationTask
from acmix_zoo.tasks.task import Task

__all__ = ["ClassificationTask", "DetectionTask", "SegmentationTask", "Task"]
