"""A written weight folder has the right files, and rebuilds the network."""

import os
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from support.weight_folders import (
    PRETRAINED_CFG,
    RECORD,
    file_contents,
    pico,
    write_weights,
)
from torch import nn
from yaml import safe_load

import acmix_zoo
from acmix_zoo.weights import check_folder, create_model, read_config
from acmix_zoo.weights.card import CardPicture, render_card


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", ["acmix_resnet_pico", "acmix_swin_pico"])
def test_a_written_network_is_rebuilt(tmp_path: Path, name: str, half: bool) -> None:
    model = pico(name).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folder = write_weights(tmp_path / "deep" / "weights", model, name, half=half)

    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert sorted(file_contents(folder)) == [
        ".eval_results/zalando-datasets_fashion_mnist.yaml",
        *("README.md", "config.json", "model.safetensors", "test/example.safetensors"),
    ]
    assert os.listdir(folder.parent) == ["weights"]  # no temporary files are left
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    assert {v.dtype for v in stored.values() if v.is_floating_point()} == {torch.float16 if half else torch.float32}
    assert check_folder(folder) == []

    for again in (create_model(folder), create_model(name, folder), timm.create_model(f"local-dir:{folder}", True)):
        for key, value in again.state_dict().items():
            assert value.dtype == before[key].dtype
            assert torch.equal(value, before[key].to(torch.float16).to(value.dtype) if half else before[key]), key
    example = safetensors.torch.load_file(folder / "test" / "example.safetensors")
    twin = create_model(folder).eval()
    assert example["logits"].std() > 1e-3  # logits of zero would also agree
    torch.testing.assert_close(twin(example["input"]), example["logits"], rtol=1e-4, atol=1e-5)


def test_config_and_card_have_the_record(tmp_path: Path) -> None:
    labels = [f"shape {i}" for i in range(5)]
    folder = write_weights(
        tmp_path / "w", pico(num_classes=5), pretrained_cfg={**PRETRAINED_CFG, "label_names": labels}
    )
    config = read_config(folder)
    record = config["acmix_zoo"]
    weights = (folder / "model.safetensors").read_bytes()
    assert (config["architecture"], config["num_classes"], config["num_features"]) == ("acmix_resnet_pico", 5, 512)
    assert config["pretrained_cfg"]["first_conv"] == timm.get_pretrained_cfg("acmix_resnet_pico").first_conv
    assert config["pretrained_cfg"]["label_names"] == labels
    assert config["pretrained_cfg"]["num_classes"] == 5 and "file" not in config["pretrained_cfg"]
    assert timm.models.PretrainedCfg(**config["pretrained_cfg"]).crop_pct == 1.0  # timm reads every key
    assert record["file_size"] == len(weights) and record["version"] == acmix_zoo.__version__
    assert record["params"] == sum(p.numel() for p in create_model(folder).parameters())
    assert {key: record[key] for key in RECORD} == RECORD
    assert record["name"] == "acmix_resnet_pico.shapes" and record["environment"]["torch"] == torch.__version__

    card = (folder / "README.md").read_text()
    assert card == render_card(config)  # only needs config.json
    for text in ("library_name: acmix_zoo", "license: mit", "- zalando-datasets/fashion_mnist", "93.12 %", "4 shape 4"):
        assert text in card
    assert "| Data | name fashion_mnist, fingerprint ca3ab2a37f845e1b, splits (train 54000, test 10000) |" in card
    assert "shapes.yaml &#124; tee log" in card  # an unescaped bar would end the table cell
    from huggingface_hub import parse_eval_result_entries

    [entry] = parse_eval_result_entries(safe_load(next((folder / ".eval_results").iterdir()).read_text()))
    assert (entry.dataset_id, entry.value) == ("zalando-datasets/fashion_mnist", 0.93125)
    assert safe_load(card.split("---")[1])["tags"] == ["image-classification", "timm", "acmix"]


def test_pictures_are_in_the_folder_and_on_the_card(tmp_path: Path) -> None:
    picture = CardPicture("curves.png", "Loss of *every* epoch", b"\x89PNG")
    folder = write_weights(tmp_path / "w", pictures=[picture])
    config, card = read_config(folder), (folder / "README.md").read_text()
    assert (folder / "pictures/curves.png").read_bytes() == picture.content and check_folder(folder) == []
    assert config["acmix_zoo"]["pictures"] == {"curves.png": picture.caption} and card == render_card(config)
    assert "\n![Loss of &#42;every&#42; epoch](pictures/curves.png)\n" in card


def test_arguments_of_the_architecture_are_kept(tmp_path: Path) -> None:
    model = pico(in_chans=1, layers=(1, 2, 1), drop_path_rate=0.2)
    cfg = {"tag": "grey", "input_size": (1, 28, 28), "mean": (0.5,), "std": (0.5,)}
    folder = write_weights(tmp_path / "w", model, pretrained_cfg=cfg, example=torch.randn(2, 1, 28, 28))
    assert read_config(folder)["model_args"] == {"in_chans": 1, "layers": [1, 2, 1]}  # drop path is for training
    assert check_folder(folder) == []
    with pytest.raises(ValueError, match="plain values only"):
        write_weights(tmp_path / "v", timm.create_model("test_resnet", act_layer=nn.SiLU), "test_resnet")


@pytest.mark.slow
def test_float64_channels_last_and_compiled_networks_are_written(tmp_path: Path) -> None:
    for i, model in enumerate((pico().double(), pico().to(memory_format=torch.channels_last), torch.compile(pico()))):
        assert check_folder(write_weights(tmp_path / str(i), model)) == []


def test_networks_that_cannot_be_rebuilt_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown fields colour, mood\. .*Put them into the record instead"):
        write_weights(tmp_path / "w", pretrained_cfg={**PRETRAINED_CFG, "mood": 1, "colour": 2})
    with pytest.raises(ValueError, match=r"there are 2 label_names\. Expected 10"):
        write_weights(tmp_path / "w", pretrained_cfg={**PRETRAINED_CFG, "label_names": ["a", "b"]})
    with pytest.raises(ValueError, match="would not verify"):  # config.json would not build this network
        write_weights(tmp_path / "w", pico(num_classes=10), "acmix_swin_pico")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(FileExistsError, match="not a weight folder"):
        write_weights(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    assert os.listdir(tmp_path) == ["mine"]
