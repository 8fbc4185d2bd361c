"""FLOP counters of other packages: thop (used by Ultralytics) counts by the definition; fvcore and TensorBoard run."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import acmix_zoo
from acmix_zoo import ACmix2d
from acmix_zoo.layers import PairwiseSAM, PatchwiseSAM
from acmix_zoo.layers.complexity import complexity

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

NETWORKS = ("acmix_resnet_pico", "acmix_swin_pico", "acmix_pvt_pico", "acmix_san_pico")
LAYERS = {
    "ACmix2d": (lambda: ACmix2d(16, 16), 16),
    "ACmix2d, stride 2": (lambda: ACmix2d(16, 32, stride=2), 16),
    "PairwiseSAM": (lambda: PairwiseSAM(32, 3), 32),
    "PatchwiseSAM": (lambda: PatchwiseSAM(32, 3, paths="both"), 32),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("size", [(12, 12), (64, 48)])  # these sizes use different backends with different arithmetic
def test_thop_counts_by_the_definition(name: str, size: tuple[int, int]) -> None:
    thop = pytest.importorskip("thop")
    build, channels = LAYERS[name]
    layer, x = build(), torch.randn(1, channels, *size)
    for profile in (thop.profile, thop.profile_origin):
        macs, params = profile(nn.Sequential(layer), (x,), verbose=False)
        assert macs == layer.definition_macs(x)
        assert params == sum(p.numel() for p in layer.parameters())
    model = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), layer, layer) if channels == 16 else layer
    if channels == 16 and layer.out_channels == 16:  # two calls of one layer count twice
        macs, _ = thop.profile(model, (x,), verbose=False)
        assert macs == 2 * layer.definition_macs(x) + channels**2 * size[0] * size[1]


def test_ultralytics_prints_the_right_gflops() -> None:
    """It profiles images of 32 pixels and extrapolates to 640."""
    pytest.importorskip("thop")
    torch_utils = pytest.importorskip("ultralytics.utils.torch_utils")
    model = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), ACmix2d(16, 16), ACmix2d(16, 16, stride=2))
    found = torch_utils.get_flops(model, 640) / 2 * 1e9
    assert found == pytest.approx(complexity(model, (3, 640, 640)).macs, rel=0.02)


@pytest.mark.parametrize("name", NETWORKS)
def test_fvcore_runs(name: str) -> None:
    """fvcore counts the operators of a trace, but not the sums of products in our traced attention. The exact number is
    therefore unknown: at most the definition, and at least the convolutions and matrix products."""
    fvcore = pytest.importorskip("fvcore.nn")
    model = acmix_zoo.create_model(name).eval()
    analysis = fvcore.FlopCountAnalysis(model, torch.randn(1, 3, 32, 32))
    assert 0.3 < analysis.total() / complexity(model).macs < 1.1


@pytest.mark.parametrize("name", NETWORKS)
def test_tensorboard_draws_the_graph(name: str, tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    with tensorboard.SummaryWriter(tmp_path) as writer:
        writer.add_graph(acmix_zoo.create_model(name).eval(), torch.randn(1, 3, 32, 32))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) > 10_000


@pytest.mark.parametrize("name", NETWORKS)
def test_torchinfo(name: str) -> None:
    torchinfo = pytest.importorskip("torchinfo")
    model = acmix_zoo.create_model(name)
    with warnings.catch_warnings():
        found = torchinfo.summary(model, input_size=(1, 3, 32, 32), verbose=0)
    assert found.total_params == sum(p.numel() for p in model.parameters())
    print(name, found.total_mult_adds / complexity(model).macs)
