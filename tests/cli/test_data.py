"""The command `acmix-zoo data`, and text in locales other than UTF-8."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.box_data import write_coco_split, write_voc
from support.tasks import write_masked_images

from acmix_zoo.cli.main import main
from acmix_zoo.data import duplicates, open_source
from acmix_zoo.data.splits import split_source


def write_class_folders(root: Path, *classes: str, count: int = 4) -> Path:
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (9, 9), (number, label, 0)).save(root / name / f"{number}.png")
    return root


def test_summary_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_class_folders(tmp_path / "pets", "cat", "dog", "emu")
    (root / "cat/notes.txt").write_text("-")
    assert main(["data", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "data: pets, 3 classes; images: train 9, val 3",
        "  val was split off from train (data.val_fraction), because there is no usable validation split",
        "  class    train      val",
        "  cat          3        1",
        "  dog          3        1",
        "  emu          3        1",
        "  skipped 1 other file: .txt 1",
        "  pixel values: 8 bits, 0 to 255",
    ]
    (root / "cat/1.png").write_bytes(b"")
    assert main(["data", str(root)]) == 1  # a training run would be refused, too
    assert "1 of 9 train images cannot be used" in capsys.readouterr().out
    assert main(["data", str(root / "cat")]) == 1
    assert "Expected" in capsys.readouterr().err


def test_many_classes_are_summarised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_class_folders(tmp_path / "many", *(f"c{n:02d}" for n in range(21)), count=2)
    for number in range(7):
        Image.new("RGB", (9, 9), (number, 0, 1)).save(root / f"c20/more{number}.png")
    assert main(["data", str(root)]) == 0
    out = capsys.readouterr().out
    assert "  train: 1 to 8 images per class, median 1\n  val: 1 image per class\n" in out
    assert "the training classes are imbalanced: 8 of 'c20', 1 of 'c00'" in out


def test_classes_without_validation_or_test_images_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_class_folders(tmp_path / "pets", "cat", "dog")
    write_class_folders(root, "emu", "owl", count=1)
    assert main(["data", str(root)]) == 0
    assert "  val has no image of the classes emu, owl. The only image" in capsys.readouterr().out
    splits = write_class_folders(tmp_path / "split/train", "cat", "dog", "emu").parent
    write_class_folders(splits / "test", "cat", "dog")
    assert main(["data", str(splits)]) == 0
    assert "  test has no image of the class emu\n" in capsys.readouterr().out


@pytest.mark.parametrize("copied", ["train", "val", "test"])
def test_identical_images_in_two_splits_are_counted(
    tmp_path: Path, copied: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Copies are found by their content, whatever their names."""
    root = tmp_path / "pets"
    write_class_folders(root / "train", "cat", "dog")
    if copied == "train":  # so that val, which is split off from train, has copies of its images
        shutil.copytree(root / "train/cat", root / "train/cat/copy")
        expected = "Warning: 1 of the 2 val images are identical to images of train (for example 2.png and copy/2.png)"
    elif copied == "val":
        shutil.copytree(root / "train", root / "validation")
        expected = "Warning: 8 of the 8 val images are identical to images of train (for example "
        expected += "validation/cat/0.png and train/cat/0.png), so the validation score will be too high"
    else:
        noise = np.random.default_rng(0).integers(
            0, 256, (60, 60, 3), np.uint8
        )  # larger than the part that is compared first
        Image.fromarray(noise).save(root / "train/dog/noise.png")
        (root / "test/cat").mkdir(parents=True)
        os.link(root / "train/cat/2.png", root / "test/cat/linked.png")
        shutil.copy(root / "train/dog/noise.png", root / "test/cat/renamed.png")
        Image.fromarray(255 - noise).save(root / "test/cat/own.png")
        expected = "Warning: 2 of the 3 test images are identical to images of train"
    assert main(["data", str(root)]) == 0
    assert expected in capsys.readouterr().out


def test_the_search_for_identical_images_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = split_source(open_source(write_class_folders(tmp_path / "pets", "cat", "dog")), 0.25, 0)
    assert duplicates.duplicate_warnings(splits) == []
    monkeypatch.setattr(duplicates, "CHECK_LIMIT", 7)
    assert duplicates.duplicate_warnings(splits) == [
        "not checked for identical images in two splits, because there are over 7 images"
    ]


def test_summary_of_a_shipped_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "digits"]) == 0
    assert "data: digits, 10 classes; images: train 1,618, val 179\n" in capsys.readouterr().out


def test_an_image_in_two_lists_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_voc(tmp_path / "cells", {"train": [[("a", (1, 1, 64, 48))]] * 2, "val": [[("a", (1, 1, 64, 48))]]})
    (root / "ImageSets/Main/val.txt").write_text("train_1\n")
    assert main(["data", str(root)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("data: cells, 1 class; images: train 2, val 1;")
    assert "1 of the 1 val images are identical to images of train (for example train_1.png), so" in out
    (root / "ImageSets/Main/val.txt").unlink()
    (root / "ImageSets/Main/train.txt").write_text("train_1\n")
    assert main(["data", str(root)]) == 1
    assert "cells: there are too few training images" in (error := capsys.readouterr().err)
    assert "Add the names of its images as ImageSets/Main/val.txt, or set data.val_fraction to 0" in error


def test_boxes_in_coco_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    no_area = {"image_id": 10, "category_id": 3, "bbox": [5, 5, 0, 9]}
    unknown_class = {"image_id": 11, "category_id": 4, "bbox": [5, 5, 9, 9]}
    unknown_image = {"image_id": 99, "category_id": 3, "bbox": [5, 5, 9, 9]}
    root = write_coco_split(tmp_path / "cells", "train2017", 4, annotations=[no_area, unknown_class, unknown_image])
    shutil.copy(write_coco_split(root, "val2017", 1, 50) / "train2017/000001.png", root / "val2017/000000.png")
    Image.fromarray(np.full((48, 64), 4095, np.uint16)).save(root / "train2017/000003.png")
    assert main(["data", str(root)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("data: cells, 3 classes; images: train 4, val 1; boxes: train 11, val 1\n")
    assert (
        "  boxes: left out 1 of unknown classes 4 (in 000001.png), 1 without area (in 000000.png), "
        "1 of unknown images (in 99)\n"
    ) in out
    assert "  pixel values: 1 of 5 images have 16 bits; black to white is 0 to 65,535\n" in out
    assert "  Warning: 1 image with 16 bits per sample will be almost black" in out
    assert "Warning: 1 of the 1 val images are identical to images of train" in out
    (root / "train2017/000002.png").write_bytes(b"")
    assert main(["data", str(root)]) == 1
    assert "1 of 4 train images cannot be used" in capsys.readouterr().out


def test_boxes_in_the_format_of_pascal_voc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objects = [("red", (5, 5, 20, 20)), ("green", (50, 5, 80, 20)), ("red", (70, 50, 90, 60))]
    root = write_voc(tmp_path / "cells", {"train": [objects, objects[:1], []], "test": [objects[:1]]})
    file = root / "Annotations/train_0.xml"
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1", 1))
    assert main(["data", str(root)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("data: cells, 2 classes; images: train 2, val 1, test 1; boxes: train ")
    assert "  boxes: left out 1 outside their image (in train_0.png); 1 clipped to their image (in train_0.png)" in out
    assert "  boxes marked as crowd or difficult (training leaves them out): " in out
    assert "1 image without boxes" in out


def test_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_masked_images(tmp_path / "shapes", (4, 2, 1), (12, 16), void=9)
    (root / "images/val/1.png").unlink()
    assert main(["data", str(root), "--ignore_values", "9"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("data: shapes, 3 classes; images with masks: train 4, val 1, test 1\n  class ")
    assert "  skipped 1 val mask without an image\n  pixel values: 8 bits, 0 to 255\n" in out
    assert main(["data", str(root)]) == 1
    assert "mask train/0.png" not in out and "has pixels of the value 9. Expected 0 to 2" in capsys.readouterr().out


def test_the_task_of_a_data_set_can_be_stated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_class_folders(tmp_path / "kinds", "images", "masks")
    assert main(["data", str(root), "--task", "classification"]) == 0
    assert "kinds, 2 classes; images: train 6, val 2" in capsys.readouterr().out
    assert main(["data", str(root), "--task", "detection"]) == 1
    assert "is a folder without boxes" in capsys.readouterr().err
    assert main(["data", str(root), "--task", "detection", "--ignore_values", "0"]) == 1
    assert "--ignore_values does not apply to data for detection" in capsys.readouterr().err


ACCENTED = ("caf\u00e9", "\u0107at")  # the first letter of the second name is not in the code page cp1252


@pytest.fixture(scope="module")
def printed_in_cp1252(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the lines that `acmix-zoo data` prints in another process, followed by the modules that it imports."""
    root = write_class_folders(tmp_path_factory.mktemp("data") / "pets", *ACCENTED)
    code = f"""
import sys, acmix_zoo.data
acmix_zoo.data.load_image
from acmix_zoo.cli.main import main
code = main(["data", {str(root)!r}])
print(*sys.modules)
sys.exit(code)
"""
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.decode("cp1252").splitlines()


def test_reading_images_imports_no_heavy_library(printed_in_cp1252: list[str]) -> None:
    imported = set(printed_in_cp1252[-1].split())
    assert not imported & {"lightning", "datasets", "torchmetrics", "sklearn", "pyarrow", "matplotlib"}


ASCII_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # Python then reads files as ASCII


def test_characters_outside_of_the_code_page_are_replaced(printed_in_cp1252: list[str]) -> None:
    names = [line.split()[0] for line in printed_in_cp1252[:-1] if line]
    assert "caf\u00e9" in names and "?at" in names


@pytest.mark.slow
def test_a_warning_is_one_line(tmp_path: Path) -> None:
    """It does not name the line of code that warns, which may be one of Python's own thread pool."""
    Image.fromarray(np.full((48, 64), 9000, np.uint16)).save(tmp_path / "deep.png")
    command = [sys.executable, "-m", "acmix_zoo.cli", "classify", str(tmp_path), "--model", "acmix_resnet_pico"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert "Warning: images with 16 bits per sample: black to white is 0 to 65,535" in result.stderr.splitlines()
    assert ".py:" not in result.stderr


@pytest.mark.slow
def test_output_is_utf8_in_an_ascii_locale(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "pets", *ACCENTED)
    command = [sys.executable, "-m", "acmix_zoo.cli", "data", str(root)]
    result = subprocess.run(command, capture_output=True, env={**os.environ, **ASCII_LOCALE})
    assert result.returncode == 0, result.stderr
    output = result.stdout.decode("utf-8")
    assert all(f"  {name} " in output for name in ACCENTED)


@pytest.mark.slow
def test_recipes_are_read_in_any_locale(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "acmix_zoo.cli",
        "fit",
        "--config",
        "recipes/finetune/folder.yaml",
        "--print_config",
    ]
    root = Path(__file__).parents[2]
    assert not (root / "recipes/finetune/folder.yaml").read_text(encoding="utf-8").isascii()
    done = subprocess.run(command, capture_output=True, env={**os.environ, **ASCII_LOCALE}, cwd=root)
    assert done.returncode == 0 and b"image_size" in done.stdout, done.stderr


def test_text_files_are_opened_with_an_encoding() -> None:
    """Every call in the package that opens text names its encoding, so that no locale decides it."""
    import ast

    missing = []
    for path in sorted((Path(__file__).parents[2] / "acmix_zoo").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = getattr(getattr(node.func, "value", None), "id", "")
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            words = [a.value for a in [*node.args, *given.values()] if isinstance(a, ast.Constant)]
            is_binary = any(isinstance(word, str) and "b" in word and len(word) < 4 for word in words)
            is_path = name in ("read_text", "write_text") and isinstance(node.func, ast.Attribute)
            is_text = is_path or "text" in given or "universal_newlines" in given
            is_open = name == "open" and owner not in ("Image", "tarfile", "os", "webbrowser", "gzip") and not is_binary
            if (is_text or is_open) and "encoding" not in given:
                missing.append(f"{path.name}:{node.lineno}")
    assert missing == []
