"""`acmix-zoo explain`: what it prints and writes, and its errors."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("lightning")

from support.commands import assert_fails, run_command
from support.documents import ROOT
from support.explained import FAMILIES

from acmix_zoo.cli.explain import _class_index
from acmix_zoo.weights.class_names import ClassNames

BOOT = str(ROOT / "examples/ankle_boot.png")


@pytest.mark.parametrize("name", ["acmix_pvt_pico", *(pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES[:3])])
def test_the_printed_parts_sum_to_the_score(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run_command(capsys, "explain", BOOT, "--model", name, "--out", tmp_path)
    assert out.startswith(f"{BOOT}: Ankle boot ")
    score, *parts = (float(value) for value in re.findall(r" ([+-]?\d+\.\d+)", out.splitlines()[1]))
    assert len(parts) == 4 and sum(parts) == pytest.approx(score, abs=0.005)
    numbers = json.loads((tmp_path / "explanation.json").read_text(encoding="utf-8"))
    assert score == pytest.approx(numbers["score"]["total"], abs=0.001) and numbers["class"] == "Ankle boot"
    assert f"Open {tmp_path / 'explanation.html'} in a browser." in out.splitlines()[-1]
    assert numbers["model"] == name and name in (tmp_path / "explanation.html").read_text(encoding="utf-8")


def test_class_layer_head_and_pixel_are_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    choice = ["--class", "sandal", "--layer", "layer1.0.conv2", "--head", "2", "--pixel", "4,28"]
    run_command(capsys, "explain", BOOT, "--model", "acmix_resnet_pico", *choice)
    numbers = json.loads((tmp_path / "explained/ankle_boot/explanation.json").read_text(encoding="utf-8"))
    assert numbers["class"] == "Sandal" and numbers["attention"]["layer"] == "layer1.0.conv2"
    assert numbers["attention"]["pixel"] == [4, 28] and numbers["attention"]["position"] == [7, 1]
    run_command(capsys, "explain", BOOT, "--model", "acmix_resnet_pico")  # replaces nothing
    second = json.loads((tmp_path / "explained/ankle_boot-2/explanation.json").read_text(encoding="utf-8"))
    assert second["class"] == "Ankle boot"
    assert numbers == json.loads((tmp_path / "explained/ankle_boot/explanation.json").read_text(encoding="utf-8"))


def test_errors_are_one_line_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["explain", BOOT, "--model", "acmix_resnet_pico", "--out", str(tmp_path / "out")]
    assert_fails([*command, "--class", "sandle"], capsys, "--class sandle", "Expected one of Sandal", "from 0 to 9")
    assert_fails([*command, "--layer", "fc"], capsys, "no attention in a layer 'fc'", "layer1.0.conv2")
    assert_fails([*command, "--head", "99"], capsys, "no head 99", "from 0 to 3")
    assert_fails([*command, "--pixel", "40,0"], capsys, "pixel 40,0 is outside", "31,31")
    assert_fails(["explain", "no.png", "--model", "acmix_resnet_pico"], capsys, "no.png does not exist")
    assert_fails(["explain", str(tmp_path), "--model", "acmix_resnet_pico"], capsys, str(tmp_path), "is a folder")
    assert not (tmp_path / "out").exists()


def test_classes_that_differ_in_case_only() -> None:
    names = ClassNames(["Cat", "cat"], ["Cat", "cat"])
    assert [_class_index(name, names) for name in ("Cat", "cat", "CAT")] == [0, 1, 0]
