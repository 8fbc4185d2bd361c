"""The optimiser, the learning-rate schedule, and the scaling of the learning rate with the batch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn


def param_groups(
    model: nn.Module, lr: float, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Split a timm model's parameters into groups for a torch optimiser.

    Biases, norms, scalars and the parameters in the model's `no_weight_decay()` have no weight decay. With
    `layer_decay`, a layer that is n layers below the head has the learning rate lr · layer_decay^n. timm only stores
    the factor as `lr_scale`, which no torch scheduler reads. It is therefore multiplied into each group's `lr` here.

    Args:
        model: the model.
        lr: learning rate of the head.
        weight_decay: weight decay of the other parameters.
        layer_decay: factor on the learning rate per layer; None for the same rate in all layers.

    Raises:
        ValueError: layer_decay is not in (0, 1].
    """
    skip = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    if layer_decay is None:
        groups: list[dict[str, Any]] = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=skip)
        return [{**group, "lr": lr} for group in groups]
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay} is out of range. Expected a factor per layer in (0, 1], like 0.75")
    groups = param_groups_layer_decay(model, weight_decay, no_weight_decay_list=skip, layer_decay=layer_decay)
    return [{**group, "lr": lr * group.pop("lr_scale")} for group in groups]


def warmup_cosine(warmup: int, total: int, floor: float = 0.0, start: float = 0.0) -> Callable[[int], float]:
    """Return the schedule: a linear warm-up, half a cosine, then a constant.

    It is a function from the number of optimiser steps to a factor on the learning rate. It is a closure rather than an
    object, because LambdaLR saves the attributes of callable objects, and a run that is resumed with more epochs would
    restore the old length.

    Args:
        warmup: number of steps of the warm-up.
        total: number of steps until the end of the cosine.
        floor: factor at the end of the cosine and after it.
        start: factor at the start of the warm-up.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return start + (1 - start) * (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def warmup_steps(warmup: int, drops: Sequence[int], start: float = 0.0) -> Callable[[int], float]:
    """Return the schedule of detectors: a linear warm-up, then a constant that is divided by 10 at some steps.

    Args:
        warmup: number of steps of the warm-up.
        drops: the steps from which the factor is a tenth of what it was before.
        start: factor at the start of the warm-up.
    """

    def factor(step: int) -> float:
        ramp = start + (1 - start) * (step + 1) / (warmup + 1) if step < warmup else 1.0
        return ramp * 0.1 ** sum(step >= drop for drop in drops)

    return factor


def make_optimizer(model: nn.Module, lr: float, hyper_parameters: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Return the optimiser that a task's hyper-parameters describe.

    Args:
        model: the network.
        lr: peak learning rate, already scaled to the batch size.
        hyper_parameters: those of a `Task`.

    Raises:
        ValueError: the optimiser is unknown, or layer_decay is out of range.
    """
    h = hyper_parameters
    groups = param_groups(model, lr, h["weight_decay"], h["layer_decay"])
    if h["optimizer"] == "sgd":
        nesterov = h["nesterov"] and h["momentum"] > 0
        return torch.optim.SGD(groups, lr=lr, momentum=h["momentum"], nesterov=nesterov)
    if h["optimizer"] == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(h["momentum"], 0.999))
    raise ValueError(f"unknown optimizer={h['optimizer']!r}. Expected 'adamw' or 'sgd'")


def batch_size_factor(trainer: L.Trainer, lr: float, base_batch_size: int | None) -> float:
    """Return the factor on the learning rate for the effective batch size, and print both.

    The effective batch size is images per device × processes × accumulated batches. Without `base_batch_size`, the
    factor is 1. Nothing is printed for data that does not state a batch size.

    Args:
        trainer: the trainer, with its data.
        lr: learning rate for a batch of `base_batch_size` images.
        base_batch_size: number of images per step for which `lr` is meant.

    Raises:
        ValueError: `base_batch_size` is set, but the data does not state its batch size.
    """
    images = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    if images is None:
        if base_batch_size is not None:
            raise ValueError(
                "base_batch_size is set, but the data has no batch_size. Expected an ImageDataModule. For other data, "
                "set base_batch_size=None, and lr to the value for your batches"
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
    is_trial: bool = trainer.fast_dev_run  # type: ignore[attr-defined]  # Lightning sets it without declaring it
    is_short = 0 < accumulated < trainer.accumulate_grad_batches and not is_trial
    if is_short and trainer.is_global_zero:
        print(
            f"Warning: an epoch has only {accumulated} batch{'es' * (accumulated > 1)} per process, but "
            f"accumulate_grad_batches is {trainer.accumulate_grad_batches}. Each step therefore ends with the epoch, "
            f"and its gradient is scaled by {accumulated}/{trainer.accumulate_grad_batches}. Use "
            f"--trainer.accumulate_grad_batches {accumulated}{' or lower' * (accumulated > 1)}",
            flush=True,
        )
    batch = images * trainer.world_size * accumulated
    factor = batch / base_batch_size if base_batch_size else 1.0
    if trainer.is_global_zero:
        parts = f"{trainer.world_size} × {images}" + f" × {accumulated} accumulated" * (accumulated > 1)
        rule = f" = {lr:g} × {batch} / {base_batch_size}" if base_batch_size else ", not scaled (no base_batch_size)"
        print(f"Batch: {parts} = {batch} images per step; learning rate {lr * factor:g}{rule}", flush=True)
    return factor
