"""Feature maps: `features_only`, `forward_intermediates`, pruning, and timm's wrappers around them."""

from __future__ import annotations

import pytest
import torch
from support.networks import EVERY
from timm.models._features import FeatureDictNet
from timm.models._features_fx import FeatureGraphNet

from acmix_zoo import create_model


@pytest.mark.parametrize("name", EVERY)
def test_maps_have_the_stated_channels_and_sizes(name: str) -> None:
    features = create_model(name, features_only=True).eval()
    network = create_model(name).eval()
    x = torch.randn(2, 3, 32, 48)
    maps = features(x)
    assert len(maps) == len(network.feature_info)
    for map_, channels, reduction in zip(
        maps, features.feature_info.channels(), features.feature_info.reduction(), strict=True
    ):
        assert map_.shape == (2, channels, 32 // reduction, 48 // reduction)  # NCHW
    last = create_model(name, features_only=True, out_indices=(-1,))
    assert [tuple(m.shape) for m in last.eval()(x)] == [tuple(maps[-1].shape)]


@pytest.mark.parametrize("name", EVERY)
def test_intermediates_and_pruning(name: str) -> None:
    network = create_model(name).eval()
    x = torch.randn(1, 3, 32, 32)
    final, maps = network.forward_intermediates(x)
    torch.testing.assert_close(final, network.forward_features(x))
    assert len(network.forward_intermediates(x, indices=1, intermediates_only=True)) == 1
    early = network.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(early[0], maps[0])
    network.prune_intermediate_layers([1])
    torch.testing.assert_close(network.forward_intermediates(x, indices=[1], intermediates_only=True)[0], maps[1])
    with pytest.raises(ValueError, match='expected "NCHW" or "NHWC"'):
        network.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("name", EVERY)
def test_fx_does_not_trace_into_our_layers(name: str) -> None:
    """timm's tracer traces the network, but not the inside of our layers."""
    network = create_model(name).eval()
    graph = FeatureGraphNet(network, out_indices=(0, 1), output_fmt=getattr(network, "output_fmt", "NCHW"))
    x = torch.randn(2, 3, 32, 32)
    maps = network.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
    for traced, map_ in zip(graph(x), maps, strict=True):
        if traced.dim() == 3:  # PVT's tokens, in the last stage behind the class token
            traced = traced[:, -map_.shape[2:].numel() :].unflatten(1, map_.shape[2:])
        torch.testing.assert_close(traced if traced.shape == map_.shape else traced.permute(0, 3, 1, 2), map_)


@pytest.mark.parametrize("name", EVERY)
def test_maps_with_channels_last(name: str) -> None:
    network, x = create_model(name).eval(), torch.randn(2, 3, 32, 48)
    final, first = network.forward_intermediates(x)
    same, last = network.forward_intermediates(x, output_fmt="NHWC")
    torch.testing.assert_close(final, same)
    for nchw, nhwc in zip(first, last, strict=True):
        torch.testing.assert_close(nhwc, nchw.permute(0, 2, 3, 1))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("size", [(32, 32), (35, 49), (31, 65)])
def test_odd_sizes_are_rounded_up(name: str, size: tuple[int, int]) -> None:
    """Odd sizes are rounded up, so that decoders get maps of the same sizes as from other backbones."""
    features = create_model(name, features_only=True).eval()
    for map_, info in zip(features(torch.randn(1, 3, *size)), features.feature_info.get_dicts(), strict=True):
        assert map_.shape[1:] == (info["num_chs"], *(-(-side // info["reduction"]) for side in size))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("feature_cls", [None, "list", "dict", "getter"])
def test_feature_classes(name: str, feature_cls: str | None) -> None:
    network = create_model(name).eval()
    x = torch.randn(1, 3, 32, 32)
    expected = network.forward_intermediates(x, indices=[0, -1], intermediates_only=True)
    features = create_model(name, features_only=True, feature_cls=feature_cls, out_indices=(0, -1)).eval()
    result = features(x)
    own = getattr(features, "model", features)
    own.load_state_dict(network.state_dict(), strict=False)
    result = features(x)
    if feature_cls == "dict":
        last = len(network.feature_info) - 1
        assert list(result) in (["0", str(last)], ["0", "-1"]) and isinstance(result, dict)
        result = list(result.values())
    else:
        assert isinstance(result, list)
    for found, wanted in zip(result, expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("indices", [(1, 0), (-1, 0)])
def test_the_keys_of_maps_do_not_depend_on_the_order_of_indices(indices: tuple[int, int]) -> None:
    maps = create_model("acmix_swin_pico", features_only=True, feature_cls="dict", out_indices=indices)
    assert {key: value.shape[-1] for key, value in maps(torch.randn(1, 3, 32, 32)).items()} == {"0": 8, "1": 4}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("feature_cls", [None, "dict", "getter"])
def test_checkpointed_feature_maps_have_the_same_gradients(name: str, feature_cls: str | None) -> None:
    x = torch.randn(2, 3, 32, 32)
    features = create_model(name, features_only=True, feature_cls=feature_cls).train()
    grads = []
    for enable in (False, True):
        features.set_grad_checkpointing(enable)
        features.zero_grad()
        maps = features(x)
        sum(t.square().mean() for t in (maps.values() if isinstance(maps, dict) else maps)).backward()
        grads.append([p.grad.clone() for p in features.parameters()])
    if not isinstance(features, FeatureDictNet):  # timm's class checkpoints entire child modules
        assert features.model.stages is not None if hasattr(features.model, "stages") else True
        flags = [m.grad_checkpointing for m in features.model.modules() if hasattr(m, "grad_checkpointing")]
        assert flags and any(flags)
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-6)
