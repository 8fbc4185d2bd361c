"""The small networks of the package, and shallow variants of them for tests that compile or export."""

import re
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn

from acmix_zoo import create_model

SMALL = ["acmix_resnet_pico", "acmix_swin_pico", "acmix_san_pico", "acmix_pvt_pico"]

# Networks on the trunk of acmix_resnet_pico that it is compared with.
NEIGHBOURS = [
    "resnet_pico",
    "se_resnet_pico",
    "cbam_resnet_pico",
    "series_resnet_pico",
    "bot_resnet_pico",
    "aa_resnet_pico",
    "container_pico",
]
# For tests of what all networks share. tests/models/test_neighbours.py has a quick representative for the slow ones.
EVERY = [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in NEIGHBOURS)]

# Two stages with one block each, which is one of every kind of module. Swin needs two blocks for a shifted window.
SHALLOW: dict[str, dict[str, Any]] = {
    "acmix_resnet_pico": {"layers": (1, 1), "planes": (16, 32)},
    "acmix_swin_pico": {"depths": (2, 1)},
    "acmix_san_pico": {"layers": (1, 1), "widths": (64, 128), "kernels": (3, 5)},
    "acmix_pvt_pico": {"depths": (1, 1)},
    **{name: {"layers": (1, 1), "planes": (16, 32)} for name in NEIGHBOURS},
}


def shallow_and_full(*quick: str) -> pytest.MarkDecorator:
    """Parametrise `name` and `arguments` of a test that compiles or exports.

    The shallow variants of the networks `quick` are quick. The others, and our four families at full depth, are slow.
    At full depth, the neighbours would only repeat the same blocks on the trunk of `acmix_resnet_pico`.
    """
    shallow = [
        pytest.param(name, arguments, id=f"{name}-shallow", marks=() if name in quick else pytest.mark.slow)
        for name, arguments in SHALLOW.items()
    ]
    full = [pytest.param(name, {}, id=f"{name}-full", marks=pytest.mark.slow) for name in SMALL]
    return pytest.mark.parametrize(("name", "arguments"), shallow + full)


def deeper_are_slow(names: Iterable[str]) -> list[Any]:
    """Return test parameters in which all but the smallest networks of each family are marked as slow."""
    deeper = re.compile(r"38|50|15|19|_[sb]\b|small")
    return [pytest.param(name, marks=pytest.mark.slow if deeper.search(name) else ()) for name in names]


def perturbed(name: str, **arguments: object) -> nn.Module:
    """Return a network in eval mode in which all blocks and both paths matter, with 10 classes.

    At initialisation, norms that are zero and convolution paths that are shifts would hide errors.
    """
    torch.manual_seed(0)
    model: nn.Module = create_model(name, **arguments)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    for key, parameter in model.named_parameters():
        if key.endswith(("alpha", "beta", "weight", "table")) and "bn" not in key:
            parameter.data += 0.3 * parameter.std(correction=0) * torch.randn_like(parameter)
    return model.eval()
