"""The networks of the paper: the authors' logits, parameter counts, and the names that timm knows."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from support.golden_networks import GOLDEN, golden_input, golden_state
from support.networks import NEIGHBOURS, SMALL
from timm.models import create_model

import acmix_zoo
from acmix_zoo import load_weights
from acmix_zoo.models import ACmixResNet, ACmixSwin

NANO = ["acmix_resnet_nano", "acmix_swin_nano"]
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
    "aa_resnet50": 25_809_392,
    "container_light": 20_633_643,
}


@pytest.mark.parametrize("entry", GOLDEN, ids=[entry["name"] for entry in GOLDEN])
def test_logits_equal_those_of_the_authors_code(entry: dict[str, Any]) -> None:
    config = {key: tuple(value) if isinstance(value, list) else value for key, value in entry["config"].items()}
    if entry["family"] == "resnet":
        width = config.pop("width_per_group", 64)
        network = ACmixResNet(base_width=width, **config).eval()
    else:
        network = ACmixSwin(**config).eval()
    load_weights(network, golden_state(entry))  # strict: all keys have to match
    x = golden_input(entry)
    with torch.no_grad():
        logits = network(x)
    expected = torch.tensor(entry["logits"])
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        network = create_model(name)
    assert sum(p.numel() for p in network.parameters()) == COUNTS[name]


def test_swin_b_has_the_widths_of_swin_b() -> None:
    with torch.device("meta"):
        ours, plain = create_model("acmix_swin_b"), create_model("swin_base_patch4_window7_224")
    assert [info["num_chs"] for info in ours.feature_info] == [info["num_chs"] for info in plain.feature_info]
    extra = sum(p.numel() for n, p in ours.named_parameters() if n.rpartition(".")[2] in
                ("fc_weight", "fc_bias", "shift_weight", "alpha", "beta"))  # fmt: skip
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in plain.parameters()) + extra


@pytest.mark.parametrize("name", [*SMALL, *NEIGHBOURS])
def test_networks_for_small_images_are_small(name: str) -> None:
    count = sum(p.numel() for p in create_model(name).parameters())
    assert 300_000 <= count <= 1_000_000


@pytest.mark.parametrize("name", NANO)
def test_networks_for_medium_images_have_at_most_3_million_parameters(name: str) -> None:
    assert 2_000_000 <= sum(p.numel() for p in create_model(name).parameters()) <= 3_000_000


def test_all_networks_are_registered_with_timm() -> None:
    registered = {*COUNTS, *SMALL, *NEIGHBOURS, *NANO, "acmix_swin_b"}
    assert registered <= set(timm.list_models())
    assert set(acmix_zoo.list_models()) == registered
