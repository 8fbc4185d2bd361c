"""Load a classifier, for programs that print or export the classes of images."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from acmix_zoo.models.task_network import TaskNetwork
from acmix_zoo.weights.create import from_pretrained


def load_classifier(source: str | Path) -> nn.Module:
    """Return the classifier that a name or path refers to, in eval mode.

    Args:
        source: as for `from_pretrained`.

    Raises:
        ValueError: these are weights for a different task. Other errors are those of `from_pretrained`.
    """
    model = from_pretrained(source)
    if isinstance(model, TaskNetwork):
        raise ValueError(
            f"{source} is a network for {model.kind.title}. Expected an image classifier. To run it on images, use "
            f"`acmix-zoo predict IMAGES --model {source}`"
        )
    return model.eval()
