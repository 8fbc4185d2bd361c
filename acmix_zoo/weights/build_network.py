"""Build the network that weights describe, for any task. timm builds the classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from acmix_zoo.models.task_kinds import CLASSIFICATION
from acmix_zoo.models.task_network import TaskNetwork, builder_options
from acmix_zoo.weights.description import NetworkDescription
from acmix_zoo.weights.match import copy_weights


def build_network(network: NetworkDescription, num_classes: int | None = None) -> nn.Module:
    """Build a network as weights describe it, without these weights.

    Args:
        network: the description.
        num_classes: number of classes; by default, that of the description.

    Raises:
        ModuleNotFoundError: the network needs a package of an extra. The message names it.
        ValueError: the task's network has no such option.
    """
    cfg = network.pretrained_cfg
    classes = cfg.num_classes if num_classes is None else num_classes
    if network.task is CLASSIFICATION:
        arguments = network.arguments if num_classes is None else {**network.arguments, "num_classes": classes}
        return timm.create_model(network.architecture, pretrained_cfg=cfg, **arguments)
    known = builder_options(network.task)
    if unknown := sorted(network.options.keys() - known.keys()):
        raise ValueError(
            f"a network for {network.task.title} has no option {', '.join(unknown)[:200]}. Expected {', '.join(known)}"
        )
    built: TaskNetwork = network.task.network_class()(
        network.architecture, classes, model_kwargs=network.arguments, **network.options
    )
    built.pretrained_cfg = {**cfg.to_dict(remove_null=False), "num_classes": classes}
    return built


def build_task_network(
    network: NetworkDescription, state: Mapping[str, Tensor], path: Path, num_classes: int | None = None, **kwargs: Any
) -> nn.Module:
    """Build a network for a task other than classification, with its weights.

    Args:
        network: the description.
        state: the weights.
        path: where they come from, for messages.
        num_classes: number of classes; if it differs from that of the weights, the head is re-initialised.
        kwargs: further arguments of `create_model`, none of which is accepted.

    Raises:
        ValueError: further arguments are given, or the weights do not fit.
    """
    if kwargs:
        raise ValueError(
            f"{path} holds a network for {network.task.title}, which cannot be built with {', '.join(kwargs)}. "
            "Expected at most num_classes"
        )
    built = build_network(network, num_classes)
    assert isinstance(built, TaskNetwork)
    copy_task_weights(built, state, network.pretrained_cfg.num_classes, str(path))
    return built


def copy_task_weights(network: TaskNetwork, state: Mapping[str, Tensor], num_classes: int, where: str) -> None:
    """Copy the weights of a network with `num_classes` classes.

    If `network` has a different number of classes, its head keeps its initial values.

    Raises:
        ValueError: the weights do not fit.
    """
    reinitialised: set[str] = set()
    if network.num_classes != num_classes:
        head = {id(parameter) for parameter in network.head.parameters()}
        reinitialised = {name for name, parameter in network.named_parameters() if id(parameter) in head}
    copy_weights(network, dict(state), where, reinitialised=reinitialised)
