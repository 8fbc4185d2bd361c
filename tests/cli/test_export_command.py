"""`acmix-zoo export` to files: how the format and the name of the file are chosen, what is printed, and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.commands import assert_fails, run_command
from support.weight_folders import SHIPPED

from acmix_zoo.cli import export as command
from acmix_zoo.cli import packages
from acmix_zoo.export import export_file as module
from acmix_zoo.export.agreement import Agreement
from acmix_zoo.export.export_file import ExportedFile

CLOSE = Agreement(40, 3e-6, 12.5, 40, 40, 36, 36)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """Replace the export by a function that records its arguments."""
    found: list[tuple[Any, ...]] = []

    def record(model: str, path: Path, format: str, **more: Any) -> ExportedFile:
        found.append((model, path, format, more))
        path.write_bytes(b"0" * 700_000)
        int8 = Agreement(40, 0.4, 12.5, 39, 40, 36, 35) if more["int8"] else None
        return ExportedFile(
            path, 17 if format == "torch-export" else 1, "the val split of photos", CLOSE, int8, 2_600_000
        )

    monkeypatch.setattr(module, "export_file", record)
    monkeypatch.chdir(tmp_path)
    return found


@pytest.mark.parametrize(
    ("arguments", "path", "format"),
    [
        (["a.onnx"], "a.onnx", "onnx"),
        (["a.PT2"], "a.PT2", "torch-export"),
        (["--format=onnx"], "acmix_resnet_pico.fashion_mnist.onnx", "onnx"),
        (["--format=torch-export", "v1.0"], "v1.0.pt2", "torch-export"),
        (["--format=onnx", "."], "acmix_resnet_pico.fashion_mnist.onnx", "onnx"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("model", [SHIPPED.name, str(SHIPPED)], ids=["name", "folder"])
def test_format_and_name(
    model: str, arguments: list[str], path: str, format: str, calls: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run_command(capsys, "export", model, *arguments)
    assert calls == [(model, Path(path), format, {"data": None, "int8": False, "limit": 1000})]


def test_a_run_gives_its_name_to_the_file(tmp_path: Path) -> None:
    weights = tmp_path / "photos" / "weights"
    weights.mkdir(parents=True)
    (weights / "config.json").touch()
    (tmp_path / "photos" / "config.yaml").touch()
    assert command._model_name(str(tmp_path / "photos")) == command._model_name(str(weights)) == "photos"
    assert command._model_name("org/flowers@v1") == "flowers" and command._model_name("resnet18") == "resnet18"


def test_size_differences_and_accuracy_are_printed(calls: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(capsys, "export", SHIPPED.name, "a.onnx").splitlines() == [
        "Saved a.onnx (0.7 MB). It accepts batches of images of any size",
        "Checked on the val split of photos: the logits of the file differ from the network's by at most 3.0e-06 "
        "(largest logit: 12.5)",
        "Top-1 on 40 images: 90.00 % with the network, 90.00 % with the file",
        "docs/export.md shows how to use the file without PyTorch",
    ]
    first, *_, last = run_command(capsys, "export", SHIPPED.name, "a.pt2").splitlines()
    assert first == "Saved a.pt2 (0.7 MB). It accepts batches of images of any size of at least 17×17 pixels"
    assert last == "docs/export.md shows how to load the file"
    lines = run_command(capsys, "export", SHIPPED.name, "a.onnx", "--int8", "--data", "photos").splitlines()
    assert lines[2] == (
        "int8: 0.7 MB instead of 2.6 MB. The most probable class stays the same for 97.50 % of 40 images"
    )
    assert lines[3] == "Top-1 on 40 images: 90.00 % with the network, 87.50 % with the file"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "a weight folder needs a name"),
        (["a.pt2", "--format=onnx"], "--format onnx does not fit the extension of a.pt2"),
        (["a.onnx", "--format=folder"], "--format folder does not fit the extension of a.onnx"),
        (["a.onnx", "--no-ema"], "--no-ema only applies to weight folders"),
        (["a.onnx", "--int8"], "--int8 needs --format onnx, and images"),
        (["a.pt2", "--int8", "--data=x"], "--int8 needs --format onnx, and images"),
        (["a.onnx", "--limit=0"], "--limit 0 is too small"),
    ],
    ids=str,
)
def test_options_that_do_not_fit(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_command(capsys, "export", "resnet18", *options)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "onnxscript" else name)
    message = "export to onnx needs onnxscript. Install with: pip install 'acmix-zoo[export]'"
    assert_fails(["export", "resnet18", "a.onnx"], capsys, message)
