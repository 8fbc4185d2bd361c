"""The attention of a pixel: the weighted sum of the values is what the attention path of the layer returns."""

from typing import Any

import pytest
import torch
from support.explained import FAMILIES, explained_network, smooth_image
from torch import Tensor, nn
from torch.func import functional_call

from acmix_zoo import ACmix2d
from acmix_zoo.explain import pixel_attention
from acmix_zoo.explain.pixel_attention import attention_weights
from acmix_zoo.layers import PairwiseSAM, PatchwiseSAM, ReducedACmix, WindowACmix


def randomised(layer: nn.Module) -> Any:
    """Return a layer in float64 and eval mode with random parameters."""
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    return layer.double().eval()


def features(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def attention_path(layer: nn.Module, *inputs: Any) -> Tensor:
    """Return the attention of a layer, without alpha and the convolution."""
    factors = {"alpha": torch.ones(1, dtype=torch.float64), "beta": torch.zeros(1, dtype=torch.float64)}
    return functional_call(layer, factors, inputs).detach()  # type: ignore[no-any-return]


def weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """(heads, H, W) and values (H, W, heads, d) → (heads·d,)."""
    return torch.einsum("nyx,yxnd->nd", weights, values).flatten()


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("query", [(0, 0), (2, 3), (3, 1)])
def test_acmix2d(query: tuple[int, int], stride: int, dilation: int) -> None:
    layer = randomised(ACmix2d(6, 8, stride=stride, heads=2, kernel_att=5, dilation=dilation))
    x = features(1, 6, 8, 7)
    weights = attention_weights(layer, x, query=query)
    assert weights.shape == (2, 8, 7) and weights.sum((1, 2)).allclose(torch.ones(2, dtype=torch.float64))
    values = layer.qkv(x.permute(0, 2, 3, 1))[0].unflatten(2, (4, 3, 2))[..., 2, :].transpose(2, 3)  # (H, W, heads, d)
    expected = attention_path(layer, x)[0, :, query[0], query[1]]
    assert weighted_sum(weights, values).allclose(expected)


@pytest.mark.parametrize("shift", [(0, 0), (2, 1)])
@pytest.mark.parametrize("query", [(0, 0), (4, 3), (8, 6), (8, 0)])
def test_window_acmix(query: tuple[int, int], shift: tuple[int, int]) -> None:
    """The feature map is padded to whole windows, whose zeros also have keys and values, outside the picture."""
    layer = randomised(WindowACmix(8, 2, (4, 3), shift))
    for size in ((9, 7), (12, 9)):
        x = features(1, *size, 8)
        weights = attention_weights(layer, x, query=query)
        values = layer.qkv(x)[0].unflatten(2, (4, 3, 2))[..., 2, :].transpose(2, 3)  # (H, W, heads, d)
        padding = layer.qkv.bias.unflatten(0, (4, 3, 2))[:, 2].T * (1 - weights.sum((1, 2))).unsqueeze(1)  # (heads, d)
        expected = attention_path(layer, x)[0, query[0], query[1]]
        assert layer.proj(weighted_sum(weights, values) + padding.flatten()).allclose(expected)
        assert size == (9, 7) or weights.sum((1, 2)).allclose(torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(("reduction", "prefix"), [(1, 0), (1, 1), (2, 0)])
@pytest.mark.parametrize("query", [(0, 0), (4, 2)])
def test_reduced_acmix(query: tuple[int, int], reduction: int, prefix: int) -> None:
    layer = randomised(ReducedACmix(8, 2, reduction))
    x, size = features(1, prefix + 5 * 3, 8), (5, 3)
    weights = attention_weights(layer, x, size, query=query)
    tokens = layer.kv(layer.reduced_tokens(x, size))[0].unflatten(1, (2, 2, 4))[:, 1]  # (L′, heads, d)
    assert weights.shape[1:] == ((5, 3) if reduction == 1 else (3, 2))
    own = (1 - weights.sum((1, 2))).unsqueeze(1) * tokens[0] * prefix  # of the class token: (heads, d)
    expected = attention_path(layer, x, size)[0, prefix + query[0] * 3 + query[1]]
    total = weighted_sum(weights, tokens[prefix:].unflatten(0, tuple(weights.shape[1:]))) + own.flatten()
    assert layer.proj(total).allclose(expected)


def test_class_token() -> None:
    layer = randomised(ReducedACmix(8, 2))
    x, size = features(1, 1 + 5 * 3, 8), (5, 3)
    weights = attention_weights(layer, x, size, query=None)
    tokens = layer.kv(x)[0].unflatten(1, (2, 2, 4))[:, 1]  # (1 + H·W, heads, d)
    own = (1 - weights.sum((1, 2))).unsqueeze(1) * tokens[0]  # (heads, d)
    total = weighted_sum(weights, tokens[1:].unflatten(0, size)) + own.flatten()
    assert layer.proj(total).allclose(attention_path(layer, x, size)[0, 0])


@pytest.mark.parametrize("kind", [PairwiseSAM, PatchwiseSAM])
@pytest.mark.parametrize("query", [(0, 0), (2, 3), (5, 1)])
def test_san(query: tuple[int, int], kind: type[PairwiseSAM | PatchwiseSAM]) -> None:
    layer = randomised(kind(64, 5, share=8, paths="both"))
    x = features(1, 64, 6, 7)
    weights = attention_weights(layer, x, query=query)
    values = layer.conv3(x)[0].unflatten(0, (8, 2)).permute(2, 3, 1, 0)  # (H, W, wc, share): channels are interleaved
    expected = attention_path(layer, x)[0, :, query[0], query[1]].unflatten(0, (8, 2)).T.flatten()
    assert weighted_sum(weights, values).allclose(expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pixel_belongs_to_the_position_that_covers_it(name: str) -> None:
    model, image = explained_network(name), smooth_image(32, 48)
    layer = next(key for key, module in model.named_modules() if hasattr(module, "paths") and hasattr(module, "alpha"))
    found = pixel_attention(model, image, layer, (47, 16))
    h, w = found.grid
    assert found.query == (h // 2, w - 1) and w == 3 * h // 2
    assert found.weights.isfinite().all() and found.weights.any()


def test_the_model_runs_in_eval_mode_and_is_not_changed() -> None:
    model, image = explained_network("acmix_resnet_pico"), smooth_image()
    expected = pixel_attention(model, image, "layer2.0.conv2", (5, 5))
    model.train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = pixel_attention(model, image, "layer2.0.conv2", (5, 5))
    assert torch.equal(found.weights, expected.weights) and model.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_wrong_layers_and_pixels_are_rejected_with_advice() -> None:
    model, image = explained_network("acmix_resnet_pico"), smooth_image()
    with pytest.raises(ValueError, match=r"no attention in a layer 'fc'\. Expected one of layer1\.0\.conv2, layer2"):
        pixel_attention(model, image, "fc", (0, 0))
    with pytest.raises(ValueError, match=r"pixel 32,0 is outside the image\. Expected X,Y from 0,0 to 23,23"):
        pixel_attention(model, image, "layer1.0.conv2", (32, 0))
    with pytest.raises(ValueError, match=r"expected one image.*\(3, 24, 24\)"):
        pixel_attention(model, image[0], "layer1.0.conv2", (0, 0))
    with pytest.raises(ValueError, match=r"layer1\.0\.conv2 has no class token"):
        pixel_attention(model, image, "layer1.0.conv2", "token")
    model = explained_network("acmix_resnet_pico", paths="convolution")
    with pytest.raises(ValueError, match="no layer with attention"):
        pixel_attention(model, image, "layer1.0.conv2", (0, 0))
