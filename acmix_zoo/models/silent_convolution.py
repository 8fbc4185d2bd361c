"""A plain network's weights for its ACmix form, whose convolution paths are silent at first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

# What an ACmix layer has and a plain one lacks.
_OURS = re.compile(r"(^|\.)(shift_conv\.\w+|lift\.\w+|static_weight|alpha|beta)$")


def lacks_convolution(missing: Iterable[str]) -> bool:
    """Whether the keys that a state dict lacks are those of convolution paths, and no others."""
    keys = list(missing)
    return bool(keys) and all(_OURS.search(key) for key in keys)


def silent_convolution(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The state with what `model` has beside it: convolution paths as they start there, alpha 1, beta 0.

    They wake up by beta: its gradient is the loss's gradient times what the convolution gives, which is not zero; from
    beta's first step on the kernels have theirs. A state dict that lacks anything else comes back as it is.
    """
    missing = {key: value for key, value in model.state_dict().items() if key not in state}
    if not lacks_convolution(missing):
        return dict(state)
    fixed = {"alpha": torch.ones(1), "beta": torch.zeros(1)}
    return {**state, **{key: fixed.get(key.rpartition(".")[2], value).clone() for key, value in missing.items()}}
