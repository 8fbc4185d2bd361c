"""The networks: the authors' logits and parameter counts, and timm's contract."""

from __future__ import annotations

import pytest
import timm
import torch
from support.golden_networks import GOLDEN, golden_input, golden_state
from timm.models import create_model
from timm.models._features_fx import FeatureGraphNet
from timm.optim import param_groups_layer_decay
from torch._dynamo.testing import CompileCounterWithBackend

import acmix_zoo
from acmix_zoo import load_weights
from acmix_zoo.models import ACmixResNet, ACmixSwin

SMALL = ["acmix_resnet_pico", "acmix_swin_pico", "acmix_san_pico", "acmix_pvt_pico"]
COUNTS = {
    "acmix_resnet26": 10_487_816,
    "acmix_resnet38": 14_410_896,
    "acmix_resnet50": 18_333_976,
    "acmix_swin_t": 28_649_908,
    "acmix_swin_s": 50_345_080,
    "san10_pairwise": 10_531_848,
    "san15_pairwise": 14_065_436,
    "san19_pairwise": 17_596_156,
    "san10_patchwise": 11_841_124,
    "san15_patchwise": 16_181_310,
    "san19_patchwise": 20_518_470,
    "acmix_san10": 12_125_988,
    "acmix_san15": 16_642_466,
    "acmix_san19": 21_155_754,
    "pvt_tiny": 13_229_288,
    "pvt_small": 24_485_864,
    "acmix_pvt_t": 13_396_128,
    "acmix_pvt_s": 24_824_755,
}


@pytest.mark.parametrize("entry", GOLDEN, ids=[entry["name"] for entry in GOLDEN])
def test_logits_of_the_authors_networks(entry):
    config = {key: tuple(value) if isinstance(value, list) else value for key, value in entry["config"].items()}
    if entry["family"] == "resnet":
        width = config.pop("width_per_group", 64)
        network = ACmixResNet(base_width=width, **config).eval()
    else:
        network = ACmixSwin(**config).eval()
    load_weights(network, golden_state(entry))  # strict: every key finds its place, none of ours stays empty
    x = golden_input(entry)
    with torch.no_grad():
        logits = network(x)
    expected = torch.tensor(entry["logits"])
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    with torch.device("meta"):
        network = create_model(name)
    assert sum(p.numel() for p in network.parameters()) == COUNTS[name]


def test_swin_b_has_the_widths_of_swin_b():
    with torch.device("meta"):
        ours, plain = create_model("acmix_swin_b"), create_model("swin_base_patch4_window7_224")
    assert [info["num_chs"] for info in ours.feature_info] == [info["num_chs"] for info in plain.feature_info]
    extra = sum(p.numel() for n, p in ours.named_parameters() if n.rpartition(".")[2] in
                ("fc_weight", "fc_bias", "shift_weight", "alpha", "beta"))  # fmt: skip
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in plain.parameters()) + extra


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_are_small(name):
    count = sum(p.numel() for p in create_model(name).parameters())
    assert 300_000 <= count <= 1_000_000


@pytest.mark.parametrize("size", [(96, 96), (65, 97)])
def test_resnet_on_small_and_odd_images(size):
    """Its last maps are 3×3 and smaller than the attention window, where the released network crashes."""
    network = create_model("acmix_resnet26", num_classes=5).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, *size)).isfinite().all()


# ---- timm's contract


@pytest.fixture(params=SMALL)
def network(request):
    return create_model(request.param)


def test_attributes(network):
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


def test_forward_parts(network):
    x = torch.randn(2, 3, 32, 32)
    network.eval()
    features = network.forward_features(x)
    torch.testing.assert_close(network.forward_head(features), network(x))
    assert network.forward_head(features, pre_logits=True).shape == (2, network.num_features)


def test_every_parameter_receives_a_gradient(network):
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_reset_classifier(network):
    network.reset_classifier(7)
    assert network.num_classes == 7 and network(torch.randn(1, 3, 32, 32)).shape == (1, 7)
    network.reset_classifier(0)
    assert network(torch.randn(1, 3, 32, 32)).shape == (1, network.num_features)
    network.reset_classifier(0, "")
    whole = network(torch.randn(1, 3, 32, 32))
    assert whole.dim() == 4 or whole.shape == (1, 1 + 4 * 4, network.num_features)  # a map, or PVT's tokens


@pytest.mark.parametrize("name", SMALL)
def test_features_only(name):
    features = create_model(name, features_only=True).eval()
    whole = create_model(name).eval()
    x = torch.randn(2, 3, 32, 48)
    maps = features(x)
    assert len(maps) == len(whole.feature_info)
    for map_, channels, reduction in zip(
        maps, features.feature_info.channels(), features.feature_info.reduction(), strict=True
    ):
        assert map_.shape == (2, channels, 32 // reduction, 48 // reduction)  # NCHW
    last = create_model(name, features_only=True, out_indices=(-1,))
    assert [tuple(m.shape) for m in last.eval()(x)] == [tuple(maps[-1].shape)]


@pytest.mark.parametrize("name", SMALL)
def test_intermediates_and_pruning(name):
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


@pytest.mark.parametrize("name", SMALL)
def test_fx_features(name):
    """timm's tracer walks through the whole network and keeps our layers whole."""
    network = create_model(name).eval()
    graph = FeatureGraphNet(network, out_indices=(0, 1), output_fmt=getattr(network, "output_fmt", "NCHW"))
    x = torch.randn(2, 3, 32, 32)
    maps = network.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
    for traced, map_ in zip(graph(x), maps, strict=True):
        if traced.dim() == 3:  # PVT's tokens, in the last stage behind the class token
            traced = traced[:, -map_.shape[2:].numel() :].unflatten(1, map_.shape[2:])
        torch.testing.assert_close(traced if traced.shape == map_.shape else traced.permute(0, 3, 1, 2), map_)


@pytest.mark.parametrize("name", SMALL)
def test_gradient_checkpointing_changes_nothing(name):
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


@pytest.mark.parametrize("name", SMALL)
def test_channels_and_classes(name):
    network = create_model(name, in_chans=1, num_classes=3, drop_path_rate=0.5).train()
    assert network(torch.randn(4, 1, 32, 32)).shape == (4, 3)


@pytest.mark.parametrize("name", SMALL)
def test_layer_groups(name):
    """Layer decay: the stem learns slowest, the head at the full rate, and no parameter is left out."""
    network = create_model(name)
    groups = param_groups_layer_decay(network, weight_decay=0.05, layer_decay=0.5)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scales) == len(list(network.parameters()))
    assert scales[id(network.get_classifier().weight)] == 1.0
    assert scales[id(next(network.parameters()))] == min(scales.values()) < 0.5


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_low_precision(name, layout):
    network = create_model(name).eval().to(memory_format=layout)
    x = torch.randn(2, 3, 32, 32).to(memory_format=layout)
    exact = network(x)
    for dtype in (torch.bfloat16, torch.float16):
        out = network.to(dtype)(x.to(dtype))
        assert out.dtype == dtype and (out.float() - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("name", SMALL)
def test_autocast(name):
    """Mixed precision: bf16 logits near the exact ones, float32 gradients for every parameter."""
    network = create_model(name).train()
    x = torch.randn(16, 3, 32, 32)  # batch norms of few images would make noise of rounding
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = network(x)
    assert out.dtype == torch.bfloat16 and (out.float() - exact).norm() < 0.15 * exact.norm()
    out.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_compile_without_graph_breaks(name):
    network = create_model(name).eval()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    for size in (32, 40):
        x = torch.randn(2, 3, size, size)
        torch.testing.assert_close(compiled(x), network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_one_graph_for_many_sizes(name):
    """Once a size has changed, sizes are symbols; whether windows or tiles fit the map makes no new graph."""
    network = create_model(name).eval()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend=counter)
    for height, width in ((100, 132), (128, 96), (125, 100), (112, 112), (120, 135)):
        x = torch.randn(2, 3, height, width)
        torch.testing.assert_close(compiled(x), network(x), rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("acmix_swin_t", {"depths": (1, 2), "num_heads": (3, 6)}),
        ("acmix_resnet26", {"layers": (1, 1, 1, 1)}),
        ("acmix_san10", {"layers": (1, 1, 1, 1, 1)}),
        ("acmix_pvt_t", {"depths": (1, 1, 1, 1)}),
    ],
)
def test_inductor_at_known_sizes(name, kwargs):
    """The first stages of the large networks, for which inductor once failed, and once wrote past a map's end."""
    network = create_model(name, **kwargs).eval()
    compiled = torch.compile(network, fullgraph=True)
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_export(name):
    network = create_model(name).eval()
    exported = torch.export.export(network, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim("b")},))
    x = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(exported.module()(x), network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_onnx(name):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = create_model(name).eval()
    batch = ({0: torch.export.Dim("b")},)
    program = torch.onnx.export(network, (torch.randn(2, 3, 32, 32),), dynamic_shapes=batch, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    x = torch.randn(3, 3, 32, 32)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), network(x), rtol=1e-4, atol=1e-5)


# ---- Swin: any image size, the window, the order of convolution and shift


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (33, 47), (8, 8), (2, 2), (1, 5)])
def test_swin_takes_any_size(size):
    network = create_model("acmix_swin_pico").eval()
    assert network(torch.randn(1, 3, *size)).shape == (1, 10)


def test_swin_made_for_another_size():
    network = create_model("acmix_swin_pico", img_size=(48, 64)).eval()  # maps of 12×16 and 6×8
    assert [tuple(stage.blocks[1].attn.shift) for stage in network.layers] == [(2, 2), (2, 2)]
    network.set_input_size((32, 16))  # maps of 8×4 and 4×2: the last one is smaller than the window
    assert [tuple(stage.blocks[1].attn.window) for stage in network.layers] == [(4, 4), (4, 2)]
    assert [tuple(stage.blocks[1].attn.shift) for stage in network.layers] == [(2, 0), (0, 0)]
    assert network(torch.randn(1, 3, 32, 16)).shape == (1, 10)


def test_swin_position_tables_are_resized_not_lost(tmp_path):
    """Weights of window 4 in a network of window 8: the table keeps its centre and its shape."""
    source = create_model("acmix_swin_pico")
    torch.save(source.state_dict(), tmp_path / "w4.pth")
    target = load_weights(create_model("acmix_swin_pico", img_size=64, window_size=8), tmp_path / "w4.pth")
    small = source.layers[0].blocks[0].attn.relative_position_bias_table.view(7, 7, 2)
    large = target.layers[0].blocks[0].attn.relative_position_bias_table.view(15, 15, 2)
    torch.testing.assert_close(large[7, 7], small[3, 3], rtol=0.05, atol=0.01)
    torch.testing.assert_close(
        large[[0, 0, -1, -1], [0, -1, 0, -1]], small[[0, 0, -1, -1], [0, -1, 0, -1]], rtol=0.3, atol=0.03
    )
    assert not [key for key in target.state_dict() if "index" in key or "mask" in key]  # rebuilt, never stored


def test_patch_size_can_change():
    network = create_model("acmix_swin_pico")
    network.set_input_size(img_size=64, patch_size=8)
    assert [info["reduction"] for info in network.feature_info] == [8, 16]
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 10)


def test_convolution_before_the_shift_is_an_option_and_sees_no_seam():
    """As released, the convolution of a shifted block mixes the two sides of the image; the option does not."""
    for before, mixes in ((False, True), (True, False)):
        network = create_model("acmix_swin_pico", conv_before_shift=before, paths="convolution").eval()
        shifted = network.layers[0].blocks[1].attn
        x = torch.randn(1, 8, 8, 64, requires_grad=True)
        shifted(x)[0, 0, 3].sum().backward()  # a token in the first row: does it see the last row?
        assert bool(x.grad[0, -1].abs().sum() > 0) is mixes
    assert create_model("acmix_swin_pico").layers[0].blocks[1].attn.conv_before_shift is False


def test_shift_start_survives_the_networks():
    for name in SMALL:
        for module in create_model(name).modules():
            if hasattr(module, "shift_weight"):
                side = module.shift_weight.shape[1]
                assert torch.equal(
                    module.shift_weight.flatten(2), torch.eye(side).expand(len(module.shift_weight), -1, -1)
                )


def test_names_are_timm_s():
    registered = set(timm.list_models("acmix*")) | {name for name in COUNTS if not name.startswith("acmix")}
    assert {*COUNTS, *SMALL, "acmix_swin_b"} == registered
    assert set(acmix_zoo.list_models()) == registered
