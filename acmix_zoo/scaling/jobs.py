"""A training run on any number of GPUs: what `acmix_zoo.scaling.step` needs to know about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from json import dumps, loads
from pathlib import Path
from typing import Any, NamedTuple

import torch

import acmix_zoo
from acmix_zoo.layers.complexity import complexity, default_input_size
from acmix_zoo.scaling.activations import Activations, count_on_gpu
from acmix_zoo.scaling.machines import Machine
from acmix_zoo.scaling.step import Step, Training, plan_step

PRECISIONS = {"32-true": "float32", "16-mixed": "float16", "bf16-mixed": "bfloat16"}
"""Dtype of the arithmetic for each precision of Lightning's Trainer."""

PUBLISHED_BATCH = {
    "sgd": (8192, "Goyal et al. 2017, arXiv:1706.02677"),
    "adamw": (4096, "Liu et al. 2022, ConvNeXt, arXiv:2201.03545"),
}
"""For each optimiser, the largest global batch that was published to lose no accuracy on ImageNet with a linearly
scaled learning rate, and the source. Larger batches were published with other optimisers (LARS, LAMB)."""


@dataclass(frozen=True)
class Job:
    """A training run, with the defaults of `acmix-zoo fit` for what its recipe does not state.

    Attributes:
        name: the recipe or network, as the user wrote it.
        model: any name that `acmix_zoo.create_model` accepts.
        model_kwargs: arguments for the network's constructor.
        image_size: side length of the image; 0 for the network's default.
        batch_size: number of images per device and micro-batch.
        global_batch: number of images per step on all devices. If there are too few devices for it, each of them
            accumulates several micro-batches.
        optimizer: "adamw" or "sgd".
        momentum: momentum of SGD.
        lr: learning rate for a step of `base_batch_size` images, or for any step if that is None.
        base_batch_size: images per step for which `lr` is meant.
        ema: whether the weights are averaged.
        precision: one of `PRECISIONS`.
        strategy: "ddp" or "fsdp".
        grad_checkpointing: whether activations are recomputed in the backward pass.
        linear_probe: whether only the classifier is trained.
        epochs: epochs of the run, if known.
        images: images per epoch, if known.
        relative_pixels: pixels of a training image divided by those at full size, averaged over the epochs. It is less
            than 1 with progressive image sizes. An image is assumed to take as long as it has pixels.
    """

    name: str
    model: str
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    image_size: int = 0
    batch_size: int = 64
    global_batch: int = 64
    optimizer: str = "adamw"
    momentum: float = 0.9
    lr: float = 1e-3
    base_batch_size: int | None = None
    ema: bool = False
    precision: str = "bf16-mixed"
    strategy: str = "ddp"
    grad_checkpointing: bool = False
    linear_probe: bool = False
    epochs: int | None = None
    images: int | None = None
    relative_pixels: float = 1.0

    def __post_init__(self) -> None:
        for option, value, known in (
            ("precision", self.precision, PRECISIONS),
            ("strategy", self.strategy, ("ddp", "fsdp")),
            ("optimizer", self.optimizer, PUBLISHED_BATCH),
        ):
            if value not in known:
                raise ValueError(f"plan: unknown {option} {value!r}. Expected one of {', '.join(known)}")
        if self.batch_size < 1:
            raise ValueError(f"plan: a batch of {self.batch_size} images per device is impossible. Use at least 1")

    def scale_lr(self, images: int) -> float:
        """Return the learning rate for a step of this many images."""
        return self.lr * images / self.base_batch_size if self.base_batch_size else self.lr

    def training(self, gpus: int, max_global_batch: int | None = None) -> Training:
        """Return the step on one of `gpus` devices.

        Args:
            gpus: number of devices.
            max_global_batch: maximum number of images per step on all devices. The batch of each device is reduced
                if it would be exceeded.

        Raises:
            ValueError: unknown network, or more GPUs than images.
        """
        if gpus < 1:
            raise ValueError(f"plan: {gpus} GPUs are impossible. Use at least 1")
        batch, global_batch = self.batch_size, self.global_batch
        if max_global_batch is not None:
            batch, global_batch = min(batch, max_global_batch // gpus), min(global_batch, max_global_batch)
        if batch < 1:
            raise ValueError(
                f"plan: {max_global_batch} images per step are too few for {gpus} GPUs. Use at least 1 image per GPU"
            )
        dtype = PRECISIONS[self.precision]
        cost = _count_network(
            self.model, dumps(self.model_kwargs), self.image_size, dtype, self.grad_checkpointing, self.linear_probe
        )
        return Training(
            params=cost.params,
            trainable=cost.trainable,
            macs=cost.macs,
            activations=cost.activations,
            batch=batch,
            micro_batches=max(1, global_batch // (batch * gpus)),
            dtype=dtype,
            states=2 if self.optimizer == "adamw" else int(self.momentum > 0),
            ema=self.ema,
            forward_equivalents=1 if self.linear_probe else 3 + self.grad_checkpointing,
            strategy=self.strategy,
        )

    def steps(
        self,
        machine: Machine,
        gpus: Sequence[int],
        gpus_per_node: int = 8,
        max_global_batch: int | None = None,
        utilisation: float | None = None,
        throughput: float | None = None,
    ) -> list[Step]:
        """Return a step for each number of GPUs. See `training` and `acmix_zoo.scaling.step.plan_step`."""
        return [
            plan_step(self.training(n, max_global_batch), machine, n, gpus_per_node, utilisation, throughput)
            for n in gpus
        ]

    def epoch_seconds(self, step: Step) -> float | None:
        """Return the mean seconds per epoch, or None if the number of images is unknown."""
        return None if self.images is None else self.relative_pixels * self.images / step.throughput

    def warnings(self, steps: Sequence[Step], machine: Machine) -> list[str]:
        """Return sentences about steps that do not fit into the memory or exceed the largest published batch."""
        found = []
        too_large = [step for step in steps if step.memory.total > machine.memory]
        if too_large:
            memory, activations = too_large[0].memory, self.training(too_large[0].gpus).activations
            available = machine.memory - (memory.total - memory.activations) - activations.fixed
            images = int(available / activations.per_image)
            found.append(
                f"{memory.total / 1e9:.0f} GB do not fit into the {machine.memory / 1e9:.0f} GB of {machine.name}. "
                + (f"Use --batch {images}" if images > 0 else "Not even one image fits")
            )
        limit, source = PUBLISHED_BATCH[self.optimizer]
        beyond = [step for step in steps if step.images > limit]
        if beyond:
            first, plural = beyond[0], "s" * (beyond[0].gpus > 1)
            found.append(
                f"with {first.gpus:,} GPU{plural}, a step has {first.images:,} images. The largest published batch for "
                f"{self.optimizer} is {limit:,} ({source}). Use --global-batch {limit} to stay within it"
            )
        return found


class NetworkCost(NamedTuple):
    """What the formulas need to know about a network.

    Attributes:
        params: number of parameters.
        trainable: number of parameters that are trained.
        macs: multiply-accumulates of the forward pass per image.
        activations: bytes that are kept for the backward pass.
    """

    params: int
    trainable: int
    macs: int
    activations: Activations


@cache
def _count_network(
    model: str, model_kwargs: str, image_size: int, dtype: str, grad_checkpointing: bool, linear_probe: bool
) -> NetworkCost:
    """Return the cost of a network. A network without weights is built without memory for its tensors."""
    has_weights = "/" in model or ":" in model or Path(model).exists()  # tensors of weights need storage
    with torch.device("cpu") if has_weights else torch.device("meta"):
        network: Any = acmix_zoo.create_model(model, **loads(model_kwargs))
        if image_size and hasattr(network, "set_input_size"):
            network.set_input_size(img_size=(image_size, image_size))
    channels, height, width = default_input_size(network) or (3, 224, 224)
    shape = (channels, image_size or height, image_size or width)
    with torch.device("meta"):
        network = network.to("meta")
        cost = complexity(network, shape)
        if grad_checkpointing:
            network.set_grad_checkpointing(True)
        if linear_probe:
            network.requires_grad_(False)
            network.get_classifier().requires_grad_(True)
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return NetworkCost(cost.params, trainable, cost.macs, count_on_gpu(network, shape, getattr(torch, dtype)))
