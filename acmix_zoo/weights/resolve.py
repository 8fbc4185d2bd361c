"""Find out which network some weights belong to, and with which arguments it was built.

A weight folder states this in config.json, and a checkpoint of `acmix-zoo fit` in the hyper-parameters of its task.
Other checkpoints do not state it. The arguments matter because many of them, such as kernel_att, do not change the
shape of any parameter. Without them, the weights would load into a different network without an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from acmix_zoo.models.task_kinds import config_task
from acmix_zoo.models.task_network import builder_options
from acmix_zoo.weights.description import NetworkDescription, describe_config, read_config
from acmix_zoo.weights.fetch import fetch
from acmix_zoo.weights.locate import Kind, ModelLocation, locate, locate_weights
from acmix_zoo.weights.names import is_network_name
from acmix_zoo.weights.not_found import NotFoundError
from acmix_zoo.weights.read import read_checkpoint


class ResolvedNetwork(NamedTuple):
    """A network and its initial weights, as a task records them.

    Attributes:
        model: the name of the network.
        pretrained: False, True, a tag, or where to find the weights.
        model_kwargs: all arguments of the network, or None if there are none.
    """

    model: str
    pretrained: bool | str
    model_kwargs: dict[str, Any] | None


class DescribedCheckpoint(NamedTuple):
    """A checkpoint that states its network.

    Attributes:
        content: the content of the file.
        network: the network and its arguments.
    """

    content: Mapping[str, Any]
    network: NetworkDescription


def resolve_network(
    model: str, pretrained: bool | str | Path, model_kwargs: Mapping[str, Any] | None, is_new: bool = True
) -> ResolvedNetwork:
    """Return `model`, `pretrained` and `model_kwargs` of a task such that they describe the bare network.

    If weights are given as the model (a weight folder, a run folder, a checkpoint of a task or a repository), the model
    becomes their architecture and `pretrained` their location. The arguments that are stored with the weights are
    merged into `model_kwargs`, where the caller's take precedence.

    Args:
        model: as in `create_model`.
        pretrained: as in `create_model`.
        model_kwargs: the caller's arguments of the network.
        is_new: False if the values are the record of a task that has already been trained. Such a record already
            contains the arguments of a checkpoint that was given as `pretrained`. If it does not, an earlier version
            wrote it, which ignored these arguments and trained a network without them.

    Raises:
        ValueError: the stored description is damaged, or contains something that is not allowed.
    """
    if isinstance(pretrained, Path):
        pretrained = str(pretrained)  # a checkpoint holds plain values
    network: NetworkDescription | None = None
    try:
        if isinstance(pretrained, str):
            location = locate_weights(model.partition(".")[0], pretrained)
            is_described = is_new or location.kind is Kind.WEIGHT_FOLDER
        else:
            location = locate(model)
            is_described = is_new or location.kind is not Kind.REPOSITORY  # reading a record does not need the Hub
    except NotFoundError:
        pass  # create_model reports it, and a record may name weights that no longer exist
    else:
        network = describe(location) if is_described else None
    arguments = dict(model_kwargs or {})
    if network is not None:
        if not isinstance(pretrained, str):
            model, pretrained = network.architecture, model
        if network.architecture == model.partition(".")[0]:  # otherwise create_model rejects the weights
            arguments = {**network.arguments, **arguments}
    return ResolvedNetwork(model, pretrained, arguments or None)


def describe(location: ModelLocation) -> NetworkDescription | None:
    """Return the network and its arguments as stated by the weights, or None if they do not state it.

    Raises:
        ValueError: the description is damaged, or contains something that is not allowed.
    """
    if location.kind is Kind.NETWORK:
        return None  # the name is all there is to know
    path = fetch(location)
    if path.is_dir():
        return describe_config(read_config(path), path)
    described = read_described(path)
    return described.network if described else None


def read_described(path: Path) -> DescribedCheckpoint | None:
    """Read a checkpoint file that states its network. Return None for any other file.

    Raises:
        ValueError: the file is damaged or unsafe, or its description is not allowed.
    """
    if path.suffix.lower() in (".safetensors", ".npz"):
        return None
    content = read_checkpoint(path)
    config = _checkpoint_config(content, path)
    return DescribedCheckpoint(content, describe_config(config, path)) if config else None


def _checkpoint_config(content: Any, path: Path) -> dict[str, Any] | None:
    """Return what a checkpoint of a task states about its network, in the layout of config.json.

    Raises:
        ValueError: the checkpoint was trained with a weight folder as its model, or its arguments are not plain values.
    """
    hyper = _entry(content, "hyper_parameters")
    if not {"model", "num_classes"} <= hyper.keys():
        return None
    name = str(hyper["model"])
    if "task" not in content and not is_network_name(name) and not Path(name).is_dir():
        return None  # the hyper-parameters are those of another project
    # a folder that happens to have the name of a network is not what the run was trained with
    if not is_network_name(name) and (Path(name) / "config.json").is_file():
        raise ValueError(
            f"{path} records the weight folder {name} as its model. Expected the name of a network. Use the run's "
            "weights/, or run `acmix-zoo export` on a machine that has that folder"
        )
    cfg = _entry(data_card(content), "cfg")  # mean, std, class names
    try:
        network = resolve_network(name, hyper.get("pretrained") or False, hyper.get("model_kwargs"), is_new=False)
        arguments = json.loads(json.dumps(network.model_kwargs or {}))  # tuples become lists, as in config.json
    except TypeError as error:
        raise ValueError(
            f"the model_kwargs of {path} are not plain values ({error}). Expected numbers, strings, lists and mappings"
        ) from error
    try:
        task = config_task(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return {
        "task": task.name,
        "task_options": {name: hyper[name] for name in builder_options(task) if name in hyper},
        "architecture": name.partition(".")[0],
        "num_classes": hyper["num_classes"],
        "model_args": arguments,
        "pretrained_cfg": dict(cfg),
        "acmix_zoo": {"license": _entry(_entry(content, "callbacks"), "RunFolder").get("license")},
    }


def data_card(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the card of the data that a checkpoint was trained on, {} if it has none.

    Lightning stores the state of a data module under the name of its class.
    """
    states = (value for key, value in checkpoint.items() if str(key).endswith("DataModule"))
    return next((_entry(state, "card") for state in states if _entry(state, "card")), {})


def _entry(mapping: Any, key: str) -> Mapping[str, Any]:
    """Return the nested mapping under `key`, or an empty one if there is none."""
    value = mapping.get(key) if isinstance(mapping, Mapping) else None
    return value if isinstance(value, Mapping) else {}
