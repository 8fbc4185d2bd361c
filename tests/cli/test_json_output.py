"""`--json` of list, info and verify: the same facts as in the text, for programs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.commands import run_command
from support.weight_folders import SHIPPED, damage_last_byte

from acmix_zoo.cli.main import main

NAME = SHIPPED.name


def read(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    return json.loads(run_command(capsys, *arguments, "--json"))


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    (network,) = read(capsys, "list", "acmix_swin_t")
    assert network == {
        "name": "acmix_swin_t", "parameters": 28649908, "macs": network["macs"], "input": [3, 224, 224],
        "published": {"parameters": "30M", "macs": "4.6G", "top1": 81.9}, "is_reconstruction": False,
        "weights": ["official_in1k", "swin_in1k"],
    }  # fmt: skip
    assert {entry["name"] for entry in read(capsys, "list", "*pico")} >= {"acmix_resnet_pico", "resnet_pico"}
    (weights,) = read(capsys, "list", NAME, "--pretrained")
    where = {"metric": "accuracy", "dataset": "fashion_mnist", "split": "test"}
    assert weights["score"] == {**where, "value": pytest.approx(0.9387)} and weights["parameters"] == 653054
    assert weights["from"] == "shipped"
    assert all(entry["score"] is None for entry in read(capsys, "list", "*.swin_in1k", "--pretrained"))


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    found = read(capsys, "info", NAME)
    assert found["parameters"] == 653054 and found["input"] == [3, 32, 32] and found["license"] == "mit"
    assert found["class_names"][-1] == "Ankle boot" and found["weights"] == NAME
    assert {metric["split"] for metric in found["metrics"]} == {"val", "test"}
    assert all(layer["parameters"][0] > 0 < layer["macs"][1] for layer in found["stages"])
    plain = read(capsys, "info", "resnet18", "--size=64")
    assert plain["stages"] == [] and plain["class_names"] is None and plain["input"] == [3, 64, 64]
    with pytest.raises(SystemExit):
        main(["info", "--backends", "--json"])
    assert "--json does not apply to --backends" in capsys.readouterr().err


def test_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = Path(shutil.copytree(SHIPPED, tmp_path / "damaged"))
    damage_last_byte(damaged / "model.safetensors")
    assert main(["verify", NAME, str(damaged), str(tmp_path / "no"), "--json"]) == 1
    output, error = capsys.readouterr()
    good, bad, missing = json.loads(output)
    assert good["verified"] and good["parameters"] == 653054 and len(good["sha256"]) == 64 and good["problems"] == []
    assert not bad["verified"] and "sha256" in bad["problems"][0] and error == ""
    assert not missing["verified"] and str(tmp_path / "no") in missing["problems"][0]
