"""AugmentedConv2d: what its channels are, and at which size its attention runs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from acmix_zoo.layers import AugmentedConv2d


def layer(**kwargs: object) -> AugmentedConv2d:
    return AugmentedConv2d(16, 32, heads=2, key_ratio=0.2, value_ratio=0.25, reach=5, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("width", "keys", "attended"), [(64, 160, 8), (128, 160, 8), (256, 160, 24), (512, 160, 48), (1024, 200, 96)]
)
def test_channels_of_the_paper(width: int, keys: int, attended: int) -> None:
    """κ = 2υ = 0.2 with 8 heads, rounded down to whole heads, and at least 20 key channels per head."""
    with torch.device("meta"):
        found = AugmentedConv2d(width, width, heads=8, key_ratio=0.2, value_ratio=0.1, reach=6)
    assert (found.attention.key_channels, found.attention.out_channels) == (keys, attended)
    assert found.conv.out_channels == width - attended


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1)])
def test_concatenation_of_both_parts(stride: int, pool: bool, size: tuple[int, int]) -> None:
    module, x = layer(stride=stride, pool=pool), torch.randn(2, 16, *size)
    sizes = []
    module.attention.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[2:]))
    out = module(x)
    expected = F.conv2d(x, module.conv.weight, None, stride, 1)
    assert out.shape == (2, 32, *expected.shape[2:])
    torch.testing.assert_close(out[:, :24], expected)
    halved = stride * (1 + pool)
    assert tuple(sizes[0]) == tuple(-(-side // halved) for side in size)


def test_means_of_pooling_leave_the_border_out() -> None:
    """A constant map stays constant, so the attention of a constant is the same with and without pooling."""
    module = layer()
    x = torch.full((1, 16, 7, 7), 0.5)
    plain = module(x)[:, 24:]
    module.halvings, module.pool = 1, True
    torch.testing.assert_close(module(x)[:, 24:], plain)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"stride=3 is not supported\. Use 1 or 2"):
        layer(stride=3)
    with pytest.raises(ValueError, match=r"leave no channel of 8 to the convolution\. Use fewer heads"):
        AugmentedConv2d(8, 8, heads=8, key_ratio=0.2, value_ratio=0.1, reach=5)
