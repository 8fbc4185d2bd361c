"""SAN's aggregation: against loops over positions, in float64, output and both gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.aggregation import SHAPES, Example, Shape, example, solved_example, with_gradients

from acmix_zoo.ops.aggregation import aggregate, aggregate_plain

FORMATS = [torch.contiguous_format, torch.channels_last]


class TestAgreesWithTheReference:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("memory_format", FORMATS)
    @pytest.mark.parametrize("channels_last_up_to", [0, 400])
    def test_in_any_memory_format_inside_and_outside(
        self,
        shape: Shape,
        memory_format: torch.memory_format,
        channels_last_up_to: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The sums run in channels_last up to a number of positions, whatever the format of the inputs."""
        monkeypatch.setattr("acmix_zoo.ops.backends.offset_sums._CHANNELS_LAST_UP_TO", channels_last_up_to)
        tensors, expected = solved_example(shape)
        value, weight, grad = tensors
        formatted = Example(*(t.contiguous(memory_format=memory_format) for t in (value, weight)), grad)
        for a, e in zip(with_gradients(aggregate, formatted, shape.kernel), expected, strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_in_plain_operators(self, shape: Shape) -> None:
        """Export and compilers for other devices see these."""
        tensors, expected = solved_example(shape)
        for a, e in zip(with_gradients(aggregate_plain, tensors, shape.kernel), expected, strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=1e-12)

    def test_unfolded_at_the_size_of_a_stage(self) -> None:
        value, weight = torch.randn(2, 64, 28, 28), torch.randn(2, 49 * 8, 28, 28)
        columns = F.unfold(F.pad(value, [3] * 4, mode="reflect"), 7).view(2, 8, 8, 49, 28 * 28)
        expected = (columns * weight.view(2, 1, 49, 8, 28 * 28).transpose(2, 3)).sum(3).view_as(value)
        torch.testing.assert_close(aggregate(value, weight, 7), expected, rtol=1e-4, atol=1e-4)


def test_any_number_of_images_per_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """One image at a time, three with one left over, all at once, and an empty batch."""
    tensors = example(Shape((4, 6, 5, 7), 3, 3))
    expected = with_gradients(aggregate_plain, tensors, 3)
    for images in (1, 3, 4, 100):
        monkeypatch.setattr("acmix_zoo.ops.aggregation._CHUNK_BYTES", images * tensors.value[0].numel() * 8)
        for a, e in zip(with_gradients(aggregate, tensors, 3), expected, strict=True):
            torch.testing.assert_close(a, e, rtol=0, atol=1e-12)
    assert aggregate(tensors.value[:0], tensors.weight[:0], 3).shape == (0, 6, 5, 7)


def test_channels_share_weights_interleaved() -> None:
    """Channel c uses weight c mod wc: of four channels with two weights, the first and the third have the same."""
    value = torch.ones(1, 4, 6, 6)
    weight = torch.zeros(1, 9 * 2, 6, 6)
    weight[:, 0::2] = 1.0  # the first of the two weights, at every offset
    out = aggregate(value, weight, 3)
    assert out[:, 0::2].eq(9).all() and out[:, 1::2].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    value, weight = torch.randn(1, 8, 9, 9), torch.randn(1, 49 * 4, 9, 9) / 7
    out = aggregate(value.to(dtype), weight.to(dtype), 7)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), aggregate(value, weight, 7), rtol=0.05, atol=0.1)
    assert torch.equal(aggregate(value.to(dtype), weight.to(dtype).float(), 7), out)  # as under autocast


@pytest.mark.parametrize(
    ("side", "memory_format"),
    [
        (5, torch.channels_last),  # this and the next one use different formats inside
        (21, torch.contiguous_format),
        pytest.param(5, torch.contiguous_format, marks=pytest.mark.slow),
        pytest.param(21, torch.channels_last, marks=pytest.mark.slow),
    ],
)
def test_operators_pass_the_checks_of_pytorch(side: int, memory_format: torch.memory_format) -> None:
    """The operators report the right shapes and strides to a compiler, have the right gradient and alias nothing."""
    shapes = ((2, 4, side, side), (2, 9 * 2, side, side))
    tensors = [torch.randn(shape).contiguous(memory_format=memory_format).requires_grad_() for shape in shapes]
    torch.library.opcheck(torch.ops.acmix_zoo.aggregate, (*tensors, 3))
    grad = torch.randn(shapes[0])
    torch.library.opcheck(torch.ops.acmix_zoo.aggregate_backward, (grad, *(t.detach() for t in tensors), 3))


@pytest.mark.parametrize(("channels", "kernel"), [(9 * 4, 3), (10, 3), (16, 4)])
def test_wrong_shapes_are_rejected(channels: int, kernel: int) -> None:
    value, weight = torch.randn(1, 6, 5, 5), torch.randn(1, channels, 5, 5)
    with pytest.raises(ValueError, match=rf"Expected an odd kernel and a weight of shape \(1, {kernel}²·wc, 5, 5\)"):
        aggregate(value, weight, kernel)


@pytest.mark.gpu
def test_gpu_agrees_with_cpu() -> None:
    tensors = example(Shape((2, 8, 9, 30), 4, 7)).to(torch.float32)
    actual = with_gradients(aggregate, tensors.to("cuda"), 7)
    for a, e in zip(actual, with_gradients(aggregate, tensors, 7), strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=1e-4, atol=1e-4)
