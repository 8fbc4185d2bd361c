"""Weight folders of segmenters: built by `create_model`, used to start others, and not trusted."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.weight_folders import damage_last_byte, edit_config, write_segmenter
from yaml import safe_load

from acmix_zoo import create_model
from acmix_zoo.cli.main import main
from acmix_zoo.models.task_kinds import SEGMENTATION
from acmix_zoo.models.task_network import TaskNetwork
from acmix_zoo.weights import check_folder, read_config
from acmix_zoo.weights.create import create_task_network


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_segmenter(tmp_path_factory.mktemp("written") / "segmenter")


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """Return a copy of a segmenter's weight folder that a test may change."""
    return Path(shutil.copytree(written, tmp_path / "segmenter"))


def test_a_folder_states_its_task_and_options(folder: Path) -> None:
    config = read_config(folder)
    assert config["task"] == "segmentation"
    assert config["task_options"] == {"decoder": "unet", "decoder_kwargs": {}}
    card = (folder / "README.md").read_text()
    assert safe_load(card.split("---")[1])["tags"] == ["image-segmentation", "acmix"]
    assert "| Backbone | `acmix_resnet_pico` |" in card and "pip install 'acmix-zoo[segment]'" in card
    assert "| miou | 50.00 % |" in card and "transformers" not in card
    model = create_model(folder)
    assert isinstance(model, TaskNetwork) and list(model.pretrained_cfg["mean"]) == [0.5, 0.5, 0.5]


def test_changed_outputs_are_noticed(folder: Path) -> None:
    assert check_folder(folder) == []
    edit_config(folder, task_options={"decoder": "fpn"})
    assert "does not fit Segmenter" in check_folder(folder)[0]


def test_a_segmenter_starts_another_one(folder: Path) -> None:
    whole = create_model(folder).state_dict()
    same = create_task_network(
        SEGMENTATION, "acmix_resnet_pico", str(folder), num_classes=4, options={"decoder": "unet"}
    )
    assert all(torch.equal(value, whole[name]) for name, value in same.state_dict().items())
    other = create_task_network(
        SEGMENTATION, "acmix_resnet_pico", str(folder), num_classes=7, options={"decoder": "unet"}
    )
    changed = {name for name, value in other.state_dict().items() if not torch.equal(value, whole[name])}
    assert changed and all(name.startswith("net.segmentation_head.") for name in changed)
    with pytest.raises(ValueError, match=r"with \{'decoder': 'unet'\}\. Expected \{'decoder': 'fpn'"):
        create_task_network(SEGMENTATION, "acmix_resnet_pico", str(folder), num_classes=4)


def test_a_segmenter_is_no_classifier(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"a network for semantic segmentation\. Expected weights of a classifier"):
        create_model("acmix_resnet_pico", pretrained=folder)
    assert main(["classify", "image.png", "--model", str(folder)]) == 1
    assert "is a network for semantic segmentation. Expected an image classifier" in capsys.readouterr().err
    assert main(["info", str(folder), "--size", "64"]) == 0
    assert "test miou 50.00 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"task": "os.system"}, r"unknown task 'os\.system'"),
        ({"task": ["segmentation"]}, "unknown task"),
        ({"task_options": {"evil": 1}}, "has no option evil. Expected decoder, decoder_kwargs"),
        ({"task_options": {"decoder": "Linknet"}}, "unknown decoder 'Linknet'"),
        ({"task_options": {"decoder_kwargs": {"encoder_weights": True}}}, "decoder_kwargs has encoder_weights"),
        ({"task_options": {"decoder_kwargs": {"decoder_channels": [10**9]}}}, "is not a plain value"),
        ({"task_options": {"decoder_kwargs": {"decoder_channels": {"a": 1}}}}, "is not a plain value"),
        ({"task_options": []}, "expected a mapping under the key task_options"),
        ({"num_classes": 60_000}, "does not fit Segmenter"),
    ],
    ids=str,
)
def test_impossible_and_dangerous_configs_are_rejected(folder: Path, entries: dict[str, Any], message: str) -> None:
    """Nothing of that size is built, nothing is downloaded, and only a known class is called."""
    edit_config(folder, **entries)
    with pytest.raises(ValueError, match=message):
        create_model(folder)


def test_damaged_weights_are_rejected(folder: Path) -> None:
    damage_last_byte(folder / "model.safetensors")
    with pytest.raises(ValueError, match="is changed or damaged"):
        create_model(folder)


def test_only_the_number_of_classes_may_differ(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be built with in_chans\. Expected at most num_classes"):
        create_model(folder, in_chans=1)
