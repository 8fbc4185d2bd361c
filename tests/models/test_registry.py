"""Weights that are registered for a network which timm already knows."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import register_model

from acmix_zoo.models import acmix_pvt
from acmix_zoo.models.registry import register_weights

NAME = "acmix_pvt_pico"


class LazyFile(os.PathLike[str]):
    """A path that is only known when somebody asks for it. timm copies its configurations, but not functions."""

    def __init__(self, resolve: Callable[[], Path]) -> None:
        self.resolve = resolve

    def __fspath__(self) -> str:
        return str(self.resolve())


@pytest.fixture(autouse=True)
def registration() -> Iterator[None]:
    """Register the network as it was when a test is over."""
    before = copy.deepcopy(acmix_pvt.default_cfgs[NAME])
    yield
    acmix_pvt.default_cfgs[NAME] = before
    with warnings.catch_warnings(action="ignore"):
        register_model(acmix_pvt.acmix_pvt_pico)


def test_a_file_is_resolved_when_the_weights_are_loaded(tmp_path: Path) -> None:
    asked = []

    def resolve() -> Path:
        asked.append(True)
        save_file(source.state_dict(), tmp_path / "model.safetensors")
        return tmp_path / "model.safetensors"

    source = timm.create_model(NAME)
    register_weights({f"{NAME}.lazy": {"file": LazyFile(resolve), "crop_pct": 0.5}})
    assert f"{NAME}.lazy" in timm.list_models(f"{NAME}*", pretrained=True) and not asked
    timm.create_model(f"{NAME}.lazy")
    assert not asked
    model = timm.create_model(f"{NAME}.lazy", pretrained=True)
    assert asked == [True] and torch.equal(model.cls_token, source.cls_token)
    assert model.pretrained_cfg["file"] == str(tmp_path / "model.safetensors") and isinstance(
        model.pretrained_cfg["file"], str
    )
    assert model.pretrained_cfg["crop_pct"] == 0.5 and model.pretrained_cfg["input_size"] == (3, 32, 32)


def test_errors_of_the_file_reach_the_user() -> None:
    def fail() -> Path:
        raise OSError("the download failed")

    register_weights({f"{NAME}.lazy": {"file": LazyFile(fail)}})
    with pytest.raises(OSError, match="the download failed"):
        timm.create_model(f"{NAME}.lazy", pretrained=True)


def test_new_tags_come_first_and_change_only_what_they_state() -> None:
    before = set(timm.list_models(f"{NAME}*", pretrained=True))
    register_weights({f"{NAME}.first": {"file": "first"}, f"{NAME}.second": {"file": "second"}})
    assert timm.get_pretrained_cfg(NAME).tag == "first"
    register_weights({f"{NAME}.second": {"crop_pct": 0.5}})
    second = timm.get_pretrained_cfg(f"{NAME}.second")
    assert timm.get_pretrained_cfg(NAME).tag == "second" and (second.file, second.crop_pct) == ("second", 0.5)
    assert set(timm.list_models(f"{NAME}*", pretrained=True)) == before | {f"{NAME}.first", f"{NAME}.second"}
    assert timm.is_model(NAME) and timm.list_models(NAME) == [NAME]
