"""The environment that a run's numbers depend on, for its record."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

import acmix_zoo
from acmix_zoo.layers.cost import TwoStageLayer
from acmix_zoo.ops.backends.native.library import instruction_set
from acmix_zoo.ops.dispatch import backend_name


def run_environment(trainer: L.Trainer, model: nn.Module) -> dict[str, Any]:
    """Return what the numbers depend on, without anything that identifies the machine."""
    device, precision = trainer.strategy.root_device.type, str(trainer.precision)
    environment: dict[str, Any] = {
        "lightning": L.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
        "devices": trainer.world_size,
        "threads": torch.get_num_threads(),
        "precision": precision,
    }
    if any(isinstance(module, TwoStageLayer) for module in model.modules()):  # other networks have no backend of ours
        environment["backend"] = backend_name(4 if precision == "32-true" else 2, device)
        if device == "cpu":
            environment["instruction_set"] = instruction_set()
    return environment


def git_revision() -> str | None:
    """Return the git revision of this code, with "-dirty" if it was changed, or None outside of a clone."""
    here = Path(acmix_zoo.__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, encoding="utf-8", check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # fails in a site-packages inside another clone
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return None
