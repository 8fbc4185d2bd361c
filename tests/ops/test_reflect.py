"""Reflected borders: equal to PyTorch's where it has them, continued beyond."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from acmix_zoo.ops.reflect import reflect_index, reflect_pad


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_index_agrees_with_pytorch_and_continues_by_reflection(size: int) -> None:
    line = torch.arange(float(size)).view(1, 1, size)
    for reach in range(size):  # every border that PyTorch accepts
        index = reflect_index(torch.arange(-reach, size + reach), size)
        assert torch.equal(index.float(), F.pad(line, (reach, reach), mode="reflect")[0, 0])
    beyond = reflect_index(torch.arange(-3 * size - 3, 4 * size + 3), size)
    assert beyond.min() == 0 and beyond.max() == size - 1
    assert ((beyond[1:] - beyond[:-1]).abs() == (0 if size == 1 else 1)).all()


@pytest.mark.parametrize("size", [(4, 5), (5, 4)])
def test_padding_agrees_with_pytorch(size: tuple[int, int]) -> None:
    x = torch.randn(1, 2, *size, dtype=torch.float64, requires_grad=True)
    assert torch.equal(reflect_pad(x, 3), F.pad(x, [3] * 4, mode="reflect"))
    torch.autograd.gradcheck(lambda t: reflect_pad(t, 3), x)


def test_padding_may_be_wider_than_the_map() -> None:
    x = torch.randn(2, 3, 2, 1)
    assert torch.equal(reflect_pad(x, 3)[:, :, :, 0], x[:, :, [1, 0] * 4, 0])
