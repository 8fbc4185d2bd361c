"""The hyper-parameters of a task: their ranges, and those that must agree with a checkpoint."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from acmix_zoo.weights.resolve import resolve_network

# The result of a training run depends on these, so they cannot change during a run. Memory format, compilation and
# gradient checkpointing only affect speed, memory and rounding.
FIXED = frozenset({
    "model", "pretrained", "model_kwargs", "ema_decay", "optimizer", "lr", "base_batch_size",
    "weight_decay", "momentum", "nesterov", "warmup_epochs", "warmup_lr", "min_lr", "layer_decay",
    *("linear_probe", "label_smoothing", "class_weights"),  # classification
    *("detector", "strides", "channels", "anchor_scale", "frozen_norms"),  # detection
    *("detector_kwargs", "decay_epochs"),
    *("decoder", "decoder_kwargs", "losses", "freeze_backbone"),  # segmentation
    *("window", "window_overlap", "flip_eval"),  # they determine which epoch is the best
})  # fmt: skip

# For each hyper-parameter with a limited range: a test, and what was expected.
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "lr": (lambda v: v > 0, "a number above 0, such as 0.001"),
    "base_batch_size": (lambda v: v is None or v > 0, "a number of images, such as 128, or null"),
    "weight_decay": (lambda v: v >= 0, "0 or more"),
    "momentum": (lambda v: 0 <= v < 1, "a number from 0 to below 1, such as 0.9"),
    "warmup_epochs": (lambda v: v >= 0, "0 or more"),
    "warmup_lr": (lambda v: v >= 0, "0 or more"),
    "min_lr": (lambda v: v >= 0, "0 or more"),
    "label_smoothing": (lambda v: 0 <= v <= 1, "a number from 0 to 1"),
    "window_overlap": (lambda v: 0 <= v < 1, "a fraction from 0 to below 1, such as 0.33"),
    "anchor_scale": (lambda v: v is None or v > 0, "a number above 0, such as 4, or null"),
    "ema_decay": (lambda v: v is None or 0 <= v < 1, "a number from 0 to below 1, such as 0.999, or null"),
}


def check_ranges(hyper_parameters: Mapping[str, Any]) -> None:
    """Check that every hyper-parameter is in its range.

    Raises:
        ValueError: a hyper-parameter is out of range.
    """
    for name, (is_valid, expected) in _RANGES.items():
        if name in hyper_parameters and not is_valid(hyper_parameters[name]):
            raise ValueError(f"{name}={hyper_parameters[name]} is out of range. Expected {expected}")


def resolve_hyperparameters(hyper_parameters: Mapping[str, Any], is_new: bool = False) -> dict[str, Any]:
    """Return hyper-parameters as a task stores them, with the network as `resolve_network` describes it.

    Args:
        hyper_parameters: those of a checkpoint, or the options of a command.
        is_new: whether they are the options of a new run. Otherwise they are those of a checkpoint.
    """
    if "model" not in hyper_parameters:
        return dict(hyper_parameters)
    pretrained, model_kwargs = hyper_parameters.get("pretrained") or False, hyper_parameters.get("model_kwargs")
    network = resolve_network(hyper_parameters["model"], pretrained, model_kwargs, is_new)
    return {**hyper_parameters, **network._asdict()}


def check_same_hyperparameters(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Check that a task is resumed with the hyper-parameters of its checkpoint.

    The command line has already checked its options. This check is for Python programs.

    Raises:
        ValueError: a hyper-parameter that the result depends on has changed.
    """
    names = [name for name in given if name in FIXED and name in recorded and not is_equal(recorded[name], given[name])]
    if names:
        old, new = (", ".join(f"{name} {as_text(h[name])}" for name in names) for h in (recorded, given))
        raise ValueError(
            f"the checkpoint was trained with {old}, but this task has {new}. Resume with the values of the "
            "checkpoint. To train with new values, start from its weights with pretrained=PATH and without ckpt_path"
        )


def check_same_network(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Check that a checkpoint belongs to a network with the same arguments.

    Many arguments do not change the shape of any parameter, so the weights would load and the outputs would be wrong.
    Dropout rates may differ, because they only have an effect during training. The image size for which a network is
    built may differ, too.

    Args:
        recorded: the hyper-parameters of the checkpoint.
        given: the hyper-parameters of the task.

    Raises:
        ValueError: `model_kwargs` differ.
    """
    if "model_kwargs" not in recorded:
        return
    old, new = (
        {name: v for name, v in (h.get("model_kwargs") or {}).items() if "drop" not in name and name != "img_size"}
        for h in (recorded, given)
    )
    if not is_equal(old, new):
        texts = [json.dumps(each, default=str) if each else "no model_kwargs" for each in (old, new)]
        raise ValueError(
            f"the network of the checkpoint was built with {texts[0]}, but that of this task with {texts[1]}. Use the "
            f"same arguments (model_kwargs={old or None}), or build the task with its load_from_checkpoint"
        )


def is_equal(a: Any, b: Any, is_typed: bool = False) -> bool:
    """Return whether two plain values mean the same.

    0 and 0.0 do. So do a tuple and a list, because JSON turns one into the other, and two spellings of the same path.

    Args:
        a, b: the values.
        is_typed: whether an int differs from a float, for options where one is a count and the other a fraction.
    """
    if isinstance(a, str) and isinstance(b, str):
        return a == b or os.path.abspath(a) == os.path.abspath(b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(is_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(is_equal(value, b[key]) for key, value in a.items())
    if isinstance(a, bool) or isinstance(b, bool) or is_typed:
        return type(a) is type(b) and bool(a == b)
    return bool(a == b)


def as_text(value: Any) -> str:
    """Return a value as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def check_class_weights(weights: Sequence[float], num_classes: int) -> None:
    """Check the weights of the classes in a loss.

    Raises:
        ValueError: there is not one for each class, one is negative or not finite, or all are zero.
    """
    if len(weights) != num_classes:
        raise ValueError(f"there are {len(weights)} class_weights. Expected {num_classes}, one per class")
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise ValueError(f"class_weights={list(weights)} are unusable. Expected numbers of 0 or more, not all zero")
