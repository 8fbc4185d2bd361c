"""Read a job from a recipe, a run folder or the name of a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml  # type: ignore[import-untyped]

from acmix_zoo.models.task_kinds import CLASSIFICATION
from acmix_zoo.scaling.jobs import Job
from acmix_zoo.weights.description import NetworkDescription
from acmix_zoo.weights.locate import locate
from acmix_zoo.weights.recipe_files import find_recipe, is_in_recipe_group, locate_recipe, suggest_recipes_on_error
from acmix_zoo.weights.resolve import describe, resolve_network

# Training images per epoch, by the last part of the source. For Tiny-ImageNet and Fashion-MNIST these are the images
# that remain after a validation split.
_IMAGENET = 1_281_167
_IMAGES = {
    "tiny-imagenet": 95_000, "tiny-imagenet-200": 95_000, "fashion-mnist": 54_000,
    **dict.fromkeys(
        ("imagenet", "imagenet1k", "imagenet-1k", "imagenet-wds", "imagenet-1k-wds", "ilsvrc", "ilsvrc2012"), _IMAGENET
    ),
}  # fmt: skip
_EXPECTED = "Expected a recipe such as imagenet1k/acmix_swin_t, a run folder or the name of a network"

# Where a recipe states the fields of a job: (section, key, field).
_FIELDS = (
    ("data", "image_size", "image_size"),
    ("data", "batch_size", "batch_size"),
    ("model", "optimizer", "optimizer"),
    ("model", "momentum", "momentum"),
    ("model", "lr", "lr"),
    ("model", "base_batch_size", "base_batch_size"),
    ("model", "grad_checkpointing", "grad_checkpointing"),
    ("model", "linear_probe", "linear_probe"),
    ("trainer", "max_epochs", "epochs"),
)
_NUMBERS = ("momentum", "lr")  # YAML reads 1e-3, without a point, as text


def read_job(
    source: str | Path,
    hardware: str | Path | None = None,
    *,
    batch_size: int | None = None,
    precision: str | None = None,
    strategy: str | None = None,
) -> Job:
    """Return the job that a recipe or a run folder describes, or training on ImageNet with AdamW for a network's name.

    Args:
        source: path of a recipe, or its name such as imagenet1k/acmix_swin_t; a run folder; or anything else that
            `acmix_zoo.create_model` accepts as a model.
        hardware: path or name of a hardware profile such as hardware/nodes_4x8, whose settings override the recipe's.
        batch_size: overrides the images per device and pass.
        precision: overrides the precision.
        strategy: overrides the strategy.

    Raises:
        NotFoundError: there is no such recipe, network or weights.
        ValueError: the file is not a recipe, or it has settings that the plan does not know.
    """
    given = {"batch_size": batch_size, "precision": precision, "strategy": strategy}
    overrides: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    path = _find_recipe(str(source))
    profile = {} if hardware is None else _read_yaml(locate_recipe(hardware))
    if (profile.get("model") or {}).get("model"):
        raise ValueError(
            f"{hardware} is a recipe, not a hardware profile. Expected a profile such as hardware/ddp_8gpu. Pass the "
            "recipe as the first argument"
        )
    if path is None:
        from_profile = _read_machine_settings(profile) if profile else {}
        with suggest_recipes_on_error(str(source)):
            described = describe(locate(source))
        network = _job_of_weights(str(source), described) if described else Job(str(source), str(source))
        job = replace(network, images=_IMAGENET, **{**from_profile, **overrides})
        return replace(job, global_batch=job.batch_size)
    config = _override(_read_yaml(path), profile)
    if not (config.get("model") or {}).get("model"):
        raise ValueError(
            f"{path} has no model.model, so it is not a recipe. {_EXPECTED}. Pass a hardware profile as --hardware"
        )
    job = _job_of_config(str(source), config)
    return replace(job, **overrides)


def _find_recipe(name: str) -> Path | None:
    """Return the recipe of this name, or None if `name` refers to a network or weights.

    A name without a slash is that of a network, even if it also is the short name of a recipe.

    Raises:
        NotFoundError: `name` is a path or the name of a recipe that does not exist.
    """
    path = Path(name)
    if (path / "config.yaml").is_file() or path.suffix in (".yaml", ".yml") or is_in_recipe_group(name):
        return locate_recipe(name)
    return find_recipe(name) if "/" in name else None


def _job_of_weights(name: str, network: NetworkDescription) -> Job:
    """Return the job of training the network of these weights once more, with their classes and image size."""
    if network.task is not CLASSIFICATION:
        raise ValueError(
            f"{name} holds weights for {network.task.name}, which cannot be estimated. Expected those of a classifier"
        )
    cfg = network.pretrained_cfg
    return Job(name, network.architecture, {"num_classes": cfg.num_classes, **network.arguments}, cfg.input_size[-1])


def _job_of_config(name: str, config: dict[str, Any]) -> Job:
    if (task := config.get("task", "classification")) != "classification":
        raise ValueError(f"{name} is a recipe for {task}, which cannot be estimated. Expected one for classification")
    sections = {key: config.get(key) or {} for key in ("data", "model", "trainer")}
    stated: dict[str, Any] = {}
    for section, key, field in _FIELDS:
        value = sections[section].get(key)
        if value is not None:
            stated[field] = float(value) if field in _NUMBERS else value
    model = sections["model"]
    # Pretrained weights also state how the network is built.
    network, _, arguments = resolve_network(model["model"], model.get("pretrained") or False, model.get("model_kwargs"))
    stated.setdefault("image_size", 224)  # the default of the data, unlike that of a network by name
    if stated.get("epochs", 1) < 1:  # Lightning's -1 trains until it is stopped
        del stated["epochs"]
    data_name, trainer = Path(str(sections["data"].get("source", ""))).name, sections["trainer"]
    job = Job(
        name=name,
        model=network,
        model_kwargs=arguments or {},
        ema=bool(model.get("ema_decay")),
        images=_IMAGES.get(data_name.lower().replace("_", "-")),
        relative_pixels=_mean_relative_pixels(sections["data"], stated),
        **stated,
        **_read_machine_settings(config),
    )
    processes = _count_devices(trainer.get("devices")) * int(trainer.get("num_nodes") or 1)
    return replace(job, global_batch=job.batch_size * processes * int(trainer.get("accumulate_grad_batches") or 1))


def _count_devices(devices: Any) -> int:
    """Return the number of devices of Lightning's `devices`: 4, "4", [0, 1, 2, 3] or "0,1,2,3". 1 if it is unknown."""
    if isinstance(devices, str):
        numbers = [word for word in devices.split(",") if word.strip()]
        devices = numbers if "," in devices else int(devices) if devices.isdecimal() else 1
    return max(1, len(devices) if isinstance(devices, list) else devices or 1)


def _mean_relative_pixels(data: dict[str, Any], stated: dict[str, Any]) -> float:
    """Return the pixels of a training image divided by those at full size, averaged over the epochs."""
    sizes, full, epochs = data.get("train_sizes") or {}, stated["image_size"], stated.get("epochs")
    if not sizes or not epochs:
        return 1.0
    sides = [([full] + [sizes[first] for first in sorted(sizes) if first <= epoch])[-1] for epoch in range(epochs)]
    return float(fmean((side / full) ** 2 for side in sides))


def _read_machine_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the precision and the strategy of a recipe or a hardware profile.

    Lightning's defaults are null in the config.yaml of a run.
    """
    trainer = config.get("trainer") or {}
    strategy = trainer.get("strategy") or "ddp"
    name = strategy.get("class_path", "") if isinstance(strategy, dict) else str(strategy)
    precision = str(trainer.get("precision") or "32-true")
    return {
        "precision": f"{precision}-true" if precision == "32" else precision,
        "strategy": "fsdp" if "fsdp" in name.lower() or "modelparallel" in name.lower() else "ddp",
    }


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {str(error).splitlines()[0]}. {_EXPECTED}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__} instead of settings. {_EXPECTED}")
    return config


def _override(config: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with the settings of `overrides` in place of its own, section by section."""
    sections = {
        key: _override(config[key], value)
        for key, value in overrides.items()
        if isinstance(value, dict) and isinstance(config.get(key), dict)
    }
    return {**config, **overrides, **sections}
