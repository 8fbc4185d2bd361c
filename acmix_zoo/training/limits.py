"""What a training could reach at most: the loader alone, the network's arithmetic, the device."""

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


def loader_rate(loader: Any, seconds: float, workers: int = 0) -> float | None:
    """Images/s of a loader of (images, …) batches by itself; None if it has too few batches to tell.

    The first batch of each worker is not timed: starting is not loading, and what the workers had ready would count as
    loaded in no time. Random states and warnings stay as they were.
    """
    images, start, end = 0, 0.0, 0.0
    with preserve_random_state(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bad images: the run itself will say it
        for index, batch in enumerate(loader):
            if start:
                images, end = images + len(batch[0]), time.perf_counter()
                if end - start >= seconds:
                    break
            elif index + 1 >= workers:
                start = time.perf_counter()
    return images / (end - start) if end > start else None


def without_numbers(model: nn.Module) -> nn.Module | None:
    """A copy on the meta device, which takes no memory; None where that cannot be made."""
    memo: dict[int, Any] = {}
    try:
        for parameter in model.parameters():
            empty = torch.empty_like(parameter, device="meta")
            memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        memo |= {id(buffer): torch.empty_like(buffer, device="meta") for buffer in model.buffers()}
        return copy.deepcopy(model, memo)
    except Exception:  # whatever somebody's network holds that cannot be copied
        return None


def training_flops(model: nn.Module, input_size: tuple[int, ...]) -> float | None:
    """FLOPs of one image (C, H, W), forward and backward, which is twice the forward; None where a network cannot be
    counted, for instance because it needs its numbers."""
    try:
        macs = complexity(model, input_size).macs
    except Exception:  # a network of somebody's
        return None
    first = next(model.parameters(), None)  # where that does not learn, as in a linear probe, hardly anything does
    return (6.0 if first is not None and first.requires_grad else 2.0) * macs or None


def device_peak(device: torch.device, precision: str) -> float | None:
    """FLOP/s of a device: of a GPU from Lightning's table, None if it does not know; of a CPU by a matrix product."""
    names = {"bf16": "bfloat16", "16": "float16", "64": "float64"}
    dtype = names.get(precision.split("-")[0], "float32")
    if device.type != "cpu":
        return get_available_flops(device, getattr(torch, dtype))
    with preserve_random_state():
        return 1e9 * matmul_peak(torch.get_num_threads(), dtype, sizes=((1024, 4),))
