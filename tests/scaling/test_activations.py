"""Counted activations: by hand on small networks, and for a GPU that this machine does not have."""

from __future__ import annotations

import pytest
import torch
import torch.utils.checkpoint as checkpoint_module
from torch import nn

from acmix_zoo import create_model
from acmix_zoo.ops import geometry_cache
from acmix_zoo.scaling.activations import Activations, count_on_gpu, count_saved_bytes


def count(name: str, dtype: torch.dtype = torch.float32, checkpointing: bool = False) -> Activations:
    with torch.device("meta"):
        model = create_model(name)
    model.set_grad_checkpointing(checkpointing)
    return count_on_gpu(model, (3, 32, 32), dtype)


def test_by_hand() -> None:
    """Autograd keeps the input, the output of ReLU (which the next layer also keeps, in the same storage), and the
    loss's log-probabilities and classes."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))
    assert count_saved_bytes(model, torch.zeros(4, 3, 2, 2)) == 4 * 4 * (12 + 5 + 3) + 4 * 8 + 4
    frozen = model.requires_grad_(False)
    frozen[3].requires_grad_(True)
    assert count_saved_bytes(frozen, torch.zeros(4, 3, 2, 2)) == 4 * 4 * (5 + 3) + 4 * 8 + 4


def test_checkpointed_by_hand() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Sequential(nn.Linear(12, 100), nn.ReLU(), nn.Linear(100, 12))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(2):
                x = checkpoint_module.checkpoint(self.wide, x, use_reentrant=False)
            return x

    x = torch.zeros(4, 12, requires_grad=True)
    before = checkpoint_module.checkpoint
    # Both inputs, what one of the two parts recomputes, log-probabilities and classes.
    assert count_saved_bytes(Twice(), x) == 4 * 4 * (12 + 12 + 100 + 12) + 4 * 8 + 4
    assert checkpoint_module.checkpoint is before


@pytest.mark.parametrize(
    "name",
    [
        "acmix_resnet_pico",
        *(pytest.param(f"acmix_{family}_pico", marks=pytest.mark.slow) for family in ("swin", "san", "pvt")),
    ],
)
def test_activations_on_a_gpu_need_no_gpu(name: str, python_backend: None) -> None:
    """In float32 the count is close to that of a CPU, and half precision takes less."""
    before = dict(geometry_cache._tensors)
    full, half = count(name), count(name, torch.bfloat16)
    assert 0.4 * full.per_image < half.per_image < 0.8 * full.per_image and half.fixed > full.fixed >= 0
    model = create_model(name).train()
    two, four = (count_saved_bytes(model, torch.zeros(batch, 3, 32, 32)) for batch in (2, 4))
    assert 0.75 * (four - two) / 2 < full.per_image < 1.35 * (four - two) / 2
    assert geometry_cache._tensors.keys() >= before.keys()
    assert not any("cuda" in str(key) for key in geometry_cache._tensors)
    assert not torch.is_autocast_enabled("cuda")


def test_checkpointing_takes_less() -> None:
    full, less = (count("acmix_resnet_pico", checkpointing=on) for on in (False, True))
    assert 0.2 * full.per_image < less.per_image < 0.8 * full.per_image
