"""Loading a classifier."""

import pytest
from support.weight_folders import SHIPPED

from acmix_zoo.models.task_kinds import SEGMENTATION
from acmix_zoo.models.task_network import TaskNetwork
from acmix_zoo.weights import classifier
from acmix_zoo.weights.classifier import load_classifier


def test_a_classifier_is_in_eval_mode() -> None:
    assert not load_classifier(SHIPPED).training


def test_networks_for_other_tasks_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    class Segmenter(TaskNetwork):
        kind = SEGMENTATION

    monkeypatch.setattr(classifier, "from_pretrained", lambda source: Segmenter.__new__(Segmenter))
    with pytest.raises(ValueError, match=r"runs/scenes is a network for .*segmentation\. Expected an image classifier"):
        load_classifier("runs/scenes")
