"""How well a file agrees with its network."""

import torch
from torch import Tensor

from acmix_zoo.export.agreement import Agreement, CheckBatch, compare

IMAGES = torch.tensor([[3.0, 1.0], [0.0, 2.0], [-5.0, 4.0]])  # the "network" returns its input


def test_differences_and_correct_classes_are_counted() -> None:
    def exported(x: Tensor) -> Tensor:
        return x + torch.tensor([2.5, 0.0])

    batches = [CheckBatch(IMAGES[:2], torch.tensor([0, 1])), CheckBatch(IMAGES[2:], torch.tensor([-1]))]
    found = compare(lambda x: x, exported, batches)
    assert found == Agreement(3, 2.5, 5.0, 2, 2, 2, 1) and not found.is_close


def test_small_differences_are_close_and_nan_is_not() -> None:
    batches = [CheckBatch(IMAGES, torch.full((3,), -1))]
    assert compare(lambda x: x, lambda x: x + 1e-3, batches).is_close
    assert not compare(lambda x: x, lambda x: x + 1e-2, batches).is_close
    assert not compare(lambda x: x, lambda x: x * float("nan"), batches).is_close
    assert compare(lambda x: x, lambda x: x, []) == Agreement()
