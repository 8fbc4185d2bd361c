"""A recipe, or a network's name, as what `acmix_zoo.scaling.step` needs to know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from json import dumps, loads
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]

import acmix_zoo
from acmix_zoo.layers.complexity import complexity
from acmix_zoo.layers.cost import input_size_of
from acmix_zoo.scaling.activations import Activations, on_gpu
from acmix_zoo.scaling.machines import Machine
from acmix_zoo.scaling.step import Step, Training, step
from acmix_zoo.weights.resolve import resolve_network
from acmix_zoo.weights.shipped import suggest_recipes

PRECISIONS = {"32-true": "float32", "16-mixed": "float16", "bf16-mixed": "bfloat16"}

# Images that a recipe trains on: ImageNet-1k's training set, and what validation leaves of Fashion-MNIST's.
IMAGES = {"imagenet": 1_281_167, "fashion_mnist": 54_000}

PUBLISHED_BATCH = {
    "sgd": (8192, "Goyal et al. 2017, arXiv:1706.02677"),
    "adamw": (4096, "Liu et al. 2022, ConvNeXt, arXiv:2201.03545"),
}
"""The largest global batch for which the optimiser was published to lose nothing on ImageNet-1k at a linearly scaled
rate, and where. Larger ones were published with other optimisers (LARS, LAMB)."""


@dataclass(frozen=True)
class Job:
    """What a run is, on any number of GPUs.

    size: side of the image, 0 for the network's own. batch: images a device and pass. together: images of a step by
    the recipe; fewer GPUs than that needs accumulate. images: of an epoch; None: unknown.
    """

    name: str
    model: str
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    size: int = 0
    batch: int = 64
    together: int = 64
    optimizer: str = "adamw"
    momentum: float = 0.9
    lr: float = 1e-3
    lr_batch: int | None = None
    ema: bool = False
    precision: str = "bf16-mixed"
    strategy: str = "ddp"
    grad_checkpointing: bool = False
    linear_probe: bool = False
    epochs: int | None = None
    images: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"plan: precision {self.precision!r}: expected one of {', '.join(PRECISIONS)}")
        if self.strategy not in ("ddp", "fsdp"):
            raise ValueError(f"plan: strategy {self.strategy!r}: expected ddp or fsdp")
        if self.optimizer not in PUBLISHED_BATCH:
            raise ValueError(f"plan: optimizer {self.optimizer!r}: expected one of {', '.join(PUBLISHED_BATCH)}")
        if self.batch < 1:
            raise ValueError(f"plan: a batch of {self.batch} images a device was given; expected at least 1")

    def scaled_lr(self, images: int) -> float:
        """The learning rate for so many images a step."""
        return self.lr * images / self.lr_batch if self.lr_batch else self.lr

    def training(self, gpus: int, at_most: int | None = None) -> Training:
        """A step on one of `gpus` devices; `at_most`: images of all together, for which a device takes fewer.

        Raises:
            ValueError: unknown network; more GPUs than images.
        """
        if gpus < 1:
            raise ValueError(f"plan: {gpus} GPUs were given; expected at least 1")
        batch = self.batch if at_most is None else min(self.batch, at_most // gpus)
        if batch < 1:
            raise ValueError(f"plan: {at_most} images a step are too few for {gpus} GPUs; expected one each at least")
        together = self.together if at_most is None else min(self.together, at_most)
        flags = self.grad_checkpointing, self.linear_probe
        found = _count(self.model, dumps(self.model_kwargs), self.size, PRECISIONS[self.precision], *flags)
        return Training(
            *found,
            batch=batch,
            accumulate=max(1, together // (batch * gpus)),
            dtype=PRECISIONS[self.precision],
            states=2 if self.optimizer == "adamw" else int(self.momentum > 0),
            ema=self.ema,
            passes=1 if self.linear_probe else 3 + self.grad_checkpointing,
            strategy=self.strategy,
        )

    def steps(
        self, machine: Machine, gpus: Sequence[int], node: int = 8, at_most: int | None = None, **measured: float | None
    ) -> list[Step]:
        """A `Step` for each number of GPUs; `measured`: utilisation or rate, see `plan.compute`."""
        return [step(self.training(n, at_most), machine, n, node, **measured) for n in gpus]

    def seconds_an_epoch(self, found: Step) -> float | None:
        return None if self.images is None else self.images / found.rate

    def warnings(self, steps: Sequence[Step], machine: Machine) -> list[str]:
        """What does not fit the memory, and what nobody has published."""
        said = []
        full = [s for s in steps if s.memory.total > machine.memory]
        if full:
            of = full[0].memory
            room = machine.memory - (of.total - of.activations)
            images = int(room * self.training(full[0].gpus).batch / of.activations)
            said.append(
                f"{of.total / 1e9:.0f} GB do not fit the {machine.memory / 1e9:.0f} GB of {machine.name}: "
                + (f"try --batch {images}" if images > 0 else "not one image does")
            )
        limit, source = PUBLISHED_BATCH[self.optimizer]
        beyond = [s for s in steps if s.images > limit]
        if beyond:
            said.append(
                f"{beyond[0].images:,} images a step ({beyond[0].gpus} GPUs) and more: beyond the {limit:,} published "
                f"for {self.optimizer} ({source}); --global-batch {limit} gives a device fewer"
            )
        return said


@cache
def _count(
    model: str, kwargs: str, size: int, dtype: str, grad_checkpointing: bool, linear_probe: bool
) -> tuple[int, int, int, Activations]:
    """(parameters, those that learn, MACs, activations) of a network that takes no memory here."""
    with torch.device("meta"):
        network: Any = acmix_zoo.create_model(model, **loads(kwargs))
        if size and hasattr(network, "set_input_size"):
            network.set_input_size(img_size=(size, size))
        channels, height, width = input_size_of(network) or (3, 224, 224)
        shape = (channels, size or height, size or width)
        params, macs, _ = vars(complexity(network, shape)).values()
        if grad_checkpointing:
            network.set_grad_checkpointing(True)
        if linear_probe:
            network.requires_grad_(False)
            network.get_classifier().requires_grad_(True)
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return params, trainable, macs, on_gpu(network, shape, getattr(torch, dtype))


def read_job(
    recipe: str | Path,
    overlay: Path | None = None,
    *,
    batch: int | None = None,
    precision: str | None = None,
    strategy: str | None = None,
) -> Job:
    """The job of a recipe, with an overlay of `recipes/hardware` laid over it; or of a network's name, with AdamW.

    Args:
        batch, precision, strategy: in place of the recipe's.

    Raises:
        FileNotFoundError: no such file. ValueError: not a recipe; settings that the plan does not know.
    """
    given = {"batch": batch, "precision": precision, "strategy": strategy}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if not str(recipe).endswith((".yaml", ".yml")):
        if overlay is not None:
            changes = {**_machine_keys(_read(overlay)), **changes}
        network = resolve_network(str(recipe), False, None)
        job = Job(str(recipe), network.model, network.model_kwargs or {}, images=IMAGES["imagenet"])
        job = replace(job, **changes)
        return replace(job, together=job.batch)
    config = _read(Path(recipe))
    if overlay is not None:
        config = _merged(config, _read(overlay))
    data, model, trainer = (config.get(key) or {} for key in ("data", "model", "trainer"))
    if not model.get("model"):
        raise ValueError(f"{recipe}: expected a recipe, with a network as model.model; for an overlay: --overlay FILE")
    source = str(data.get("source", ""))
    # weights that the training starts from also say how the network is built
    name, _, arguments = resolve_network(model["model"], model.get("pretrained") or False, model.get("model_kwargs"))
    job = Job(
        str(recipe),
        name,
        arguments or {},
        size=int(data.get("image_size", 224)),
        batch=int(data.get("batch_size", 64)),
        optimizer=model.get("optimizer", "adamw"),
        momentum=float(model.get("momentum", 0.9)),
        lr=float(model.get("lr", 1e-3)),
        lr_batch=model.get("lr_batch"),
        ema=bool(model.get("ema_decay")),
        grad_checkpointing=bool(model.get("grad_checkpointing")),
        linear_probe=bool(model.get("linear_probe")),
        epochs=trainer.get("max_epochs"),
        images=next((n for name, n in IMAGES.items() if name in source), None),
        **_machine_keys(config),
    )
    devices = trainer.get("devices", 1)
    processes = (devices if isinstance(devices, int) else 1) * int(trainer.get("num_nodes", 1))
    together = job.batch * processes * int(trainer.get("accumulate_grad_batches", 1))
    return replace(job, together=together, **changes)


def _machine_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Precision and strategy of a recipe or an overlay."""
    trainer = config.get("trainer") or {}
    strategy = trainer.get("strategy", "ddp")
    name = strategy.get("class_path", "") if isinstance(strategy, dict) else str(strategy)
    precision = str(trainer.get("precision", "32-true"))
    return {
        "precision": f"{precision}-true" if precision == "32" else precision,
        "strategy": "fsdp" if "fsdp" in name.lower() or "modelparallel" in name.lower() else "ddp",
    }


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"plan: {path} does not exist; {suggest_recipes(path)}")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a recipe with model.model, got {type(config).__name__}")
    return config


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, section by section."""
    both = {k: _merged(below[k], v) for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)}
    return {**below, **above, **both}
