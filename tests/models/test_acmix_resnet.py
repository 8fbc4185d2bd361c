"""ACmix-ResNet: small and odd images, and dilation instead of stride."""

from __future__ import annotations

import pytest
import torch

from acmix_zoo import create_model


@pytest.mark.parametrize("size", [(96, 96), (65, 97)])
def test_small_and_odd_images(size: tuple[int, int]) -> None:
    """Its last maps are 3×3 and smaller than the attention window, where the released network crashes."""
    network = create_model("acmix_resnet26", num_classes=5).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, *size)).isfinite().all()


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilation_instead_of_stride(output_stride: int) -> None:
    """With the same weights, both networks have the same features at all positions of the strided network.

    For odd sides these positions coincide, as do reflections and the ends of the coordinates. The only difference is
    the rounding of about 30 layers.
    """
    kwargs = {"layers": (1, 2, 2, 2), "planes": (8, 16, 32, 64)}
    strided = create_model("acmix_resnet26", zero_init_last=False, **kwargs).eval()
    dilated = create_model("acmix_resnet26", output_stride=output_stride, **kwargs).eval()
    dilated.load_state_dict(strided.state_dict())
    assert [info["reduction"] for info in dilated.feature_info] == [min(r, output_stride) for r in (2, 4, 8, 16, 32)]
    x, step = torch.randn(1, 3, 129, 193), 32 // output_stride
    with torch.no_grad():
        expected, found = strided.forward_features(x), dilated.forward_features(x)
        maps = dilated.forward_intermediates(x, intermediates_only=True)
    assert found.shape[2:] == (128 // output_stride + 1, 192 // output_stride + 1)
    error = (found[..., ::step, ::step] - expected).abs().max() / expected.abs().max()
    assert error <= 30 * torch.finfo(torch.float32).eps
    for map_, info in zip(maps, dilated.feature_info, strict=True):
        assert map_.shape[2:] == (128 // info["reduction"] + 1, 192 // info["reduction"] + 1)


def test_unknown_output_stride_is_rejected() -> None:
    with pytest.raises(ValueError, match="8, 16 or 32"):
        create_model("acmix_resnet26", output_stride=4)
