"""From a weight folder to a model. Its config.json may come from anybody: it is checked before anything is built by it.

It can name a known architecture and plain values for its arguments, and nothing else: no file, address or class. What
it describes is compared with the header of model.safetensors before memory is taken, so neither can ask for more than
the other holds, and the file's sha256 with the recorded one before it is used.
"""

import dataclasses
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.models import PretrainedCfg, build_model_with_cfg
from torch import Tensor, nn

from acmix_zoo.checksum import check_sha256
from acmix_zoo.weights.load import load_weights, mismatch
from acmix_zoo.weights.locate import locate
from acmix_zoo.weights.read import read_checkpoint

_LARGEST_CONFIG = 16 * 2**20  # bytes; 22,000 label names take one
_LARGEST = 2**16  # of any number in model_args
# Where timm would look for weights; a weight folder's are beside its config.json.
_SOURCES = {"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load", "architecture"}
# What steers timm's builder rather than the network.
_BUILDERS = {*inspect.signature(timm.create_model).parameters, *inspect.signature(build_model_with_cfg).parameters}
_BUILDERS |= {"features_only", "out_indices", "feature_cls", "pruned"}


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read config.json of a weight folder.

    Raises:
        FileNotFoundError: not a weight folder. ValueError: config.json is damaged or not timm's layout.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a weight folder: it holds no config.json")
    if path.stat().st_size > _LARGEST_CONFIG:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; a config.json of a weight folder has some thousand")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); fetch or write the weight folder again") from error
    kinds = {"architecture": str, "pretrained_cfg": dict}
    if not isinstance(config, dict) or not all(isinstance(config.get(key), kind) for key, kind in kinds.items()):
        raise ValueError(f"{path} is not the config.json of a weight folder: it needs architecture and pretrained_cfg")
    for key in ("acmix_zoo", "model_args"):
        if not isinstance(config.get(key, {}), dict):
            raise ValueError(f"{path}: {key} must be a mapping, is {type(config[key]).__name__}")
    for key in ("label_names", "label_descriptions"):  # at the top level of config.json, but part of timm's cfg
        if key in config:
            config["pretrained_cfg"][key] = config[key]
    return config


def build(folder: str | Path, **kwargs: Any) -> nn.Module:
    """Build the model of a weight folder with its weights; `kwargs` (num_classes, in_chans, ...) go to timm.

    Raises:
        ValueError: its config.json names an unknown model or what it may not name; the weights are not those that it
            describes, or have another sha256. FileNotFoundError: not a weight folder.
    """
    folder = Path(folder)
    config = read_config(folder)
    architecture, cfg, arguments = described(config, folder)
    cfg = dataclasses.replace(cfg, source="local-dir", file=str(folder))
    stored = header(folder / "model.safetensors")
    for name in arguments.keys() & {"layers", "depths", "depth"}:
        blocks = arguments[name] if isinstance(arguments[name], list) else [arguments[name]]
        if not all(isinstance(n, int) for n in blocks) or sum(blocks) > len(stored):
            raise ValueError(f"{folder}: {name}={str(blocks)[:60]} are more blocks than its file has tensors")
    check_sha256(folder)
    with torch.device("meta"):
        shell = timm.create_model(architecture, pretrained_cfg=cfg, **arguments)
    report = mismatch(shell.state_dict(), stored, str(folder), type(shell).__name__)
    if report:
        raise ValueError(f"{report}; nothing was loaded")
    if not kwargs:
        return load_weights(timm.create_model(architecture, pretrained_cfg=cfg, **arguments), folder)
    return timm.create_model(architecture, pretrained=True, pretrained_cfg=cfg, **{**arguments, **kwargs})


def described(config: dict[str, Any], where: Path) -> tuple[str, PretrainedCfg, dict[str, Any]]:
    """Return architecture, timm's cfg and the network's arguments as stated in a weight folder or a checkpoint.

    Args:
        config: in the layout of config.json.
        where: the folder or file, for error messages.

    Raises:
        ValueError: the architecture is unknown, or a value is not plain.
    """
    architecture = config["architecture"]
    if not timm.is_model(architecture) or "." in architecture:
        raise ValueError(f"{where} holds weights of {architecture!r}, which is not a known model")
    arguments = config.get("model_args", {})
    if refused := sorted(arguments.keys() & _BUILDERS):
        raise ValueError(f"{where}: model_args may not set {', '.join(refused)}; it may only describe the network")
    for name, value in arguments.items():
        if not _harmless(value):
            raise ValueError(
                f"{where}: {name}={str(value)[:60]} is not a plain value of a network; expected short "
                f"strings, truth values, numbers up to {_LARGEST} and short lists of them"
            )
    known = {field.name for field in dataclasses.fields(PretrainedCfg)}
    given = {key: value for key, value in config["pretrained_cfg"].items() if key not in _SOURCES}
    if unknown := sorted(given.keys() - known):
        raise ValueError(f"{where}: timm's pretrained_cfg has no {', '.join(unknown)[:200]}")
    given["num_classes"] = config.get("num_classes", given.get("num_classes", 1000))
    return architecture, PretrainedCfg(**given), arguments


def checkpoint_config(checkpoint: Any, path: Path) -> dict[str, Any] | None:
    """Return what a checkpoint of a `ClassificationTask` says about its network, in the layout of config.json.

    Args:
        checkpoint: the content of a checkpoint file.
        path: of the file, for error messages.

    Returns:
        The config, for `described`; None for a checkpoint that does not name its network.

    Raises:
        ValueError: the checkpoint was trained with a weight folder as its model, or its arguments are not plain values.
    """
    hyper = _entry(checkpoint, "hyper_parameters")
    if not {"model", "num_classes"} <= hyper.keys():
        return None
    name = str(hyper["model"])
    if (Path(name) / "config.json").is_file():  # trained with a weight folder as the model
        raise ValueError(
            f"create_model: {path} was trained with the weight folder {name} as its model. Expected a model's name in "
            "the checkpoint. Use the run's weights/, or run `acmix-zoo export` on a machine that has that folder"
        )
    architecture = name.partition(".")[0]
    default = timm.get_pretrained_cfg(architecture)
    stored = _entry(_entry(_entry(checkpoint, "ImageDataModule"), "card"), "cfg")  # mean, std, class names
    cfg = {**(default.to_dict(remove_source=True) if default else {}), **stored}
    try:
        _, _, arguments = settle(name, hyper.get("pretrained") or False, hyper.get("model_kwargs"), is_new=False)
        arguments = json.loads(json.dumps(arguments or {}))  # tuples become lists, as in config.json
    except TypeError as error:
        raise ValueError(f"create_model: model_kwargs of {path} are not plain values ({error})") from error
    return {
        "architecture": architecture,
        "num_classes": hyper["num_classes"],
        "model_args": arguments,
        "pretrained_cfg": {key: value for key, value in cfg.items() if key not in ("architecture", "tag")},
    }


def _entry(mapping: Any, key: str) -> Mapping[str, Any]:
    """Return the nested mapping under `key`, or an empty one if there is none."""
    value = mapping.get(key) if isinstance(mapping, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def settle(
    model: str, pretrained: bool | str | Path, model_kwargs: dict[str, Any] | None, is_new: bool = True
) -> tuple[str, bool | str, dict[str, Any] | None]:
    """Return a task's `model`, `pretrained` and `model_kwargs` so that they describe the network without its weights.

    Weights given as the model (a weight folder, a run folder or a checkpoint of a task) become their architecture, with
    the path as `pretrained`. The arguments that are stored with the weights are merged into `model_kwargs`, where the
    caller's take precedence. They are needed even when the weights are not: many of them, such as kernel_att, leave the
    shapes of all parameters as they are.

    Args:
        is_new: False for the recorded values of a task that has already been trained. They contain the arguments of a
            checkpoint that was given as `pretrained`. If they do not, an earlier version wrote them, which ignored
            these arguments and trained a network without them.

    Raises:
        ValueError: the stored description is damaged, or names what it may not name.
    """
    if isinstance(pretrained, Path):
        pretrained = str(pretrained)  # a checkpoint holds plain values
    if isinstance(pretrained, str):
        found = stored_network(locate(pretrained), reads_checkpoints=is_new)
    elif timm.is_model(model) and not (Path(model) / "config.json").is_file():
        found = None
    else:
        found = stored_network(locate(model))
    if found is None:
        return model, pretrained, model_kwargs or None
    architecture, arguments = found
    if not isinstance(pretrained, str):
        model, pretrained = architecture, model
    if architecture == model.partition(".")[0]:  # otherwise create_model refuses the weights
        model_kwargs = {**arguments, **(model_kwargs or {})}
    return model, pretrained, model_kwargs or None


def stored_network(place: Path, reads_checkpoints: bool = True) -> tuple[str, dict[str, Any]] | None:
    """Return the architecture and arguments that a weight folder or a checkpoint states; None for anything else."""
    config: dict[str, Any] | None = None
    if (place / "config.json").is_file():
        config = read_config(place)
    elif reads_checkpoints:
        _, config = read_described(place)
    if config is None:
        return None
    architecture, _, arguments = described(config, place)
    return architecture, arguments


def read_described(path: Path) -> tuple[Any, dict[str, Any] | None]:
    """Read a checkpoint file that describes its network, see `checkpoint_config`.

    Returns:
        The content and the config. (None, None) for weights that come without a description, such as a plain state
        dict or a safetensors file, and for a path that is not a file.

    Raises:
        ValueError: the file is damaged or unsafe.
    """
    if not path.is_file() or path.suffix == ".safetensors":
        return None, None
    checkpoint = read_checkpoint(path)
    config = checkpoint_config(checkpoint, path)
    return (None if config is None else checkpoint), config


def _harmless(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= 32 and all(_harmless(v) and not isinstance(v, list) for v in value)
    if isinstance(value, str):
        return len(value) <= 64
    return value is None or (isinstance(value, bool | int | float) and abs(value) <= _LARGEST)


def header(weights: Path) -> dict[str, Tensor]:
    """Names and shapes of a safetensors file's tensors, as tensors without memory.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is damaged.
    """
    if not weights.is_file():
        raise FileNotFoundError(f"{weights.parent} is not a weight folder: it holds no {weights.name}")
    try:
        with safe_open(weights, "pt") as file:
            return {key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{weights} is damaged or not safetensors ({error}); fetch or write it again") from error
