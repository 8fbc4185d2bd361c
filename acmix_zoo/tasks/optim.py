"""Parameter groups whose layer decay really applies, and a schedule that can be prolonged."""

import math
from collections.abc import Callable
from typing import Any

from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn


def param_groups(
    model: nn.Module, lr: float, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Split a timm model's parameters into groups for a torch optimiser.

    Biases, norms, scalars and what the model lists in `no_weight_decay()` are not decayed. With `layer_decay`, the
    layer that is n layers below the head gets lr · layer_decay^n; timm only notes the factor as `lr_scale`, which no
    torch scheduler reads, so it is multiplied into each group's `lr` here.

    Raises:
        ValueError: layer_decay outside (0, 1].
    """
    skip = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    if layer_decay is None:
        groups: list[dict[str, Any]] = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=skip)
        return [{**group, "lr": lr} for group in groups]
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay} was given; expected a factor a layer in (0, 1], such as 0.75")
    groups = param_groups_layer_decay(model, weight_decay, no_weight_decay_list=skip, layer_decay=layer_decay)
    return [{**group, "lr": lr * group.pop("lr_scale")} for group in groups]


def warmup_cosine(warmup: int, total: int, floor: float = 0.0, start: float = 0.0) -> Callable[[int], float]:
    """Factor on the learning rate after `step` optimiser steps: linear warm-up that comes from `start`, half a cosine,
    then constant `floor`.

    A closure on purpose: LambdaLR saves the attributes of callable objects, and a resumed run with more epochs would
    get the old length back.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return start + (1 - start) * (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor
