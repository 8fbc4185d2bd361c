"""Segmentation Models PyTorch: every family as a `tu-` encoder, and the small networks at their depths."""

from __future__ import annotations

import pytest
import torch
from support.small_networks import FAMILIES

import acmix_zoo  # registers the networks

smp = pytest.importorskip("segmentation_models_pytorch")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

# From their docstrings: an encoder's depth is the number of times that it halves the image.
DEPTHS = {"acmix_resnet_pico": 4, "acmix_swin_pico": 3, "acmix_san_pico": 3, "acmix_pvt_pico": 3}


def check_step(model: torch.nn.Module, size: tuple[int, int] = (64, 96), unused: tuple[str, ...] = ()) -> None:
    """Take one step. Masks have the size of the image, and every part of the encoder that SMP uses gets a gradient."""
    masks = model.train()(torch.randn(2, 3, *size))
    assert masks.shape == (2, 2, *size)
    masks.square().mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None and not key.startswith(unused)] == []
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, *size)).isfinite().all()


@pytest.mark.parametrize("decoder", ["Unet", "FPN", "UPerNet", "Segformer", "MAnet", "DPT"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_decoder_trains(name: str, decoder: str) -> None:
    model = getattr(smp, decoder)(f"tu-{name}", encoder_weights=None, classes=2, **FAMILIES[name])
    # Only DPT keeps the classifier and the norm before it in the encoder.
    check_step(
        model, unused=tuple(f"encoder.model.{key}" for key in ("fc", "head", "norm.")) if decoder == "DPT" else ()
    )


@pytest.mark.parametrize("decoder", ["DeepLabV3", "DeepLabV3Plus", "PAN"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_resnets_train(decoder: str, output_stride: int) -> None:
    if decoder == "PAN" and output_stride == 8:
        pytest.skip("SMP's PAN takes 16 and 32")
    model = getattr(smp, decoder)(
        "tu-acmix_resnet26", encoder_weights=None, encoder_output_stride=output_stride, classes=2, layers=(1, 1, 1, 1)
    )
    assert model.encoder.output_stride == output_stride
    # PAN's attention pools its last map to three smaller ones, so SMP needs images of at least 128 pixels.
    check_step(model, (128, 160))


@pytest.mark.parametrize("name", ["acmix_swin_t", "acmix_san10", "acmix_pvt_t"])
def test_other_families_reject_dilation(name: str) -> None:
    """Like timm's Swin, they have no stride that could be replaced by dilation."""
    with pytest.raises(TypeError, match="output_stride"):
        smp.DeepLabV3Plus(f"tu-{name}", encoder_weights=None, classes=2)


@pytest.mark.parametrize("name", DEPTHS)
def test_small_networks_train_at_their_depth(name: str) -> None:
    depth = DEPTHS[name]
    channels = (64, 32, 16, 16)[:depth]
    model = smp.Unet(f"tu-{name}", encoder_weights=None, encoder_depth=depth, decoder_channels=channels, classes=2)
    check_step(model, (32, 48))


def test_pretrained_encoders_have_the_shipped_weights() -> None:
    model = smp.Unet(
        "tu-acmix_san_pico.fashion_mnist", encoder_weights=True, encoder_depth=3, decoder_channels=(64, 32, 16)
    )
    state = acmix_zoo.create_model("acmix_san_pico", pretrained=True).state_dict()
    for key, value in model.encoder.model.model.state_dict().items():
        assert torch.equal(value, state[key]), key
