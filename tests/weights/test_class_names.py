"""The classes of a network in words."""

from types import SimpleNamespace
from typing import Any

import pytest

from acmix_zoo.weights.class_names import class_names, describe_class


def network(num_classes: int, **cfg: Any) -> Any:
    return SimpleNamespace(num_classes=num_classes, pretrained_cfg={"num_classes": num_classes, **cfg})


def test_names_of_the_weights_are_used() -> None:
    names, descriptions = class_names(network(2, label_names=["cat", "dog"]))
    assert names == descriptions == ["cat", "dog"]


def test_wordnet_ids_are_described_in_words() -> None:
    """Those of Tiny-ImageNet are among them, as are ids that ImageNet-1k does not have."""
    names, descriptions = class_names(network(3, label_names=["n02123045", "n00004475", "n99999999"]))
    assert names == ["n02123045", "n00004475", "n99999999"]
    assert descriptions == ["tabby, tabby cat", "organism, being", "n99999999"]
    assert describe_class("n02123045.jpg") == "n02123045.jpg"


@pytest.mark.parametrize("given", [["a cat", "a dog"], {"cat": "a cat", "dog": "a dog"}], ids=["list", "mapping"])
def test_descriptions_of_the_weights_are_used(given: Any) -> None:
    found = class_names(network(2, label_names=["cat", "dog"], label_descriptions=given))
    assert found.names == ["cat", "dog"] and found.descriptions == ["a cat", "a dog"]


def test_a_network_with_a_thousand_classes_without_names_knows_imagenet() -> None:
    found = class_names(network(1000))
    assert found.names[0] == "n01440764" and found.descriptions[0] == "tench, Tinca tinca"


def test_classes_with_the_same_words_are_told_apart() -> None:
    """ImageNet has a bird and a machine called crane. The app and `explain --class` could only show one of each."""
    descriptions = class_names(network(1000)).descriptions
    assert len(set(descriptions)) == 1000
    assert [words for words in descriptions if words.startswith("crane")] == ["crane (n02012849)", "crane (n03126707)"]


def test_other_classes_are_numbered() -> None:
    assert class_names(network(3)).descriptions == ["class 0", "class 1", "class 2"]
