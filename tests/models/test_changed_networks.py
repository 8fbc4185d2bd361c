"""Weight folders of networks that were changed after they were built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from acmix_zoo import create_model
from acmix_zoo.weights import check_folder, read_config, write_folder


def _resized(network: nn.Module) -> None:
    network.set_input_size(img_size=(48, 64), patch_size=8, window_size=2)


def _unchanged(network: nn.Module) -> None:
    pass


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("name", "kwargs", "pool", "change"),
    [
        ("acmix_swin_pico", {}, "catavgmax", _resized),
        ("acmix_resnet_pico", {}, "catavgmax", _unchanged),
        ("acmix_resnet_pico", {"output_stride": 8}, None, _unchanged),
        ("acmix_san_pico", {"in_chans": 4}, "catavgmax", _unchanged),
        ("acmix_pvt_pico", {"img_size": 64}, "token", _unchanged),
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


def test_wrong_input_channels_are_rejected(tmp_path: Path) -> None:
    network = create_model("acmix_resnet_pico", in_chans=1)
    options: dict[str, Any] = {"architecture": "acmix_resnet_pico", "record": {}, "example": torch.randn(1, 1, 32, 32)}
    for wrong in ({"input_size": (3, 32, 32)}, {"mean": (0.5, 0.5, 0.5)}):
        with pytest.raises(ValueError, match="1 input channels"):
            write_folder(tmp_path / "w", network, pretrained_cfg=wrong, **options)
