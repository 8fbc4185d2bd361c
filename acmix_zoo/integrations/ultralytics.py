"""ACmix in the YOLO models of Ultralytics: rows of a model yaml, and swaps that training keeps.

    import acmix_zoo.integrations.ultralytics  # not needed for checkpoints, which import it by themselves
    from ultralytics import YOLO

    YOLO("model.yaml").train(data="data.yaml")  # with rows such as [-1, 1, ACmix2d, [256, 3, 2]]

A row `ACmix2d` is a `Conv` of Ultralytics, with its batch norm and activation, whose 3×3 convolution is an ACmix layer.
Its arguments are `[channels, kernel_conv, stride]`, so a row `Conv` with kernel size 3 can simply be renamed. Channels
are scaled by the width of the model, and `heads="auto"` chooses a number of heads that fits. A mapping at the end sets
heads, kernel_att or paths: `[256, 3, 2, {kernel_att: 5}]`.

The model's yaml states all of this, and Ultralytics stores it in every checkpoint. Checkpoints also name the parser in
this module, so reading one imports this module. `YOLO("best.pt")` therefore predicts, validates, exports, resumes and
fine-tunes in a new process without any import. Only `ULTRALYTICS_SAFE_LOAD=1` rejects such checkpoints, because it
accepts no layers of other packages.

Ultralytics is licensed under AGPL-3.0. This is the only module of the package that imports it, and no other module
imports this one.
"""

from __future__ import annotations

from copy import deepcopy
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from torch import nn

from acmix_zoo.layers.swap import SwapReport, swap_conv3x3

try:
    from ultralytics.engine.model import Model
    from ultralytics.nn import tasks
    from ultralytics.nn.modules import Conv
    from ultralytics.utils import LOGGER
except ImportError as error:
    raise ImportError(
        "acmix_zoo.integrations.ultralytics needs the package ultralytics, which cannot be imported. "
        "Install it with `pip install 'acmix-zoo[ultralytics]'` (it is licensed under AGPL-3.0)"
    ) from error

_LAYER = "ACmix2d"
_KEY = "acmix_swap"  # in a model's yaml: the arguments of every `swap`
_IMAGE_SIZE = 640  # the image for which Ultralytics prints GFLOPs
_parse_model = tasks.parse_model


def swap(model: Model | nn.Module, filter: str | None = None, **acmix: Any) -> SwapReport:
    """Replace 3×3 convolutions of a YOLO model with newly initialised `ACmix2d` layers, and keep them in training.

    When training starts, Ultralytics rebuilds the model from its yaml. The swap is therefore recorded in the yaml,
    where every trainer finds it. Weights of the other layers are carried over.

    Only `Conv` blocks outside the head (`Detect` and similar), which makes the predictions, are replaced. Blocks that
    merge kernels, such as `RepConv`, are kept and reported. Without a filter, the first row is kept as well.

    Args:
        model: a `YOLO`, or the network in it. A `YOLO` starts its training from the weights that it has now, even if
            it was built from a yaml.
        filter: pattern for the names of the convolutions to replace, such as "model.1[69].*".
        **acmix: the arguments heads, kernel_att, kernel_conv and paths of `ACmix2d`.

    Returns:
        SwapReport: see `swap_conv3x3`. MACs are those of an image of 640×640 pixels.

    Raises:
        ValueError: no 3×3 convolution outside the head matches the filter, or ACmix2d rejects an argument for all of
            them.
        TypeError: unknown argument.

    Note:
        The command `yolo`, `YOLO.tune` and training on several GPUs (which has not been tested) start other processes,
        which import this module only if they read a checkpoint. Write one with `model.save("start.pt")` and continue
        with `YOLO("start.pt")`.
    """
    network: Any = model.model if isinstance(model, Model) else model
    report = _swap(network, filter, acmix, (network.yaml.get("channels", 3), _IMAGE_SIZE, _IMAGE_SIZE))
    if not report.replaced:
        reasons = "; ".join(dict.fromkeys(report.skipped.values()))
        raise ValueError(
            f"swap: none of the convolutions that match can be replaced: {reasons}. Expected at least one. Change the "
            "filter or the arguments"
        )
    network.yaml.setdefault(_KEY, []).append({"filter": filter, **acmix})
    _mark(network.model)
    if isinstance(model, Model):
        model.load(network)  # otherwise, train() would read the yaml file again, which does not mention the swap
        # With an empty ckpt, train() drops the weights. The `load` of version 8.4.0 leaves it empty.
        model.ckpt = model.ckpt or {"model": network}
    return report


def write_yaml(name: str, folder: str | Path = ".") -> Path:
    """Write the yaml of a YOLO model with ACmix in its neck, made from the one in the installed Ultralytics package.

    The strided 3×3 convolutions between the scales of the neck become ACmix layers.

    Args:
        name: the model and its scale, such as "yolo11n" or "yolov8n".
        folder: where to write it.

    Returns:
        The path of the file, `<name>-acmix.yaml`. Pass it to `YOLO`, which takes the scale from the file's name.

    Raises:
        FileNotFoundError: Ultralytics has no model of this name.
        FileExistsError: there is a file of this name with other content, perhaps your changes.
        ValueError: its neck has no strided 3×3 convolution.
    """
    name = name.removesuffix(".yaml")
    config = tasks.yaml_model_load(f"{name}.yaml")
    del config["scale"], config["yaml_file"]  # they depend on the name of the file
    rows = [row for row in config["head"] if row[2] == "Conv" and row[3][1:3] == [3, 2]]
    if not rows:
        raise ValueError(
            f"write_yaml: the neck of {name} has no Conv with kernel size 3 and stride 2. Expected a model with a path "
            "aggregation neck, such as yolo11n or yolov8n. Write ACmix2d rows yourself, or use `swap`"
        )
    for row in rows:
        row[2] = _LAYER
    path = Path(folder) / f"{name}-acmix.yaml"
    text = yaml.safe_dump(config, sort_keys=False, default_flow_style=None)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise FileExistsError(
            f"write_yaml: {path} exists with different content. Expected no file of that name. Move or delete it, or "
            "choose another folder"
        )
    path.write_text(text, encoding="utf-8")
    return path


def parse_model(d: dict[str, Any], ch: int, verbose: bool = True) -> tuple[nn.Sequential, list[int]]:
    """Build a model from its yaml, with support for ACmix. This replaces Ultralytics' function of the same name.

    Ultralytics builds the rows `ACmix2d` as `Conv` first, so that it scales their widths, limits their channels and
    repeats them like any other row. Then their convolutions are replaced.

    Args:
        d: the model's yaml.
        ch: number of channels of the image.
        verbose: whether to log each row, and what was replaced.

    Returns:
        The layers, and the indices of those whose outputs are needed later.

    Raises:
        ValueError: a row has wrong arguments, or `acmix_swap` matches nothing.
    """
    d = deepcopy(d)
    rows = {index: _as_conv(index, row) for index, row in enumerate([*d["backbone"], *d["head"]]) if row[2] == _LAYER}
    layers, save = _parse_model(d, ch, verbose)
    network = nn.ModuleDict({"model": layers})  # so that layers have the same names as in the complete network
    reports = [_swap_row(network, index, acmix) for index, acmix in rows.items()]
    for arguments in d.get(_KEY, []):
        acmix = {key: value for key, value in arguments.items() if key != "filter"}
        reports.append(_swap(network, arguments.get("filter"), acmix))
    if reports:
        _mark(layers)
    if verbose:
        for report in reports:
            for name, layer in report.replaced.items():
                LOGGER.info(f"{name}: ACmix2d({layer.extra_repr()})")
    return layers, save


def _as_conv(index: int, row: list[Any]) -> dict[str, Any]:
    """Turn a row `ACmix2d` into a row `Conv` with a 3×3 convolution, in place. Return the arguments of the layer.

    Raises:
        ValueError: wrong arguments.
    """
    arguments = list(row[3])
    acmix = dict(arguments.pop()) if arguments and isinstance(arguments[-1], dict) else {}
    if not 1 <= len(arguments) <= 3:
        raise ValueError(
            f"row {index}: ACmix2d has the arguments {row[3]}. Expected [channels, kernel_conv, stride], of which the "
            "last two may be left out. Put other arguments into a mapping: [256, 3, 2, {kernel_att: 5}]"
        )
    channels, kernel_conv, stride = arguments + [3, 1][len(arguments) - 1 :]
    row[2], row[3] = "Conv", [channels, 3, stride]
    return {"kernel_conv": kernel_conv, **acmix}


def _swap_row(network: nn.Module, index: int, acmix: dict[str, Any]) -> SwapReport:
    """Replace the convolutions of a row, of which there are several if it is repeated.

    Raises:
        ValueError: ACmix2d rejects an argument, for example heads that do not divide the scaled width.
    """
    try:
        report = swap_conv3x3(network, lambda name, conv: name.startswith(f"model.{index}."), **acmix)
    except (TypeError, ValueError) as error:
        raise ValueError(f"row {index}: ACmix2d cannot have these arguments: {error}") from error
    for reason in report.skipped.values():
        raise ValueError(
            f"row {index}: an ACmix2d with these arguments cannot be built: {reason}. Expected arguments that fit the "
            "scaled width. Leave out heads, so that they follow the width, or use another width"
        )
    return report


def _swap(
    network: nn.Module, filter: str | None, acmix: dict[str, Any], input_size: tuple[int, int, int] | None = None
) -> SwapReport:
    """Replace the convolutions that match the filter.

    Raises:
        ValueError: there is none.
    """
    head = f"model.{len(network.get_submodule('model')) - 1}."  # type: ignore[arg-type]
    names = [
        f"{name}.conv"
        for name, block in network.named_modules()
        if type(block) is Conv and getattr(block.conv, "kernel_size", None) == (3, 3) and not name.startswith(head)
    ]
    found = {name for name in names if (fnmatchcase(name, filter) if filter else not name.startswith("model.0."))}
    if not found and filter is None:
        raise ValueError(
            "swap: there is no 3×3 convolution outside the head and behind the first layer. Expected a YOLO model "
            "that has not been swapped already"
        )
    if not found:
        raise ValueError(
            f"swap: filter={filter!r} matches no 3×3 convolution outside the head. Expected a pattern for names such "
            f"as {', '.join(names[-4:])}. Change the filter, or leave it out to replace all that can be replaced"
        )
    return swap_conv3x3(network, lambda name, conv: name in found, input_size=input_size, **acmix)


def _mark(layers: nn.Sequential) -> None:
    """Update the parameter count that Ultralytics keeps for each row, and make checkpoints import this module."""
    layer: Any
    for layer in layers:
        layer.np = sum(parameter.numel() for parameter in layer.parameters())
    # A function is pickled as the name of its module, which is therefore imported when the checkpoint is read.
    layers.parser = parse_model  # type: ignore[assignment]


tasks.parse_model = parse_model
