"""ContextAggregation: attention and convolution of the values, and the mixture of both."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.gradients import fill_freed_memory_with_nan
from torch import Tensor, nn
from torch.testing import assert_close

from acmix_zoo.layers import ContextAggregation


def parts(layer: ContextAggregation, x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute attention and convolution of a layer with stride 1 and one head, written as matrices."""
    h, w = x.shape[2:]
    q, k, v = (t.flatten(1, 2) for t in layer.qkv(x.permute(0, 2, 3, 1)).chunk(3, 3))  # 3 × (B, H·W, out)
    attention = (q @ k.mT / q.shape[2] ** 0.5).softmax(2) @ v
    maps = v.mT.unflatten(2, (h, w))
    convolution = F.conv2d(maps, layer.conv.weight, layer.conv.bias, 1, 2, groups=layer.out_channels)
    return attention.mT.unflatten(2, (h, w)), convolution


@pytest.mark.parametrize("logit", [-50.0, 0.0, 1.0, 50.0])
def test_mixture(logit: float) -> None:
    layer = ContextAggregation(6, 8, heads=1).double()
    torch.nn.init.constant_(layer.mix_logit, logit)
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    attention, convolution = parts(layer, x)
    mix = 1 / (1 + torch.exp(torch.tensor(-logit, dtype=torch.float64)))
    torch.testing.assert_close(layer(x), mix * attention + (1 - mix) * convolution, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(6, 6), (5, 7), (1, 1)])
def test_stride_takes_every_second_output(size: tuple[int, int]) -> None:
    dense, strided = ContextAggregation(6, 8, heads=2), ContextAggregation(6, 8, heads=2, stride=2)
    strided.load_state_dict(dense.state_dict())
    x = torch.randn(2, 6, *size)
    torch.testing.assert_close(strided(x), dense(x)[:, :, ::2, ::2])


def test_without_attention_it_is_two_convolutions() -> None:
    layer = ContextAggregation(6, 8, heads=2, dynamic=False)
    assert "mix_logit" not in dict(layer.named_parameters()) and layer.qkv.out_features == 8
    x = torch.randn(2, 6, 5, 4)
    torch.testing.assert_close(layer(x), layer.conv(F.conv2d(x, layer.qkv.weight[..., None, None], layer.qkv.bias)))


def test_the_convolution_is_called_if_it_is_hooked() -> None:
    layer, x = ContextAggregation(6, 8, heads=2), torch.randn(2, 6, 5, 7)
    layer.conv.register_forward_hook(lambda conv, inputs, output: 0 * output)
    plain = ContextAggregation(6, 8, heads=2)
    plain.load_state_dict(layer.state_dict())
    nn.init.zeros_(plain.conv.weight), nn.init.zeros_(plain.conv.bias)
    assert torch.equal(layer(x), plain(x))


def test_bfloat16_gradients_of_dilated_kernels_are_right() -> None:
    """PyTorch's own are made of uninitialised memory."""
    torch.manual_seed(0)
    layer, x = ContextAggregation(16, 16, heads=2, dilation=2, dynamic=False).double(), torch.randn(2, 16, 40, 40)

    def gradient(dtype: torch.dtype) -> Tensor:
        layer.to(dtype).zero_grad()
        layer(x.to(dtype)).double().square().mean().backward()
        return layer.conv.weight.grad.double().clone()  # type: ignore[union-attr]

    expected = gradient(torch.float64)
    for _ in range(5):
        fill_freed_memory_with_nan()
        assert_close(gradient(torch.bfloat16), expected, rtol=0, atol=0.03 * expected.abs().max().item())


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"ContextAggregation: heads=3 does not divide out_channels=8"):
        ContextAggregation(8, 8, heads=3)
    with pytest.raises(ValueError, match=r"kernel=4 is even"):
        ContextAggregation(8, 8, heads=2, kernel=4)
