"""Read what a weight folder states about its network in config.json, and reject anything that could do harm.

The file may come from anyone. It may only name a known architecture and plain values for its arguments, but no file,
address or class.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from timm.models import PretrainedCfg, build_model_with_cfg

from acmix_zoo.models.task_kinds import CLASSIFICATION, TaskKind, config_task

_LARGEST_CONFIG = 16 * 2**20  # bytes; 22,000 label names take one megabyte
_LARGEST_NUMBER = 2**16  # largest number allowed in model_args
# Where timm would look for weights. Those of a weight folder are next to its config.json.
_WEIGHT_SOURCES = {"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load", "architecture"}
# Fields of timm's pretrained_cfg that describe the weights of a tag, not other weights of the same network.
TAG_FIELDS = {
    "label_names", "label_descriptions", "description", "origin_url", "tag", "license", "url", "file", "hf_hub_id",
    "source", "test_input_size", "test_crop_pct", "min_input_size", "paper_ids", "paper_name", "notes",
}  # fmt: skip
BUILDER_ARGUMENTS = {
    *inspect.signature(timm.create_model).parameters,
    *inspect.signature(build_model_with_cfg).parameters,
    *("features_only", "out_indices", "feature_cls", "pruned"),
}
"""Arguments of timm's builder, which do not describe the network."""


@dataclass(frozen=True)
class NetworkDescription:
    """The network that some weights belong to, as they state it. Everything in it has been checked.

    Attributes:
        architecture: the network's name. For other tasks than classification, that of the backbone.
        arguments: the arguments of its constructor that differ from the defaults.
        pretrained_cfg: timm's description of the weights: input size, mean and std, class names, licence.
        task: the task that the network was trained for.
        options: for other tasks than classification, the options of the `TaskNetwork`.
    """

    architecture: str
    arguments: dict[str, Any]
    pretrained_cfg: PretrainedCfg
    task: TaskKind = CLASSIFICATION
    options: dict[str, Any] = field(default_factory=dict)


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return the content of config.json in a weight folder.

    Raises:
        FileNotFoundError: `folder` is not a weight folder.
        ValueError: config.json is damaged, or does not have timm's layout.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a weight folder, because it has no config.json")
    if path.stat().st_size > _LARGEST_CONFIG:
        raise ValueError(
            f"{path} is too large ({path.stat().st_size} bytes). Expected some thousand bytes. Write the weight folder "
            "again"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}). Download or write the weight folder again") from error
    types = {"architecture": str, "pretrained_cfg": dict}
    if not isinstance(config, dict) or not all(isinstance(config.get(key), kind) for key, kind in types.items()):
        raise ValueError(
            f"{path} does not belong to a weight folder. Expected the keys architecture and pretrained_cfg"
        )
    for key in ("acmix_zoo", "model_args", "task_options"):
        if not isinstance(config.get(key, {}), dict):
            raise ValueError(f"{path}: expected a mapping under the key {key}, found {type(config[key]).__name__}")
    for key in ("label_names", "label_descriptions"):  # at the top level of config.json, but part of timm's cfg
        if key in config:
            config["pretrained_cfg"][key] = config[key]
    return config


def has_config(folder: Path) -> bool:
    """Return whether a folder has the config.json of a weight folder rather than that of a different library."""
    try:
        read_config(folder)
    except (OSError, ValueError):
        return False
    return True


def describe_config(config: Mapping[str, Any], where: Path) -> NetworkDescription:
    """Check a config, and return the network that it describes.

    Args:
        config: the content of a config.json, or the equivalent for a checkpoint.
        where: the folder or file that it comes from, for error messages.

    Raises:
        ValueError: the architecture is unknown, or a value is not plain.
    """
    architecture = config["architecture"]
    if not timm.is_model(architecture) or "." in architecture:
        raise ValueError(
            f"{where} holds weights of {architecture!r}, which is not a known model. Expected a network that "
            "`acmix-zoo list` or timm.list_models() shows. A newer version of acmix_zoo or timm may have it"
        )
    # timm also states the number of classes here
    arguments = {key: value for key, value in config.get("model_args", {}).items() if key != "num_classes"}
    if forbidden := sorted(arguments.keys() & BUILDER_ARGUMENTS):
        raise ValueError(
            f"{where}: model_args must not set {', '.join(forbidden)}. Expected only arguments of the network"
        )
    try:
        task = config_task(config)
    except ValueError as error:
        raise ValueError(f"{where}: {error}. A newer version of acmix_zoo may have it") from error
    options = dict(config.get("task_options", {}))
    nested = [item for value in options.values() if isinstance(value, dict) for item in value.items()]
    own = [(name, value) for name, value in options.items() if not isinstance(value, dict)]
    for name, value in [*arguments.items(), *own, *nested]:
        if not _is_plain(value):
            raise ValueError(
                f"{where}: {name}={str(value)[:60]} is not a plain value of a network. Expected short strings, truth "
                f"values, numbers up to {_LARGEST_NUMBER}, or short lists of them"
            )
    known = {field.name for field in dataclasses.fields(PretrainedCfg)}
    default = timm.get_pretrained_cfg(architecture)  # for weights that do not state their input size, mean, std, …
    fields = default.to_dict(remove_source=True) if default else {}
    cfg = {**{key: value for key, value in fields.items() if key not in TAG_FIELDS}, **config["pretrained_cfg"]}
    given = {key: value for key, value in cfg.items() if key not in _WEIGHT_SOURCES}
    if unknown := sorted(given.keys() - known):
        raise ValueError(
            f"{where}: unknown keys in pretrained_cfg: {', '.join(unknown)[:200]}. Expected the fields of timm's "
            "PretrainedCfg"
        )
    classes = config.get("model_args", {}).get("num_classes", given.get("num_classes", 1000))
    given["num_classes"] = config.get("num_classes", classes)
    _check_fields(given, where)
    if "acmix_zoo" in config:  # the licence of these weights, which can differ from that of the code
        license = config["acmix_zoo"].get("license")
        given["license"] = license if isinstance(license, str) else None
    return NetworkDescription(architecture, arguments, PretrainedCfg(**given), task, options)


def _check_fields(cfg: Mapping[str, Any], where: Path) -> None:
    """Check the fields of timm's pretrained_cfg that networks and transforms compute with. timm checks none of them.

    Raises:
        ValueError: a field has a wrong type or length.
    """
    numbers = int | float
    for names, expected, fits in (
        (("num_classes",), "a whole number of classes", lambda v: isinstance(v, int) and v is not True and v >= 0),
        (
            ("input_size", "test_input_size", "min_input_size"),
            "three positive whole numbers: channels, height and width",
            lambda v: _is_list(v, int) and len(v) == 3 and min(v) > 0,
        ),
        (("mean", "std"), "a list of numbers", lambda v: _is_list(v, numbers) and len(v) > 0),
        (("crop_pct", "test_crop_pct"), "a positive number", lambda v: isinstance(v, numbers) and v > 0),
        (("fixed_input_size",), "true or false", lambda v: isinstance(v, bool)),
        (("first_conv", "classifier"), "a layer or a list of layers", lambda v: isinstance(v, str) or _is_list(v, str)),
        (("label_names",), "a list of strings", lambda v: _is_list(v, str)),
        (("label_descriptions",), "a mapping or a list", lambda v: isinstance(v, Mapping | list)),
    ):
        for name in names:
            value = cfg.get(name)
            if value is not None and not fits(value):
                raise ValueError(
                    f"{where}: {name} is {str(value)[:60]!r}. Expected {expected}. Correct it, or write the weights "
                    "again"
                )


def _is_list(value: Any, kind: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(v, kind) for v in value)


def _is_plain(value: Any) -> bool:
    """Return whether a value is plain and small enough to be an argument of a network."""
    if isinstance(value, list):
        return len(value) <= 32 and all(_is_plain(v) and not isinstance(v, list) for v in value)
    if isinstance(value, str):
        return len(value) <= 64
    return value is None or (isinstance(value, bool | int | float) and abs(value) <= _LARGEST_NUMBER)
