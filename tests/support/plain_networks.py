"""Plain networks to convert, and the tolerance for converted ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def with_random_parameters(model: nn.Module) -> nn.Module:
    """Move every parameter away from its initial value, and set evaluation mode."""
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return model.eval()


def is_close(found: Tensor, expected: Tensor) -> bool:
    """Return whether two outputs are equal up to the rounding of different kernels. Some processors give equal bits."""
    return bool((found - expected).abs().max() <= 1e-6 * expected.abs().max())
