"""Weights and inputs of the networks in tests/golden, which are computed from their names."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "networks.json").read_text())
SAN_AND_PVT = json.loads((Path(__file__).parents[1] / "golden" / "networks_san_pvt.json").read_text())


def golden_tensor(network: str, key: str, shape: list[int]) -> torch.Tensor | None:
    """Return the weight for a name, by the rules of tests/golden. None means that the network builds it itself."""
    random = np.random.default_rng(zlib.crc32(f"{network}/{key}".encode()))

    def normal(scale: float) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32) * np.float32(scale)

    if key.endswith(("num_batches_tracked", "relative_position_index", "attn_mask")):
        return None
    if key.endswith("running_var"):
        value = random.uniform(0.5, 1.5, shape)
    elif key.endswith("running_mean"):
        value = normal(0.1)
    elif key.endswith(("rate1", "rate2")):
        value = 0.5 + normal(0.2)
    elif len(shape) == 1:
        value = 1 + normal(0.1) if key.endswith("weight") else normal(0.05)
    elif key.endswith("dep_conv.weight"):
        value = np.eye(shape[1], dtype=np.float32).reshape(1, *shape[1:]) + normal(0.05)
    elif key.endswith("relative_position_bias_table"):
        value = normal(0.5)
    else:
        value = normal(np.prod(shape[1:]) ** -0.5)
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def golden_state(entry: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the state dict of an entry of GOLDEN, with the names of the authors' code."""
    weights = {key: golden_tensor(entry["name"], key, shape) for key, shape in entry["keys"].items()}
    counters = {key: torch.tensor(0) for key in entry["keys"] if key.endswith("num_batches_tracked")}
    return {key: value for key, value in weights.items() if value is not None} | counters


def golden_input(entry: dict[str, Any]) -> torch.Tensor:
    random = np.random.default_rng(zlib.crc32(f"{entry['name']}/input".encode()))
    return torch.from_numpy(random.standard_normal(entry["input_shape"]).astype(np.float32))
