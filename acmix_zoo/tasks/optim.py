"""Optimiser, learning-rate schedule, and how the learning rate follows the batch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn


def param_groups(
    model: nn.Module, lr: float, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Split a timm model's parameters into groups for a torch optimiser.

    Biases, norms, scalars and what the model lists in `no_weight_decay()` are not decayed. With `layer_decay`, the
    layer that is n layers below the head gets lr · layer_decay^n. timm only stores the factor as `lr_scale`, which no
    torch scheduler reads, so it is multiplied into each group's `lr` here.

    Raises:
        ValueError: layer_decay outside (0, 1].
    """
    skip = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    if layer_decay is None:
        groups: list[dict[str, Any]] = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=skip)
        return [{**group, "lr": lr} for group in groups]
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay} was given. Expected a factor per layer in (0, 1], such as 0.75")
    groups = param_groups_layer_decay(model, weight_decay, no_weight_decay_list=skip, layer_decay=layer_decay)
    return [{**group, "lr": lr * group.pop("lr_scale")} for group in groups]


def warmup_cosine(warmup: int, total: int, floor: float = 0.0, start: float = 0.0) -> Callable[[int], float]:
    """Return the learning-rate factor as a function of the number of optimiser steps: linear warm-up, then half a
    cosine, then constant.

    The result is a closure on purpose: LambdaLR saves the attributes of callable objects, and a resumed run with more
    epochs would get the old length back.

    Args:
        warmup: steps of the warm-up.
        total: steps until the cosine ends.
        floor: factor at the end of the cosine and after it.
        start: factor from which the warm-up rises.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return start + (1 - start) * (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def make_optimizer(model: nn.Module, lr: float, hyper_parameters: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Return the optimiser that a task's hyper-parameters describe.

    Args:
        lr: peak learning rate, already scaled to the batch size.

    Raises:
        ValueError: unknown optimiser, or layer_decay out of range.
    """
    h = hyper_parameters
    groups = param_groups(model, lr, h["weight_decay"], h["layer_decay"])
    if h["optimizer"] == "sgd":
        nesterov = h["nesterov"] and h["momentum"] > 0
        return torch.optim.SGD(groups, lr=lr, momentum=h["momentum"], nesterov=nesterov)
    if h["optimizer"] == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(h["momentum"], 0.999))
    raise ValueError(f"optimizer={h['optimizer']!r} was given. Expected 'adamw' or 'sgd'")


def batch_size_factor(trainer: L.Trainer, lr: float, base_batch_size: int | None) -> float:
    """Return the factor by which the effective batch size changes the learning rate, and print both.

    The effective batch is images per device × processes × accumulated batches. Without `base_batch_size`, the factor is
    1. Nothing is printed for data that does not state a batch size.

    Args:
        lr: learning rate for a batch of `base_batch_size` images.

    Raises:
        ValueError: `base_batch_size` is set, but the data does not state its batch size.
    """
    images = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    if images is None:
        if base_batch_size is not None:
            raise ValueError(
                "base_batch_size is set, but the data has no batch_size to compare with. Train with an "
                "ImageDataModule, or set base_batch_size=None and lr to the value for your batches"
            )
        return 1.0
    sampler = getattr(trainer.train_dataloader, "sampler", None)  # a stream has none
    available = len(sampler) if sampler is not None else images
    if images > available:  # the loader then puts all images into one batch
        if trainer.is_global_zero:
            print(
                f"Warning: data.batch_size {images} is larger than the {available} training images per process. Each "
                f"step uses {available}, and the learning rate is scaled accordingly. Use --data.batch_size "
                f"{max(1, available // 8)} or less for several steps per epoch",
                flush=True,
            )
        images = available
    accumulated = min(trainer.accumulate_grad_batches, int(min(trainer.num_training_batches, 2**31)))
    batch = images * trainer.world_size * accumulated
    factor = batch / base_batch_size if base_batch_size else 1.0
    if trainer.is_global_zero:
        parts = f"{trainer.world_size} × {images}" + f" × {accumulated} accumulated" * (accumulated > 1)
        rule = f" = {lr:g} × {batch} / {base_batch_size}" if base_batch_size else ", not scaled (no base_batch_size)"
        print(f"Batch: {parts} = {batch} images per step; learning rate {lr * factor:g}{rule}", flush=True)
    return factor
