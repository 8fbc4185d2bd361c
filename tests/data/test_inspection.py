"""The check of image files before a run finds damage and images with more than 8 bits."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acmix_zoo.data import UnreadableImage, inspection, load_image
from acmix_zoo.data.inspection import inspect_images

RAMP = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5  # (H, W)


def write_damaged_files(folder: Path) -> dict[str, Path]:
    """Write damaged files, and intact ones of the same kinds. Return the damaged ones."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    files = {}
    for kind in ("png", "jpg", "bmp"):
        noise.save(folder / f"intact.{kind}")
        content = (folder / f"intact.{kind}").read_bytes()
        files[f"truncated {kind}"] = folder / f"cut.{kind}"
        files[f"truncated {kind}"].write_bytes(content[: len(content) // 2])
    for name, content in {"empty.png": b"", "text.jpg": b"not an image", "short.png": b"\x89PNG\r\n\x1a\n"}.items():
        files[name] = folder / name
        files[name].write_bytes(content)
    return files


def test_damaged_files_are_named(tmp_path: Path) -> None:
    files = write_damaged_files(tmp_path)
    files["missing"] = tmp_path / "missing.png"
    for path in files.values():
        with pytest.raises(UnreadableImage, match=path.name):
            load_image(path)
    messages = inspect_images(list(map(str, files.values()))).problems
    assert len(messages) == len(files)
    assert all(path.name in message for path, message in zip(files.values(), messages, strict=True))
    assert inspect_images([str(tmp_path / f"intact.{kind}") for kind in ("png", "jpg", "bmp")]).problems == []


def test_trailing_bytes_are_not_damage(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.jpg")
    with open(tmp_path / "a.jpg", "ab") as file:
        file.write(b"camera makers append things here")
    assert inspect_images([str(tmp_path / "a.jpg")]).problems == []


def test_images_that_may_not_fit_into_memory_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (40, 40)).save(tmp_path / "bomb.png")
    Image.new("L", (40, 40)).save(tmp_path / "bomb.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(inspection, "_MANY_PIXELS", 100)
    for problem in inspect_images([str(tmp_path / "bomb.png"), str(tmp_path / "bomb.jpg")]).problems:
        assert "may not fit into memory. Expected a smaller image. Scale it down" in problem
    assert len(inspect_images([str(tmp_path / "bomb.png"), str(tmp_path / "bomb.jpg")]).problems) == 2
    with pytest.raises(UnreadableImage, match="may not fit into memory"):
        load_image(tmp_path / "bomb.png")
