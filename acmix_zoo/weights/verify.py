"""A weight folder proves itself: its record, size, hash, counts, and the stored logits, replayed."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from acmix_zoo.layers.complexity import complexity
from acmix_zoo.weights.build import build, read_config

_REQUIRED = {
    "name": str, "version": str, "metrics": list, "params": int, "macs": int, "file_size": int, "sha256": str,
    "environment": dict,
}  # fmt: skip


def check_record(record: Mapping[str, Any]) -> list[str]:
    """What is missing from, or wrong with, the record of a weight folder (config.json's key `acmix_zoo`)."""
    problems = []
    for key, kind in _REQUIRED.items():
        if not isinstance(record.get(key), kind):
            problems.append(f"the record's {key} is {record.get(key)!r}; expected {kind.__name__}")
    for metric in record.get("metrics") or []:
        value = metric.get("value") if isinstance(metric, Mapping) else None
        if value is None or not all(isinstance(metric.get(key), str) for key in ("dataset", "split", "name")):
            problems.append(f"the record's metric {str(metric)[:80]} is not one of dataset, split, name and value")
        elif not (isinstance(value, int | float) and 0 <= value <= 1):
            problems.append(f"the record's {metric['name']} on {metric['dataset']} is {value}; expected 0 to 1")
    return problems


def check_folder(folder: str | Path) -> list[str]:
    """Verify a weight folder: its record, the weights' size and hash, parameters and MACs counted again, and the stored
    logits, replayed. A file whose hash is not the recorded one is not loaded. No problem: []."""
    folder = Path(folder)
    weights = folder / "model.safetensors"
    try:
        record = read_config(folder).get("acmix_zoo", {})
        with weights.open("rb") as file:
            found = {"file_size": weights.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    except (OSError, ValueError) as error:
        return [str(error)]
    problems = check_record(record)
    different = [
        f"model.safetensors: {key} is {value}, config.json says {record.get(key)}"
        for key, value in found.items()
        if record.get(key) != value
    ]
    if different:
        return problems + different
    try:
        example = safetensors.torch.load_file(folder / "test" / "example.safetensors")
        images, logits = example["input"], example["logits"]
    except (OSError, KeyError, SafetensorError) as error:
        return [*problems, f"test/example.safetensors: no input and logits to replay ({error!r})"]
    try:
        with torch.no_grad():
            model = build(folder).eval()
            replayed = model(images)
            counted = complexity(model.to("meta"), images.shape[1:])
    except (RuntimeError, ValueError, TypeError) as error:
        return [*problems, f"the model cannot be built from config.json and run: {error}"]
    for key, value in (("params", counted.params), ("macs", counted.macs)):
        if record.get(key) != value:
            problems.append(f"{key}: counted {value}, config.json says {record.get(key)}")
    if replayed.shape != logits.shape:
        return [*problems, f"replayed logits have shape {tuple(replayed.shape)}, stored {tuple(logits.shape)}"]
    off = float((replayed - logits).abs().max() / logits.abs().max().clamp_min(1e-6)) if logits.numel() else 0.0
    if not off <= 1e-4:  # also when it is not a number
        problems.append(f"replayed logits are {off:.1e} away from the stored ones, relative; at most 1e-4 is expected")
    return problems
