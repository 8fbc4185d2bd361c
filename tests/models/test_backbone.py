"""timm's model interface, which all networks share: attributes, classifier, gradients, precision, empty batches."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from support.networks import EVERY, NEIGHBOURS, SHALLOW, SMALL
from timm.optim import param_groups_layer_decay
from torch import nn

from acmix_zoo import create_model

PATHS = ("both", "attention", "convolution")
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "acmix_resnet_pico": [{}, {"small_input": False}, {"output_stride": 8}, {"kernel_conv": 5}, {"heads": 8}],
    "acmix_swin_pico": [{}, {"small_input": False}, {"conv_before_shift": True}, {"kernel_conv": 5}],
    "acmix_san_pico": [{}, {"form": "pairwise"}, {"small_input": False}],
    "acmix_pvt_pico": [{}, {"global_pool": "token"}, {"small_input": False}, {"reductions": (1, 1)}],
}
VARIANTS = [
    pytest.param(
        name,
        {"paths": paths, **options},
        id=f"{name}-{paths}-{'-'.join(map(str, options.values()))}",
        marks=pytest.mark.slow if options else (),
    )
    for name in SMALL
    for paths, options in itertools.product(PATHS, OPTIONS[name])
]


NEIGHBOUR_VARIANTS = [
    pytest.param(name, options, id=f"{name}-{'-'.join(map(str, options.values()))}", marks=pytest.mark.slow)
    for name in NEIGHBOURS
    for options in ({}, {"small_input": False}, {"output_stride": 8})
]


@pytest.fixture(params=EVERY)
def network(request: pytest.FixtureRequest) -> nn.Module:
    return create_model(request.param)


def test_the_attributes_that_timm_expects(network: nn.Module) -> None:
    assert network.num_classes == 10 and network.head_hidden_size == network.num_features
    cfg = network.pretrained_cfg
    for key in (
        "first_conv",
        "classifier",
        "pool_size",
        "input_size",
        "mean",
        "std",
        "crop_pct",
        "interpolation",
        "license",
    ):
        assert cfg[key] is not None or (key == "pool_size" and "pvt" in cfg["architecture"]), key
    assert cfg["fixed_input_size"] is False
    parameters = dict(network.named_parameters())
    assert cfg["first_conv"] + ".weight" in parameters and cfg["classifier"] + ".weight" in parameters
    assert network.no_weight_decay() <= parameters.keys()
    assert network.get_classifier() is network.get_submodule(cfg["classifier"])


UNDECAYED = {
    "acmix_resnet_pico": ("alpha", "beta"),
    "acmix_swin_pico": ("alpha", "beta", "relative_position_bias_table"),
    "acmix_san_pico": ("alpha", "beta"),
    "acmix_pvt_pico": ("alpha", "beta", "pos_embed1", "pos_embed2", "cls_token"),
    "bot_resnet_pico": ("rows", "columns"),
    "aa_resnet_pico": ("rows", "columns"),
    "container_pico": ("mix_logit",),
}


@pytest.mark.parametrize("name", EVERY)
def test_parameters_without_weight_decay(name: str) -> None:
    network = create_model(name)
    names = network.no_weight_decay()
    endings = UNDECAYED.get(name, ())
    assert {key.rpartition(".")[2] for key in names} == set(endings)
    assert names == {key for key, _ in network.named_parameters() if key.endswith(endings)}


def test_forward_is_features_and_head(network: nn.Module) -> None:
    x = torch.randn(2, 3, 32, 32)
    network.eval()
    features = network.forward_features(x)
    torch.testing.assert_close(network.forward_head(features), network(x))
    assert network.forward_head(features, pre_logits=True).shape == (2, network.num_features)


def test_reset_classifier(network: nn.Module) -> None:
    network.reset_classifier(7)
    assert network.num_classes == 7 and network(torch.randn(1, 3, 32, 32)).shape == (1, 7)
    network.reset_classifier(0)
    assert network(torch.randn(1, 3, 32, 32)).shape == (1, network.num_features)
    network.reset_classifier(0, "")
    features = network(torch.randn(1, 3, 32, 32))
    pvt_tokens = (1, 1 + 4 * 4, network.num_features)
    assert features.dim() == 4 or features.shape == pvt_tokens


@pytest.mark.parametrize("name", EVERY)
def test_head_hidden_size_is_what_the_classifier_reads(name: str) -> None:
    network = create_model(name).eval()
    for pool in ("token", "avg", "") if "pvt" in name else ("catavgmax", "max", "avg", ""):
        network.reset_classifier(7, pool)
        assert not any(module.training for module in network.modules())
        if pool:
            features = network.forward_features(torch.randn(2, 3, 32, 32))
            assert network.forward_head(features, pre_logits=True).shape == (2, network.head_hidden_size)
            assert network.get_classifier().in_features == network.head_hidden_size
            assert create_model(name, global_pool=pool).head_hidden_size == network.head_hidden_size
            assert network(torch.randn(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("name", EVERY)
def test_other_input_channels_and_classes(name: str) -> None:
    network = create_model(name, in_chans=1, num_classes=3, drop_path_rate=0.5).train()
    assert network(torch.randn(4, 1, 32, 32)).shape == (4, 3)


@pytest.mark.parametrize("name", EVERY)
def test_factory_device_and_dtype(name: str) -> None:
    """timm's create_model passes device= and dtype= on."""
    network = create_model(name, device="meta", dtype=torch.bfloat16)
    assert {t.device.type for t in (*network.parameters(), *network.buffers())} == {"meta"}
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", EVERY)
def test_layer_decay_groups(name: str) -> None:
    """The stem has the lowest learning rate, the head the full one, and no parameter is left out."""
    network = create_model(name)
    groups = param_groups_layer_decay(network, weight_decay=0.05, layer_decay=0.5)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scales) == len(list(network.parameters()))
    assert scales[id(network.get_classifier().weight)] == 1.0
    assert scales[id(next(network.parameters()))] == min(scales.values()) < 0.5


def test_initialisation_keeps_the_shifts() -> None:
    for name in SMALL:
        for module in create_model(name).modules():
            if hasattr(module, "shift_weight"):
                side = module.shift_weight.shape[1]
                assert torch.equal(
                    module.shift_weight.flatten(2), torch.eye(side).expand(len(module.shift_weight), -1, -1)
                )


# ---- gradients


@pytest.mark.parametrize(("name", "options"), VARIANTS + NEIGHBOUR_VARIANTS)
def test_every_parameter_of_every_variant_has_a_gradient(name: str, options: dict[str, Any]) -> None:
    """Otherwise DistributedDataParallel fails, because it waits for every gradient."""
    for kwargs in ({}, {"features_only": True})[: 2 if len(options) <= 1 else 1]:
        network = create_model(name, **options, **kwargs).train()
        out = network(torch.randn(2, 3, 16, 16))
        sum(t.square().sum() for t in (out if isinstance(out, list) else [out])).backward()
        assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []


def test_every_parameter_receives_a_gradient(network: nn.Module) -> None:
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", EVERY)
def test_gradient_checkpointing_gives_the_same_gradients(name: str) -> None:
    x = torch.randn(2, 3, 32, 32)
    network = create_model(name).train()
    torch.manual_seed(1)
    network(x).square().sum().backward()
    plain = {key: p.grad.clone() for key, p in network.named_parameters()}
    network.zero_grad()
    network.set_grad_checkpointing()
    torch.manual_seed(1)
    network(x).square().sum().backward()
    for key, p in network.named_parameters():
        torch.testing.assert_close(p.grad, plain[key], rtol=1e-4, atol=1e-5)


# ---- empty batches


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    ("name", "options"),
    [v for v in VARIANTS if "both" in v.id] + NEIGHBOUR_VARIANTS,  # type: ignore[operator]
)
def test_an_empty_batch_changes_no_statistics(name: str, options: dict[str, Any], training: bool) -> None:
    """An empty batch gives no logits and does not change the statistics of batch norms."""
    network = create_model(name, **options).train(training)
    before = {key: value.clone() for key, value in network.state_dict().items() if "running" in key}
    out = network(torch.zeros(0, 3, 32, 32))
    assert out.shape == (0, 10)
    out.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in network.parameters())
    for key, value in network.state_dict().items():
        assert key not in before or torch.equal(value, before[key]), key
    maps = network.forward_intermediates(torch.zeros(0, 3, 32, 32))[1]
    assert [x.shape[:2] for x in maps] == [(0, info["num_chs"]) for info in network.feature_info]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHALLOW)
def test_compiled_training_with_an_empty_batch(name: str) -> None:
    """A batch with images, and then one without, as some processes get it at the end of an epoch."""
    network = create_model(name, **SHALLOW[name]).train()
    compiled = torch.compile(network, backend="aot_eager")
    for batch in (4, 0):
        network.zero_grad()
        out = compiled(torch.randn(batch, 3, 32, 32))
        assert out.shape == (batch, 10)
        out.square().sum().backward()
        gradients = [parameter.grad for parameter in network.parameters()]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert not any(gradient.any() for gradient in gradients)


# ---- low precision


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_networks_run_in_half_precision(name: str, layout: torch.memory_format) -> None:
    network = create_model(name).eval().to(memory_format=layout)
    x = torch.randn(2, 3, 32, 32).to(memory_format=layout)
    exact = network(x)
    for dtype in (torch.bfloat16, torch.float16):
        out = network.to(dtype)(x.to(dtype))
        assert out.dtype == dtype and (out.float() - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("name", EVERY)
def test_autocast(name: str) -> None:
    """The bfloat16 logits are close to the exact ones, and every parameter gets a float32 gradient."""
    network = create_model(name).train()
    x = torch.randn(16, 3, 32, 32)  # batch norms of few images would make noise of rounding
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = network(x)
    assert out.dtype == torch.bfloat16 and (out.float() - exact).norm() < 0.15 * exact.norm()
    out.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "argument"),
    [("acmix_swin_pico", "depths"), ("acmix_pvt_pico", "depths"), ("acmix_resnet_pico", "layers"),
     ("acmix_san_pico", "layers"), ("container_light", "depths")],
)  # fmt: skip
def test_every_stage_needs_every_argument(name: str, argument: str) -> None:
    with pytest.raises(ValueError, match=rf"expected one value per stage in each of these .*{argument}=\(1,\), "):
        create_model(name, **{argument: (1,)})


@pytest.mark.parametrize("patch_size", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ["acmix_swin_pico", "acmix_pvt_pico"])
def test_the_stated_reductions_are_those_of_the_maps(name: str, patch_size: int) -> None:
    """With `small_input`, odd patches are rounded up to an even number."""
    network = create_model(name, features_only=True, patch_size=patch_size, img_size=96)
    maps = network.eval()(torch.zeros(1, 3, 96, 96))
    assert [96 // found.shape[2] for found in maps] == network.feature_info.reduction()
