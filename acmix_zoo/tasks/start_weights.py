"""Build a task without loading the pretrained weights that its run started from, because a checkpoint is loaded
next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from acmix_zoo.tasks.hyperparameters import resolve_hyperparameters
from acmix_zoo.weights.resolve import ResolvedNetwork, resolve_network

_are_loaded: ContextVar[bool] = ContextVar("_are_loaded", default=True)
_checkpoint: ContextVar[Mapping[str, Any] | None] = ContextVar("_checkpoint", default=None)


@contextmanager
def without_start_weights(active: bool = True, recorded: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Within this context, build tasks without loading the weights that `pretrained` refers to.

    The checkpoint that is loaded next contains all weights, and the file that the run started from may no longer exist.
    The hyper-parameters still contain `pretrained`, so that the run's record states what it started from.

    Args:
        active: if False, do nothing.
        recorded: the hyper-parameters of the checkpoint. A task with the same model uses its `model_kwargs`.
    """
    loaded = _are_loaded.set(_are_loaded.get() and not active)
    checkpoint = _checkpoint.set(recorded if active else _checkpoint.get())
    try:
        yield
    finally:
        _are_loaded.reset(loaded)
        _checkpoint.reset(checkpoint)


def are_start_weights_loaded() -> bool:
    """Return whether a task that is built now loads its pretrained weights."""
    return _are_loaded.get()


def choose_network(model: str, pretrained: bool | str, model_kwargs: dict[str, Any] | None) -> ResolvedNetwork:
    """Return the architecture, the start weights and the constructor arguments for a new task.

    If `without_start_weights` has set a checkpoint of the same model, its arguments are used, because the weight folder
    that they came from may no longer exist.
    """
    recorded = resolve_hyperparameters(_checkpoint.get() or {})
    start = recorded.get("pretrained")
    if not pretrained and isinstance(start, str) and Path(model).absolute() == Path(start).absolute():
        model, pretrained = recorded["model"], start  # the weight folder was given as the model
    if model == recorded.get("model"):
        return ResolvedNetwork(model, pretrained, {**(recorded["model_kwargs"] or {}), **(model_kwargs or {})} or None)
    return resolve_network(model, pretrained, model_kwargs, is_new=are_start_weights_loaded())
