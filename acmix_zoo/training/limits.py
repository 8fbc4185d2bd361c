"""Upper bounds for the speed of a training run: data loading alone, the network's arithmetic, and the device's peak."""

from __future__ import annotations

import copy
import time
import warnings
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch import nn

from acmix_zoo.data.augment import preserve_random_state
from acmix_zoo.layers.complexity import complexity
from acmix_zoo.ops.peak import matmul_peak


def measure_loader(loader: Any, seconds: float, workers: int = 0) -> float | None:
    """Return the images/s of a loader alone, or None if it has too few batches to measure.

    The first batch of each worker is not timed, because it includes the start of the worker. Random states are not
    changed, and no warnings are shown.

    Args:
        loader: a loader of (images, …) batches.
        seconds: duration of the measurement.
        workers: number of worker processes of the loader.
    """
    images, start, end = 0, 0.0, 0.0
    with preserve_random_state(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself warns of unreadable images
        for index, batch in enumerate(loader):
            if start:
                images, end = images + len(batch[0]), time.perf_counter()
                if end - start >= seconds:
                    break
            elif index + 1 >= workers:
                start = time.perf_counter()
    return images / (end - start) if end > start else None


def copy_to_meta(model: nn.Module) -> nn.Module | None:
    """Return a copy of a network on the meta device, which needs no memory, or None if it cannot be copied."""
    memo: dict[int, Any] = {}
    try:
        for parameter in model.parameters():
            empty = torch.empty_like(parameter, device="meta")
            memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        memo |= {id(buffer): torch.empty_like(buffer, device="meta") for buffer in model.buffers()}
        return copy.deepcopy(model, memo)
    except Exception:  # a user's network may contain anything
        return None


def training_flops(model: nn.Module, input_size: tuple[int, ...]) -> float | None:
    """Return the FLOPs for training on one image (C, H, W), or None if they cannot be counted.

    They cannot if the network's code reads values of tensors, for example. The backward pass is counted as twice the
    forward pass, and as nothing in a linear probe.
    """
    try:
        macs = complexity(model, input_size).macs
    except Exception:  # a user's network may do anything
        return None
    first = next(model.parameters(), None)  # if it is frozen, as in a linear probe, so is nearly everything
    return (6.0 if first is not None and first.requires_grad else 2.0) * macs or None


def device_peak(device: torch.device, precision: str) -> float | None:
    """Return the peak FLOP/s of a device, or None if it is unknown.

    The peak of a GPU comes from Lightning's table. That of a CPU is measured with a matrix product.
    """
    names = {"bf16": "bfloat16", "16": "float16", "64": "float64"}
    dtype = names.get(precision.split("-")[0], "float32")
    if device.type != "cpu":
        return get_available_flops(device, getattr(torch, dtype))
    with preserve_random_state():
        return 1e9 * matmul_peak(torch.get_num_threads(), dtype, sizes=((1024, 4),))
