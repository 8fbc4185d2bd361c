"""What `acmix-zoo classify` prints and writes: text, JSON, CSV and contact sheets."""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image
from support.commands import assert_fails, run_command
from support.weight_folders import ROOT, SHIPPED, edit_config

from acmix_zoo.cli.main import main

BOOT = ROOT / "examples" / "ankle_boot.png"
MODEL = f"--model={SHIPPED}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two images and a damaged one."""
    (tmp_path / "photos").mkdir()
    shutil.copy(BOOT, tmp_path / "photos" / "a.png")
    Image.new("RGB", (50, 20), "white").save(tmp_path / "photos" / "b.jpg")
    (tmp_path / "photos" / "broken.png").write_bytes(b"\x89PNG")
    return tmp_path / "photos"


def test_text_has_five_classes_per_image(capsys: pytest.CaptureFixture[str]) -> None:
    lines = run_command(capsys, "classify", BOOT, MODEL).splitlines()
    assert lines[0] == str(BOOT) and len(lines) == 6 and lines[1].endswith(" %  Ankle boot")


def test_json_is_the_only_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Remarks go to the other stream, so that a program can read the output."""
    images = json.loads(run_command(capsys, "classify", MODEL, folder, "--json", "--top", "2", "--batch-size", "1"))
    assert [Path(image["path"]).name for image in images] == ["a.png", "b.jpg"]
    best = images[0]["classes"][0]
    assert best["name"] == best["description"] == "Ankle boot" and 0.9 < best["probability"] < 1
    assert all(len(image["classes"]) == 2 for image in images)


def test_csv_has_a_row_for_each_image_and_class(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "classes.csv"
    assert run_command(capsys, "classify", f"{folder}/*.*", MODEL, "--csv", file, "--top=3") == ""
    with file.open(newline="", encoding="utf-8") as content:
        rows = list(csv.DictReader(content))
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * 2 and rows[0]["class"] == "Ankle boot"
    assert rows[0].keys() == {"path", "rank", "class", "description", "probability"}


def test_an_image_that_is_named_twice_is_classified_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = run_command(capsys, "classify", folder / "a.png", folder, f"{folder}/*.png", MODEL, "--top=1")
    assert output.count("a.png") == 1 and output.count("b.jpg") == 1


def test_a_contact_sheet_shows_the_images(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_command(capsys, "classify", folder, MODEL, "--sheet", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 * 168 + 8, 160 + 8 + 3 * 16 + 8)  # three lines of text


def test_wordnet_ids_are_shown_as_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = Path(shutil.copytree(SHIPPED, tmp_path / "weights"))
    edit_config(weights, label_names=["n02123045", *(f"other {number}" for number in range(9))])
    command = ("classify", BOOT, "--model", weights, "--top=10")
    assert "%  tabby, tabby cat\n" in run_command(capsys, *command)
    classes = json.loads(run_command(capsys, *command, "--json"))[0]["classes"]
    assert {found["name"]: found["description"] for found in classes}["n02123045"] == "tabby, tabby cat"


def test_urls_and_wrong_values_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_fails(["classify", "https://example.com/a.jpg", MODEL], capsys, "is a URL. Expected an image file")
    assert_fails(["classify", "", MODEL], capsys, "the path of the images is empty. Expected an image, a folder")
    assert_fails(
        ["classify", str(BOOT), "--model="], capsys, "the name of the model is empty. Expected a weight folder"
    )
    assert_fails(["classify", str(BOOT), MODEL, "--sheet=a.tga"], capsys, "extension '.tga'. Expected one of .png")
    for options, message in (
        (["--top=0"], "--top 0 is too small"),
        (["--batch-size=0"], "--batch-size 0 is too small"),
        (["--json", "--csv=a.csv"], "--csv: not allowed with argument --json"),
    ):
        with pytest.raises(SystemExit) as stop:
            run_command(capsys, "classify", BOOT, MODEL, *options)
        assert stop.value.code == 2 and message in capsys.readouterr().err


def test_progress_is_shown_on_a_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["classify", str(folder), MODEL, "--json"]) == 0
    output, error = capsys.readouterr()
    assert len(json.loads(output)) == 2 and "| 0/3 [" in error
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert main(["classify", str(folder), MODEL, "--json"]) == 0
    assert "0/3" not in capsys.readouterr().err
