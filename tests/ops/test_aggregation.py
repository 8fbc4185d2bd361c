"""SAN's aggregation against loops over positions: float64, forward and both gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from acmix_zoo.ops.aggregation import aggregate, aggregate_plain, aggregate_reference
from acmix_zoo.ops.reflect import reflect_pad


def gradients(f, value: torch.Tensor, weight: torch.Tensor, kernel: int, grad: torch.Tensor):
    leaves = [value.clone().requires_grad_(), weight.clone().requires_grad_()]
    out = f(*leaves, kernel)
    return out, *torch.autograd.grad(out, leaves, grad)


@pytest.mark.parametrize(
    ("shape", "shared", "kernel"),
    [
        ((2, 8, 5, 4), 4, 3), ((1, 6, 9, 7), 2, 5), ((1, 4, 8, 8), 4, 7), ((2, 2, 3, 2), 1, 7), ((1, 4, 1, 1), 2, 3),
        ((1, 2, 22, 21), 1, 3),
    ],
)  # fmt: skip
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_the_reference(shape, shared: int, kernel: int, layout) -> None:
    b, _, h, w = shape
    value = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout)
    weight = torch.randn(b, kernel**2 * shared, h, w, dtype=torch.float64).contiguous(memory_format=layout)
    grad = torch.randn(shape, dtype=torch.float64)
    found = gradients(aggregate, value, weight, kernel, grad)
    expected = gradients(aggregate_reference, value, weight, kernel, grad)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_any_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Image by image, three at a time with one left over, all at once, none."""
    value, weight = torch.randn(4, 6, 5, 7, dtype=torch.float64), torch.randn(4, 9 * 3, 5, 7, dtype=torch.float64)
    grad = torch.randn_like(value)
    expected = gradients(aggregate_plain, value, weight, 3, grad)
    for images in (1, 3, 4, 100):
        monkeypatch.setattr("acmix_zoo.ops.aggregation._CHUNK_BYTES", images * value[0].numel() * 8)
        for a, b in zip(gradients(aggregate, value, weight, 3, grad), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert aggregate(value[:0], weight[:0], 3).shape == (0, 6, 5, 7)


def test_channels_share_weights_interleaved() -> None:
    """Channel c has the weights of c mod wc: of four channels and two weights, the first and the third agree."""
    value = torch.ones(1, 4, 6, 6)
    weight = torch.zeros(1, 9 * 2, 6, 6)
    weight[:, 0::2] = 1.0  # the first of the two weights, at every offset
    out = aggregate(value, weight, 3)
    assert out[:, 0::2].eq(9).all() and out[:, 1::2].eq(0).all()


def test_equals_unfold() -> None:
    """At a stage's shape, in the form that copies the value 49 times."""
    value, weight = torch.randn(2, 64, 28, 28), torch.randn(2, 49 * 8, 28, 28)
    columns = F.unfold(F.pad(value, [3] * 4, mode="reflect"), 7).view(2, 8, 8, 49, 28 * 28)  # (B, share, wc, k², H·W)
    expected = (columns * weight.view(2, 1, 49, 8, 28 * 28).transpose(2, 3)).sum(3).view_as(value)
    torch.testing.assert_close(aggregate(value, weight, 7), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    value, weight = torch.randn(1, 8, 9, 9), torch.randn(1, 49 * 4, 9, 9) / 7
    out = aggregate(value.to(dtype), weight.to(dtype), 7)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), aggregate(value, weight, 7), rtol=0.05, atol=0.1)
    assert torch.equal(aggregate(value.to(dtype), weight.to(dtype).float(), 7), out)  # as under autocast


@pytest.mark.parametrize("side", [5, 21])  # either layout inside
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_operator_is_registered_as_it_behaves(side: int, layout) -> None:
    """torch's own checks: the shapes and strides that a compiler is told, the gradient, aliasing."""
    shapes = ((2, 4, side, side), (2, 9 * 2, side, side))
    tensors = [torch.randn(shape).contiguous(memory_format=layout).requires_grad_() for shape in shapes]
    torch.library.opcheck(torch.ops.acmix_zoo.aggregate, (*tensors, 3))
    grad = torch.randn(shapes[0])
    torch.library.opcheck(torch.ops.acmix_zoo.aggregate_backward, (grad, *(t.detach() for t in tensors), 3))


def test_aggregate_plain_form_is_equal() -> None:
    """The one that export and compilers of other devices see."""
    value, weight = torch.randn(2, 8, 5, 6, dtype=torch.float64), torch.randn(2, 9 * 4, 5, 6, dtype=torch.float64)
    grad = torch.randn_like(value)
    for a, b in zip(*(gradients(f, value, weight, 3, grad) for f in (aggregate_plain, aggregate)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(4, 9), (7, 4)])
def test_reflect_pad(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    assert torch.equal(reflect_pad(x, 3), F.pad(x, [3] * 4, mode="reflect"))
    small = x[:, :, :2, :1]
    assert torch.equal(reflect_pad(small, 3)[:, :, :, 0], small[:, :, [1, 0] * 4, 0])
    torch.autograd.gradcheck(lambda t: reflect_pad(t, 3), x)


def test_errors() -> None:
    value = torch.randn(1, 6, 5, 5)
    for channels, kernel in ((9 * 4, 3), (10, 3), (16, 4)):
        weight = torch.randn(1, channels, 5, 5)
        with pytest.raises(ValueError, match=r"a weight of shape \(1, .²·wc, 5, 5\)"):
            aggregate(value, weight, kernel)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    value, weight = torch.randn(2, 8, 9, 30), torch.randn(2, 49 * 4, 9, 30)
    grad = torch.randn_like(value)
    found = gradients(aggregate, value.cuda(), weight.cuda(), 7, grad.cuda())
    for a, b in zip(found, gradients(aggregate, value, weight, 7, grad), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-4)
