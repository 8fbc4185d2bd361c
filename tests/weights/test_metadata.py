"""Every field of every pretrained_cfg and of every shipped config.json agrees with the network that it describes."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from support.networks import deeper_are_slow
from timm.data import resolve_data_config
from timm.data.transforms_factory import create_transform
from timm.models import PretrainedCfg, get_arch_pretrained_cfgs
from torch import nn

import acmix_zoo
from acmix_zoo.weights import check_folder
from acmix_zoo.weights.card import render_card
from acmix_zoo.weights.folder_writer import _pool_size
from acmix_zoo.weights.shipped import shipped_classifiers

FOLDERS = list(shipped_classifiers().values())  # timm does not build the others
CFGS: dict[str, PretrainedCfg] = {
    key: cfg for name in acmix_zoo.list_models() for key, cfg in get_arch_pretrained_cfgs(name).items()
}
# Fields that describe where weights are stored or how they were produced, not the network. Other tests check them.
SOURCE = {"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "architecture", "tag", "custom_load"}
TEXT = {"license", "description", "origin_url", "paper_name", "paper_ids", "notes", "label_descriptions"}
NETWORK = {
    "input_size", "test_input_size", "min_input_size", "fixed_input_size", "interpolation", "crop_pct", "test_crop_pct",
    "crop_mode", "mean", "std", "num_classes", "label_offset", "label_names", "pool_size", "test_pool_size",
    "first_conv", "classifier",
}  # fmt: skip


def to_tuple(value: Any) -> Any:
    """Convert a list of JSON back to a tuple."""
    return tuple(value) if isinstance(value, list) else value


def assert_describes(cfg: dict[str, Any], network: nn.Module) -> None:
    """Compare a cfg with a network that was built from it."""
    state = network.state_dict()
    channels, height, width = cfg["input_size"]
    assert network.in_chans == channels and len(cfg["mean"]) == len(cfg["std"]) == channels
    assert all(0 <= m <= 1 for m in cfg["mean"]) and all(0 < s <= 1 for s in cfg["std"])
    assert 0.5 <= cfg["crop_pct"] <= 1 and cfg["crop_mode"] in ("center", "squash", "border")
    assert cfg["interpolation"] in ("bicubic", "bilinear")
    # The first convolution reads the image, and the classifier gives the classes.
    assert state[f"{cfg['first_conv']}.weight"].shape[1] == channels
    assert next(key for key, value in state.items() if value.dim() == 4) == f"{cfg['first_conv']}.weight"
    assert cfg["num_classes"] == network.num_classes == len(state[f"{cfg['classifier']}.weight"])
    assert network.get_classifier() is network.get_submodule(cfg["classifier"])
    labels = cfg.get("label_names")
    assert labels is None or len(set(labels)) == len(labels) == network.num_classes
    # pool_size is the size of the last feature map, and images of any size are accepted.
    assert cfg["pool_size"] == _pool_size(network, (channels, height, width))
    if cfg["pool_size"]:
        reduction = network.feature_info[-1]["reduction"]
        assert cfg["pool_size"] == (math.ceil(height / reduction), math.ceil(width / reduction))
    assert cfg["fixed_input_size"] is False
    assert network(torch.empty(2, channels, height + 32, width - 8, device="meta")).shape == (2, network.num_classes)
    # These features do not exist in our networks.
    for key in ("test_input_size", "min_input_size", "test_crop_pct", "test_pool_size", "label_offset"):
        assert cfg.get(key) is None, key


def test_every_field_of_a_cfg_is_checked() -> None:
    """If a newer timm adds a field, add it to one of the sets above and check it."""
    assert {field.name for field in dataclasses.fields(PretrainedCfg)} <= SOURCE | TEXT | NETWORK


@pytest.mark.parametrize("name", deeper_are_slow(CFGS))  # their cfg is that of the smallest network
def test_registered_cfgs_describe_their_networks(name: str) -> None:
    cfg = CFGS[name].to_dict()
    with torch.device("meta"):
        network = acmix_zoo.create_model(name).eval()
    for key, value in network.pretrained_cfg.items():
        if key not in SOURCE:
            assert value == cfg.get(key), key
    assert_describes({**dataclasses.asdict(CFGS[name])}, network)
    architecture, _, tag = name.partition(".")
    assert network.pretrained_cfg["architecture"] == architecture and (cfg.get("tag") or "") == tag
    terms = "research use only, because the weights were trained on ImageNet images"
    assert cfg.get("license") == {"official_in1k": None, "tiny_imagenet": terms}.get(tag, "mit")
    sources = {key for key in ("url", "file", "hf_hub_id") if cfg.get(key)}
    by_tag = {"": set(), "swin_in1k": {"hf_hub_id"}, "official_in1k": {"url", "file"}}
    assert sources == by_tag.get(tag, {"file"})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_shipped_configs_describe_their_networks(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    cfg, record = config["pretrained_cfg"], config["acmix_zoo"]
    network = acmix_zoo.create_model(folder)
    assert config["architecture"] == network.pretrained_cfg["architecture"]
    assert config["num_classes"] == cfg["num_classes"] == network.num_classes
    assert config["num_features"] == network.num_features
    assert "global_pool" not in config or config["global_pool"] == network.global_pool
    assert config["label_names"] == network.pretrained_cfg["label_names"] and "label_names" not in cfg  # stated once
    assert record["name"] == folder.name == f"{config['architecture']}.{cfg['tag']}" and record["tag"] == cfg["tag"]
    as_read = {**cfg, "label_names": config["label_names"]}
    assert_describes({key: to_tuple(value) for key, value in as_read.items()}, network.to("meta"))
    assert check_folder(folder) == []  # sha256, file_size, params, macs, logits
    assert (folder / "README.md").read_text(encoding="utf-8") == render_card(config)
    assert "import acmix_zoo  # registers" in render_card(config)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_timm_reads_shipped_folders(folder: Path) -> None:
    """timm's reader of folders gives the same network as the registered name and as our reader."""
    expected = acmix_zoo.create_model(folder).eval()
    from_folder = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    by_name = timm.create_model(folder.name, pretrained=True).eval()
    x = torch.randn(2, *expected.pretrained_cfg["input_size"])
    with torch.no_grad():
        for network in (from_folder, by_name):
            assert torch.equal(network(x), expected(x))
            for key in NETWORK:
                assert to_tuple(network.pretrained_cfg.get(key)) == to_tuple(expected.pretrained_cfg.get(key)), key
    transform = create_transform(**resolve_data_config(pretrained_cfg=from_folder.pretrained_cfg, model=from_folder))
    assert transform(Image.new("RGB", (99, 80))).shape == torch.Size(expected.pretrained_cfg["input_size"])
