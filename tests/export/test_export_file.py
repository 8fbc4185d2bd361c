"""Networks as ONNX and torch.export files: what they compute, accept and state, and how errors are noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.networks import SHALLOW, SMALL, perturbed
from support.tiny_network import TinyNetwork
from support.training import make_image_folder
from torch import nn

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import onnx
import onnxruntime

from acmix_zoo.export import export_file as module
from acmix_zoo.export.export_file import ExportedFile, export_file
from acmix_zoo.export.onnx_file import load_onnx
from acmix_zoo.export.program_file import METADATA_FILE, load_program

METADATA = {
    "name": "tiny.colours", "class_names": ["a", "b", "c"], "input_size": [3, 16, 16], "mean": [0.5] * 3,
    "std": [0.25] * 3, "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center", "license": "mit",
}  # fmt: skip


def use(monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> None:
    """Let `export_file` build this network, whatever the name."""
    monkeypatch.setattr(module, "load_classifier", lambda source: model)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Images of the three classes, in folders that are named like them."""
    folder = make_image_folder(tmp_path / "images", per_class=4)
    for old, new in (("class0", "a"), ("class1", "b"), ("class2", "c")):
        (folder / old).rename(folder / new)
    return folder


def read_metadata(path: Path) -> dict[str, Any]:
    if path.suffix == ".onnx":
        found = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
        return {key: json.loads(value) for key, value in found.items()}
    files = {METADATA_FILE: ""}
    torch.export.load(path, extra_files=files)
    loaded: dict[str, Any] = json.loads(files[METADATA_FILE])
    return loaded


@pytest.mark.parametrize(("format", "name"), [("onnx", "a.onnx"), ("torch-export", "a.pt2")])
def test_a_file_takes_any_batch_and_size_and_states_how_to_use_it(
    format: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TinyNetwork().eval()
    use(monkeypatch, model)
    found = export_file("tiny", tmp_path / "new" / name, format)
    assert found.path == tmp_path / "new" / name and [*found.path.parent.iterdir()] == [found.path]
    assert found.smallest_side == 1 and found.agreement.images == 4 and found.agreement.difference < 1e-5
    assert read_metadata(found.path) == METADATA
    exported = load_onnx(found.path) if format == "onnx" else load_program(found.path)
    for shape in [(1, 3, 16, 16), (5, 3, 20, 33)]:
        x = torch.randn(shape)
        torch.testing.assert_close(exported(x), model(x))
    assert isinstance(model.norm, nn.BatchNorm2d)  # only the copy in the file is folded
    if format == "onnx":
        operators = {node.op_type for node in onnx.load(found.path).graph.node}
        assert "Conv" in operators and not operators & {"BatchNormalization", "Sqrt", "Div"}


def test_the_smallest_image_of_a_program_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.export assumes that the map before the pooling is larger than one pixel."""
    model = TinyNetwork()
    model.conv.stride = (4, 4)
    use(monkeypatch, model)
    found = export_file("tiny", tmp_path / "a.pt2", "torch-export")
    assert found.smallest_side is not None and 1 < found.smallest_side <= 5
    exported = load_program(found.path)
    assert exported(torch.randn(1, 3, found.smallest_side, 40)).shape == (1, 3)
    with pytest.raises(Exception, match="Guard failed"):
        exported(torch.randn(1, 3, found.smallest_side - 1, found.smallest_side - 1))


@pytest.mark.slow
def test_a_network_with_a_fixed_size_only_has_a_dynamic_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, TinyNetwork(fixed_input_size=True))
    assert export_file("tiny", tmp_path / "a.onnx", "onnx").smallest_side is None
    (inputs,) = onnxruntime.InferenceSession(str(tmp_path / "a.onnx")).get_inputs()
    assert inputs.shape == ["batch", 3, 16, 16]


@pytest.mark.slow
def test_a_labelled_folder_gives_the_accuracy_of_the_int8_file(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, TinyNetwork())
    found = export_file("tiny", tmp_path / "a.onnx", "onnx", data=str(images), int8=True)
    assert found.images == f"the val split of {images}" and found.agreement.labelled == 3
    assert found.int8_agreement is not None and found.int8_agreement.labelled == 3
    assert 1e-4 < found.int8_agreement.difference < 0.2 and read_metadata(found.path) == METADATA
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["a.onnx"]


def test_int8_needs_images_and_onnx(tmp_path: Path) -> None:
    for format, data in (("onnx", None), ("torch-export", "photos")):
        with pytest.raises(ValueError, match="int8 needs the format onnx, and images"):
            export_file("tiny", tmp_path / "a.onnx", format, data=data, int8=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"unknown format 'ONNX'\. Expected onnx or torch-export"):
        export_file("tiny", tmp_path / "a.onnx", "ONNX")  # type: ignore[arg-type]


def test_a_file_that_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(TinyNetwork):
        def deploy(self) -> TinyNetwork:
            self.fc.bias.data += 0.1
            return self

    use(monkeypatch, Wrong())
    (tmp_path / "a.pt2").write_text("an earlier export")
    with pytest.raises(ValueError, match=r"does not compute what the network computes: the logits differ by 1\.0e-01"):
        export_file("tiny", tmp_path / "a.pt2", "torch-export")
    assert (tmp_path / "a.pt2").read_text() == "an earlier export" and len([*tmp_path.iterdir()]) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "format"),
    [
        *((name, "onnx") for name in (*SMALL, "vit_tiny_patch16_224")),
        ("acmix_resnet_pico", "torch-export"),
    ],
)
def test_every_family_can_be_exported(name: str, format: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also networks of timm; those with absolute positions take images of one size. test_tracing.py has the rest."""
    use(monkeypatch, perturbed(name, **SHALLOW.get(name, {})))
    found: ExportedFile = export_file("tiny", tmp_path / "file", format)
    assert (found.smallest_side is None) == name.startswith("vit") and found.agreement.same_class == 4


@pytest.mark.slow
def test_int8_keeps_the_accuracy_of_the_shipped_weights(fashion_mnist: str, tmp_path: Path) -> None:
    name = "acmix_pvt_pico.fashion_mnist"  # the one that is exported fastest
    found = export_file(name, tmp_path / "a.onnx", "onnx", data=fashion_mnist, int8=True, limit=500)
    assert found.int8_agreement is not None and found.agreement.labelled == 500
    assert found.path.stat().st_size < 0.4 * found.float_bytes
    lost = found.int8_agreement.network_correct - found.int8_agreement.file_correct
    assert lost <= 10  # two per cent
