"""Complete the weights of a plain network for its ACmix counterpart, whose convolutions contribute nothing at first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

# The parameters that an ACmix layer has and its plain counterpart lacks.
_ACMIX_ONLY = re.compile(r"(^|\.)(shift_conv\.\w+|lift\.\w+|static_weight|alpha|beta)$")


def lacks_only_convolution(missing: Iterable[str]) -> bool:
    """Return whether all keys that a state dict lacks belong to convolution paths."""
    keys = list(missing)
    return bool(keys) and all(_ACMIX_ONLY.search(key) for key in keys)


def add_silent_convolution(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return a plain network's state dict with the convolution paths of `model` at their initial values.

    alpha is 1 and beta is 0, so the network computes the same as the plain one. Training activates the convolution,
    because the gradient of beta is not zero. After the first step of beta, the kernels have gradients, too. A state
    dict that lacks other keys is returned unchanged.
    """
    missing = {key: value for key, value in model.state_dict().items() if key not in state}
    if not lacks_only_convolution(missing):
        return dict(state)
    fixed = {"alpha": torch.ones(1), "beta": torch.zeros(1)}
    return {**state, **{key: fixed.get(key.rpartition(".")[2], value).clone() for key, value in missing.items()}}
