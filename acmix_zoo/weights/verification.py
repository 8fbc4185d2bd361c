"""Verify a weight folder: its record, the size and hash of its weights, its counts, and its stored outputs."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from acmix_zoo.layers.complexity import complexity
from acmix_zoo.models.task_network import example_outputs
from acmix_zoo.weights.build_folder import build_folder
from acmix_zoo.weights.description import read_config

_REQUIRED = {
    "name": str, "version": str, "metrics": list, "params": int, "macs": int, "file_size": int, "sha256": str,
    "environment": dict,
}  # fmt: skip
_TOLERANCE = 1e-4  # error of an output such as the logits, relative to its largest value


def check_folder(folder: str | Path) -> list[str]:
    """Return the problems of a weight folder, or an empty list if it verifies.

    The record has to be complete, the weights must have the recorded size and hash, the network must have the recorded
    numbers of parameters and MACs, and the sample input must give the stored outputs. Weights with a different hash
    are not loaded.
    """
    folder = Path(folder)
    weights = folder / "model.safetensors"
    try:
        record = read_config(folder).get("acmix_zoo", {})
        with weights.open("rb") as file:
            found = {"file_size": weights.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    except (OSError, ValueError) as error:
        return [str(error)]
    problems = check_record(record)
    wrong_file = [
        f"model.safetensors: {key} is {value}, but config.json says {record.get(key)}"
        for key, value in found.items()
        if record.get(key) != value
    ]
    return problems + (wrong_file or _check_network(folder, record))


def check_record(record: Mapping[str, Any]) -> list[str]:
    """Return what is missing or wrong in the record of a weight folder, which is the key `acmix_zoo` of config.json."""
    problems = [
        f"the record's {key} is {record.get(key)!r}. Expected {kind.__name__}"
        for key, kind in _REQUIRED.items()
        if not isinstance(record.get(key), kind)
    ]
    metrics = record.get("metrics") or []
    if not isinstance(metrics, list):
        return [*problems, f"the record's metrics are {str(metrics)[:80]}. Expected a list"]
    for metric in metrics:
        value = metric.get("value") if isinstance(metric, Mapping) else None
        if value is None or not all(isinstance(metric.get(key), str) for key in ("dataset", "split", "name")):
            problems.append(f"the record's metric {str(metric)[:80]} does not have a dataset, split, name and value")
        elif not (isinstance(value, int | float) and 0 <= value <= 1):
            problems.append(f"the record's {metric['name']} on {metric['dataset']} is {value}. Expected 0 to 1")
    return problems


def _check_network(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """Return how the network differs from the record, and its outputs from the stored ones."""
    try:
        example = safetensors.torch.load_file(folder / "test" / "example.safetensors")
        images = example.pop("input")
        if not example:
            raise KeyError("logits")
    except FileNotFoundError:
        return ["test/example.safetensors is missing. If this is the Hub's cache, download it with a connection"]
    except (OSError, KeyError, SafetensorError) as error:
        return [f"test/example.safetensors does not contain an input and its logits ({error!r})"]
    try:
        with torch.no_grad():
            model = build_folder(folder).eval()
            outputs = example_outputs(model, images)
            counted = complexity(model.to("meta"), images.shape[1:])
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        return [f"could not build and run the model that config.json describes: {error}"]
    problems = [
        f"{key}: counted {value}, but config.json says {record.get(key)}"
        for key, value in (("params", counted.params), ("macs", counted.macs))
        if record.get(key) != value
    ]
    if example.keys() != outputs.keys():
        return [*problems, f"test/example.safetensors stores {', '.join(example)}. Expected {', '.join(outputs)}"]
    return problems + [text for name, value in example.items() for text in _compare(name, outputs[name], value)]


def _compare(name: str, found: Tensor, stored: Tensor) -> list[str]:
    if found.shape != stored.shape:
        return [f"the {name} have the shape {tuple(found.shape)}. Expected {tuple(stored.shape)}, as stored"]
    scale = stored.abs().max().clamp_min(1e-6) if stored.numel() else 1.0
    error = float((found - stored).abs().max() / scale) if stored.numel() else 0.0
    if error <= _TOLERANCE:
        return []
    return [f"the relative error of the {name} is {error:.1e}. Expected at most {_TOLERANCE:.0e}"]
