"""What `acmix-zoo info` prints without a model: versions, devices and the backend, as a bug report needs them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import warnings
from typing import Any

import torch

import acmix_zoo
from acmix_zoo.data.wording import count_noun
from acmix_zoo.ops.backends.native.library import instruction_set
from acmix_zoo.ops.dispatch import backend_name

_PACKAGES = ("torch", "torchvision", "timm", "lightning")


def environment() -> dict[str, Any]:
    """Return the versions, the devices and the backend as plain values."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    gpus += ["mps"] if torch.backends.mps.is_available() else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no library, which `--backends` explains
        backend = backend_name()
    return {
        "acmix-zoo": acmix_zoo.__version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "instruction_set": instruction_set()},
        "gpus": gpus,
        "backend": backend,
    }


def print_environment() -> None:
    """Print the environment, one line per kind of fact, and how to see more."""
    found = environment()
    versions = [f"{name} {found[name] or '(not installed)'}" for name in ("acmix-zoo", "python", *_PACKAGES)]
    cpu = found["cpu"]
    print(f"Versions: {', '.join(versions)}")
    print(
        f"CPU: {found['system']}, {count_noun(cpu['cores'], 'core')}, {cpu['instruction_set']}; torch uses "
        f"{count_noun(cpu['threads'], 'thread')}"
    )
    print(f"GPUs: {', '.join(found['gpus']) or 'none that torch can use'}")
    print(f"Backend of ACmix layers on the CPU: {found['backend']} (details: acmix-zoo info --backends)")
    print("To see a network, run acmix-zoo info MODEL. acmix-zoo list prints the names of all networks.")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
