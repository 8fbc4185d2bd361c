"""Check options that would make a run fail later, before anything is built."""

from __future__ import annotations

from typing import Any

import torch


def check_config(config: Any, subcommand: str) -> None:
    """Check options that would make a run fail later, with an error that does not mention them.

    Args:
        config: the parsed options of the subcommand.
        subcommand: the name of the subcommand.

    Raises:
        ValueError: an option cannot work. The message says what to use instead.
    """
    trainer = config.trainer
    if subcommand == "fit" and trainer.enable_checkpointing is False:
        raise ValueError(
            "--trainer.enable_checkpointing false leaves no checkpoint from which to finish or resume the run. "
            "Leave the option out, or use --trainer.fast_dev_run true for a trial run that writes nothing"
        )
    for name in ("limit_train_batches", "overfit_batches") if subcommand == "fit" else ():
        value = getattr(trainer, name)
        if value is not None and (value < 0 or (value == 0 and name == "limit_train_batches")):
            raise ValueError(
                f"--trainer.{name} {value} leaves nothing to train on. Expected a number of batches (1 or more) or a "
                "fraction of them (0.1)"
            )
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval"):
        value = getattr(trainer, name)
        if subcommand == "fit" and value is not None and not isinstance(value, str | dict) and value <= 0:
            fraction = ", or a fraction of an epoch (0.5)" if name == "val_check_interval" else ""
            raise ValueError(
                f"--trainer.{name} {value} is not positive. Expected 1 or more{fraction}. Leave the option out for the "
                "default"
            )
    if subcommand == "fit" and trainer.max_steps == 0:
        raise ValueError("--trainer.max_steps 0 trains nothing. Expected 1 or more, or -1 for no limit")
    if trainer.accelerator in ("gpu", "cuda") and not (
        torch.cuda.is_available() or (trainer.accelerator == "gpu" and torch.backends.mps.is_available())
    ):
        raise ValueError(
            f"--trainer.accelerator {trainer.accelerator} needs a GPU, but torch {torch.__version__} does not find "
            "one. Use --trainer.accelerator cpu (or auto), or check the driver with nvidia-smi and install a build of "
            "torch that supports it"
        )
    if trainer.accelerator == "mps" and not torch.backends.mps.is_available():
        raise ValueError(
            "--trainer.accelerator mps needs an Apple computer with Metal support. Use --trainer.accelerator cpu or "
            "auto"
        )


def missing_source_message(subcommand: str, expected: str) -> str:
    """Return the error message for a command that was not given any images; `expected` says what would be images."""
    return f"{subcommand} needs images, but --data.source is missing. Expected {expected}. Add --data.source FOLDER"
