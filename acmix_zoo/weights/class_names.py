"""The classes of a network in words, for people who read its predictions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

_WORDNET_ID = re.compile(r"n\d{8}")


class ClassNames(NamedTuple):
    """The classes of a network, in the order of its logits.

    Attributes:
        names: the names in the training data, such as folder names or WordNet ids.
        descriptions: the same in words. They only differ from the names if these are WordNet ids, or if the weights
            come with descriptions of their own.
    """

    names: Sequence[str]
    descriptions: Sequence[str]


def class_names(model: nn.Module) -> ClassNames:
    """Return the names of a network's classes.

    The names are those that its weights state. Networks of timm that state none have the classes of ImageNet if their
    number of classes is that of one of its versions. All other classes are numbered.
    """
    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", {})
    count = int(model.num_classes)  # type: ignore[arg-type]  # timm's contract
    names = cfg.get("label_names")
    if not names or len(names) != count:  # as in `drop_other_names`, for networks that timm built
        subset = infer_imagenet_subset({**cfg, "num_classes": count})
        names = ImageNetInfo(subset).label_names() if subset else [f"class {number}" for number in range(count)]
    return ClassNames(list(names), describe_classes(names, cfg.get("label_descriptions")))


def drop_other_names(model: nn.Module) -> nn.Module:
    """Remove class names from a network's pretrained_cfg if they are those of another number of classes, and return it.

    timm keeps the names that belong to the weights when `num_classes` is another number.
    """
    cfg: Any = getattr(model, "pretrained_cfg", {})
    names = cfg.get("label_names")
    if names and len(names) != getattr(model, "num_classes", len(names)):  # features have no classes
        cfg |= {"label_names": None, "label_descriptions": None}
    return model


def describe_classes(names: Sequence[str], given: Mapping[str, str] | Sequence[str] | None = None) -> list[str]:
    """Return the names of classes in words: as `given`, or else those of WordNet ids.

    If several classes have the same words, such as ImageNet's bird and machine called crane, each is followed by
    its name in brackets.
    """
    given = given or {}
    if not isinstance(given, Mapping):  # timm accepts a list, too
        given = dict(zip(names, given, strict=True))
    words = [given.get(name) or describe_class(name) for name in names]
    shared = {word for word, count in Counter(words).items() if count > 1}
    return [
        f"{word} ({name})" if word in shared and word != name else word for word, name in zip(words, names, strict=True)
    ]


def describe_class(name: str) -> str:
    """Return a name unchanged, unless it is a WordNet id: "tabby, tabby cat" for n02123045."""
    if not _WORDNET_ID.fullmatch(name):
        return name
    try:
        words: str = _imagenet_info().label_name_to_description(name)  # knows the ids of all versions of ImageNet
    except KeyError:
        return name
    return words


@cache
def _imagenet_info() -> ImageNetInfo:
    return ImageNetInfo()
