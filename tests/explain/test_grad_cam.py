"""Grad-CAM, at the last feature map of every kind of network."""

import pytest
import timm
import torch
from support.explained import FAMILIES, explained_network, smooth_image
from torch import nn

from acmix_zoo import swap_conv3x3
from acmix_zoo.explain import grad_cam

SIDES = {"acmix_resnet_pico": 3, "acmix_swin_pico": 3, "acmix_san_pico": 6, "acmix_pvt_pico": 3}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_one(name: str) -> None:
    model = explained_network(name)
    best = int(model(smooth_image()).argmax())  # without evidence for a class, the map of the class is zero
    found = grad_cam(model, smooth_image(), best)
    assert found is not None and found.shape == (SIDES[name], SIDES[name])
    assert found.min() >= 0 and found.max() == 1


def test_it_is_the_definition_for_a_network_that_ends_with_pooling_and_a_classifier() -> None:
    """The gradient is then the row of the classifier, divided by the number of positions."""
    model, image = explained_network("acmix_resnet_pico"), smooth_image()
    with torch.no_grad():
        features = model.forward_features(image)[0]  # type: ignore[operator]  # (C, h, w)
        expected = torch.einsum("kc,chw->khw", model.fc.weight, features).clamp(min=0)  # type: ignore[union-attr]
    assert expected.any()
    for target, cam in enumerate(expected):
        found = grad_cam(model, image, target)
        assert found is not None and found.allclose(cam / cam.max().clamp(min=1e-12))


def test_tokens_before_the_class_token_reads_them_have_a_gradient() -> None:
    found = grad_cam(explained_network("acmix_pvt_pico", global_pool="token"), smooth_image(), 0)
    assert found is not None and found.max() == 1


def test_a_network_without_a_last_feature_map_has_none() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=24, patch_size=8, depth=1, num_classes=3).double()
    assert grad_cam(vit, smooth_image(), 0) is None
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ).double()
    assert grad_cam(plain, smooth_image(), 0) is None
    swap_conv3x3(plain, "0")
    found = grad_cam(plain, smooth_image(), 0)
    assert found is not None and found.shape == (24, 24)
