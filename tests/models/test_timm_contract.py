"""Typical uses through timm: empty batches, all variants, other heads and sizes, dilation, feature maps."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models._features import FeatureDictNet
from torch import nn

from acmix_zoo import create_model
from acmix_zoo.weights import check_folder, read_config, write_folder

SMALL = ["acmix_resnet_pico", "acmix_swin_pico", "acmix_san_pico", "acmix_pvt_pico"]
PATHS = ("both", "attention", "convolution")
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "acmix_resnet_pico": [{}, {"small_input": False}, {"output_stride": 8}, {"kernel_conv": 5}, {"heads": 8}],
    "acmix_swin_pico": [{}, {"small_input": False}, {"conv_before_shift": True}, {"kernel_conv": 5}],
    "acmix_san_pico": [{}, {"form": "pairwise"}, {"small_input": False}],
    "acmix_pvt_pico": [{}, {"global_pool": "token"}, {"small_input": False}, {"reductions": (1, 1)}],
}
VARIANTS = [
    pytest.param(name, {"paths": paths, **options}, id=f"{name}-{paths}-{'-'.join(map(str, options.values()))}")
    for name in SMALL
    for paths, options in itertools.product(PATHS, OPTIONS[name])
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_every_parameter_of_every_variant_has_a_gradient(name: str, options: dict[str, Any]) -> None:
    """Otherwise DistributedDataParallel fails, because it waits for every gradient."""
    for kwargs in ({}, {"features_only": True})[: 2 if len(options) == 1 else 1]:
        network = create_model(name, **options, **kwargs).train()
        out = network(torch.randn(2, 3, 16, 16))
        sum(t.square().sum() for t in (out if isinstance(out, list) else [out])).backward()
        assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("name", "options"), [v for v in VARIANTS if "both" in v.id])  # type: ignore[operator]
def test_empty_batch(name: str, options: dict[str, Any], training: bool) -> None:
    """An empty batch gives no logits and does not change the statistics of batch norms."""
    network = create_model(name, **options).train(training)
    before = {key: value.clone() for key, value in network.state_dict().items() if "running" in key}
    out = network(torch.zeros(0, 3, 32, 32))
    assert out.shape == (0, 10)
    out.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in network.parameters())
    for key, value in network.state_dict().items():
        assert key not in before or torch.equal(value, before[key]), key
    for map_, info in zip(network.forward_intermediates(torch.zeros(0, 3, 32, 32))[1], network.feature_info):  # noqa: B905
        assert map_.shape[:2] == (0, info["num_chs"])


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_compiled_training_with_an_empty_batch(name: str) -> None:
    """A batch with images, and then one without, as some processes get it at the end of an epoch."""
    network = create_model(name).train()
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="aot_eager")
    for batch in (4, 0):
        network.zero_grad()
        out = compiled(torch.randn(batch, 3, 32, 32))
        assert out.shape == (batch, 10)
        out.square().sum().backward()
        gradients = [parameter.grad for parameter in network.parameters()]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert not any(gradient.any() for gradient in gradients)


# ---- other heads, other sizes


@pytest.mark.parametrize("name", SMALL)
def test_head_hidden_size_is_what_the_classifier_reads(name: str) -> None:
    network = create_model(name).eval()
    assert network.fc.training is False if hasattr(network, "fc") else True
    for pool in ("token", "avg", "") if "pvt" in name else ("catavgmax", "max", "avg", ""):
        network.reset_classifier(7, pool)
        assert not any(module.training for module in network.modules())
        if pool:
            features = network.forward_features(torch.randn(2, 3, 32, 32))
            assert network.forward_head(features, pre_logits=True).shape == (2, network.head_hidden_size)
            assert network.get_classifier().in_features == network.head_hidden_size
            assert create_model(name, global_pool=pool).head_hidden_size == network.head_hidden_size
            assert network(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def _resized(network: nn.Module) -> None:
    network.set_input_size(img_size=(48, 64), patch_size=8, window_size=2)


def _without_change(network: nn.Module) -> None:
    pass


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("name", "kwargs", "pool", "change"),
    [
        ("acmix_swin_pico", {}, "catavgmax", _resized),
        ("acmix_resnet_pico", {}, "catavgmax", _without_change),
        ("acmix_resnet_pico", {"output_stride": 8}, None, _without_change),
        ("acmix_san_pico", {"in_chans": 4}, "catavgmax", _without_change),
        ("acmix_pvt_pico", {"img_size": 64}, "token", _without_change),
    ],
)
def test_a_changed_network_is_written_and_built_again(
    tmp_path: Path, name: str, kwargs: dict[str, Any], pool: str | None, change: Any
) -> None:
    network = create_model(name, **kwargs).eval()
    network.reset_classifier(5, pool)
    change(network)
    channels, size = network.in_chans, (48, 64) if change is _resized else (32, 32)
    example = torch.randn(2, channels, *size)
    folder = write_folder(tmp_path / "w", network, architecture=name, pretrained_cfg={}, record={}, example=example)
    assert check_folder(folder) == []
    again = create_model(folder).eval()
    torch.testing.assert_close(again(example), network(example), rtol=1e-5, atol=1e-6)
    cfg = read_config(folder)["pretrained_cfg"]
    size = (64, 64) if "img_size" in kwargs else size
    assert cfg["input_size"] == [channels, *size] and len(cfg["mean"]) == len(cfg["std"]) == channels
    features = again.forward_features(torch.randn(1, *cfg["input_size"]))
    if "pvt" in name:
        assert cfg["pool_size"] is None
    else:
        assert cfg["pool_size"] == list(features.shape[1:3] if "swin" in name else features.shape[2:])


def test_input_channels_are_not_misstated(tmp_path: Path) -> None:
    network = create_model("acmix_resnet_pico", in_chans=1)
    options: dict[str, Any] = {"architecture": "acmix_resnet_pico", "record": {}, "example": torch.randn(1, 1, 32, 32)}
    for wrong in ({"input_size": (3, 32, 32)}, {"mean": (0.5, 0.5, 0.5)}):
        with pytest.raises(ValueError, match="1 input channels"):
            write_folder(tmp_path / "w", network, pretrained_cfg=wrong, **options)


@pytest.mark.parametrize("name", SMALL)
def test_factory_device_and_dtype(name: str) -> None:
    """timm's create_model passes device= and dtype= on."""
    network = create_model(name, device="meta", dtype=torch.bfloat16)
    assert {t.device.type for t in (*network.parameters(), *network.buffers())} == {"meta"}
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}


# ---- feature maps


@pytest.mark.parametrize("name", SMALL)
def test_maps_with_channels_last(name: str) -> None:
    network, x = create_model(name).eval(), torch.randn(2, 3, 32, 48)
    final, first = network.forward_intermediates(x)
    same, last = network.forward_intermediates(x, output_fmt="NHWC")
    torch.testing.assert_close(final, same)
    for nchw, nhwc in zip(first, last, strict=True):
        torch.testing.assert_close(nhwc, nchw.permute(0, 2, 3, 1))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(32, 32), (35, 49), (31, 65)])
def test_maps_round_up(name: str, size: tuple[int, int]) -> None:
    """Odd sizes are rounded up, so that decoders get maps of the same sizes as from other backbones."""
    features = create_model(name, features_only=True).eval()
    for map_, info in zip(features(torch.randn(1, 3, *size)), features.feature_info.get_dicts(), strict=True):
        assert map_.shape[1:] == (info["num_chs"], *(-(-side // info["reduction"]) for side in size))


@pytest.mark.parametrize("name", SMALL)
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


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("feature_cls", [None, "dict", "getter"])
def test_checkpointed_feature_maps(name: str, feature_cls: str | None) -> None:
    x = torch.randn(2, 3, 32, 32)
    features = create_model(name, features_only=True, feature_cls=feature_cls).train()
    grads = []
    for enable in (False, True):
        features.set_grad_checkpointing(enable)
        features.zero_grad()
        maps = features(x)
        sum(t.square().mean() for t in (maps.values() if isinstance(maps, dict) else maps)).backward()
        grads.append([p.grad.clone() for p in features.parameters()])
    if not isinstance(features, FeatureDictNet):  # timm's own class checkpoints whole children
        assert features.model.stages is not None if hasattr(features.model, "stages") else True
        flags = [m.grad_checkpointing for m in features.model.modules() if hasattr(m, "grad_checkpointing")]
        assert flags and any(flags)
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-6)


# ---- dilation


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilation_in_place_of_stride(output_stride: int) -> None:
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


def test_unknown_output_stride() -> None:
    with pytest.raises(ValueError, match="8, 16 or 32"):
        create_model("acmix_resnet26", output_stride=4)
