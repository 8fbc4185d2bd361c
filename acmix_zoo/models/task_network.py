"""`TaskNetwork`: the interface of networks for other tasks, so that they are trained and stored like classifiers."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from acmix_zoo.models.task_kinds import CLASSIFICATION, TaskKind


class TaskNetwork(nn.Module):
    """A network for a task other than classification: a backbone, which timm builds, and what the task adds to it.

    It has the part of timm's interface that training and weight folders use, so that they work for every task. A
    subclass passes its own arguments on as `options`, builds its modules, and implements `backbone`, `head`, `method`,
    `example_outputs` and `forward`. In eval mode, `forward` has to accept a tensor of images on the meta device, where
    tensors have no values, because costs are counted there.

    Args:
        architecture: name of the backbone.
        num_classes: number of classes.
        model_kwargs: arguments of the backbone.
        options: the other arguments of the subclass, as plain values.

    Attributes:
        kind: the task.
        architecture, num_classes, options: as given.
        in_chans: number of channels of an image.
        pretrained_cfg: timm's description of the backbone and its weights.
    """

    kind: ClassVar[TaskKind]

    def __init__(
        self, architecture: str, num_classes: int, model_kwargs: Mapping[str, Any] | None, options: Mapping[str, Any]
    ) -> None:
        super().__init__()
        if own := sorted({"features_only", "out_indices"} & set(model_kwargs or {})):
            raise ValueError(
                f"model_kwargs has {' and '.join(own)}, which {type(self).__name__} sets itself. Expected other "
                f"arguments of {architecture}"
            )
        self.architecture, self.num_classes = architecture, num_classes
        self.options: dict[str, Any] = json.loads(json.dumps(dict(options)))  # tuples become lists, as in config.json
        self._model_args = dict(model_kwargs or {})  # as timm's networks of this project keep them
        self.in_chans = int(self._model_args.get("in_chans", 3))
        default = timm.get_pretrained_cfg(architecture)
        self.pretrained_cfg: dict[str, Any] = default.to_dict() if default else {}

    @property
    def backbone(self) -> nn.Module:
        """The module that `timm.create_model(..., features_only=True)` returned."""
        raise NotImplementedError

    @property
    def head(self) -> nn.Module:
        """The module whose parameters have shapes that depend on the number of classes."""
        raise NotImplementedError

    def example_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs that a weight folder stores with a sample input, to check its weights.

        Args:
            images: (B, C, H, W), normalised.
        """
        raise NotImplementedError

    @property
    def method(self) -> str:
        """What the task adds to the backbone, such as "fcos" or "upernet", for the name of the weights."""
        raise NotImplementedError

    @property
    def num_features(self) -> int:
        """Channels of the last feature map of the backbone."""
        return int(self.backbone.feature_info.channels()[-1])  # type: ignore[operator,union-attr]

    def get_classifier(self) -> nn.Module:
        """Return the head, as timm's networks do."""
        return self.head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of the backbone in the backward pass."""
        self.backbone.set_grad_checkpointing(enable)  # type: ignore[operator]

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that the backbone exempts from weight decay."""
        network = self._backbone_network()
        exempt = {_plain(name) for name in getattr(network, "no_weight_decay", set)()}
        return {name for name, plain in self._backbone_names().items() if plain in exempt}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Return the function that timm's `param_groups_layer_decay` uses: the layer of each parameter, by its name.

        The layers of the backbone are those of the classifier of the same name. All other parameters form the last one.
        """
        network = self._backbone_network()
        matcher = network.group_matcher(coarse=coarse)  # type: ignore[operator]
        groups = group_parameters(network, matcher, reverse=True)
        layers = {_plain(name): layer for name, layer in groups.items()}
        own = {name: layers[plain] for name, plain in self._backbone_names().items() if plain in layers}
        last = max(layers.values(), default=0) + 1
        return lambda name: float(own.get(name, last))

    def load_backbone(self, classifier: nn.Module) -> None:
        """Copy the weights of a classifier into the backbone, all of them or none.

        Raises:
            ValueError: the classifier lacks a weight of the backbone, or has one of another shape.
        """
        state = {_plain(name): value for name, value in classifier.state_dict().items()}
        own = self.backbone.state_dict()
        wrong = [name for name, value in own.items() if getattr(state.get(_key(name)), "shape", None) != value.shape]
        if wrong:
            raise ValueError(
                f"the weights do not fit the backbone {self.architecture}: {len(wrong)} of its {len(own)} tensors are "
                f"missing or have another shape, such as {wrong[0]}. Expected weights of {self.architecture} with the "
                "same arguments"
            )
        self.backbone.load_state_dict({name: state[_key(name)] for name in own})
        cfg = getattr(classifier, "pretrained_cfg", None)
        self.pretrained_cfg = dict(cfg) if cfg else self.pretrained_cfg

    def _backbone_network(self) -> nn.Module:
        """Return the classifier of the backbone's name on the meta device, which knows its layers and their names."""
        with torch.device("meta"):
            return timm.create_model(self.architecture, **self._model_args)

    def _backbone_names(self) -> dict[str, str]:
        """Return {name of a parameter in this network: its plain name in the classifier}."""
        backbone = {id(parameter): name for name, parameter in self.backbone.named_parameters()}
        return {
            name: _key(backbone[id(parameter)])
            for name, parameter in self.named_parameters()
            if id(parameter) in backbone
        }


def _plain(name: str) -> str:
    """Return a name with underscores for dots, as timm's feature extractors write it."""
    return name.replace(".", "_")


def _key(name: str) -> str:
    """Return the plain name of a backbone's tensor in the classifier. Some extractors call the network `model`."""
    return _plain(name.removeprefix("model."))


def builder_options(kind: TaskKind) -> dict[str, Any]:
    """Return the options of a task's network with their defaults, {} for a classifier.

    They are the arguments of its class after the backbone, the number of classes and `model_kwargs`.
    """
    if kind is CLASSIFICATION:
        return {}
    parameters = inspect.signature(kind.network_class()).parameters
    shared = ("architecture", "num_classes", "model_kwargs")
    return {name: parameter.default for name, parameter in parameters.items() if name not in shared}


def example_outputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the outputs of any network, by name, that a weight folder stores with a sample input."""
    if isinstance(model, TaskNetwork):
        return model.example_outputs(images)
    return {"logits": model(images)}
