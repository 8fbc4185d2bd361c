"""Uploaded archives: class folders are found, and unsafe, oversized and broken archives are refused with a message."""

from __future__ import annotations

import stat
import struct
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acmix_zoo.app import archive
from acmix_zoo.app.archive import UnusableArchive, read_archive, unpack


def png(seed: int = 0) -> bytes:
    """Return a small image file."""
    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (6, 5, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    """Return a zip archive."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return buffer.getvalue()


PETS = {f"{name}/{i}.png": png(i) for i, name in enumerate(("cat", "cat", "dog"))}


@pytest.mark.parametrize("outer", ["", "pets/", "a/b/"])
def test_class_folders_are_found_with_or_without_a_folder_around_them(outer: str, tmp_path: Path) -> None:
    skipped = ["__MACOSX/pets/cat/._0.png", ".DS_Store", f"{outer}cat/.x.png", f"{outer}notes.txt"]
    content = zipped({f"{outer}{name}": data for name, data in PETS.items()} | dict.fromkeys(skipped, b"x"))
    found = read_archive(content, "../My pets!.zip")
    assert found.name == "My_pets" and found.train_images == 3
    assert found.summary == "My_pets: 3 training images of 2 classes (cat 2, dog 1)."
    unpack(content, tmp_path / "x")
    files = {path.relative_to(tmp_path / "x").as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == set(PETS)


def test_splits_are_kept(tmp_path: Path) -> None:
    content = zipped({f"pets/{split}/{name}": data for split in ("train", "val") for name, data in PETS.items()})
    assert read_archive(content, "pets.zip").train_images == 3
    unpack(content, tmp_path / "x")
    assert {path.name for path in (tmp_path / "x").iterdir()} == {"train", "val"}


@pytest.mark.parametrize("name", ["../x.png", "cat/../../x.png", "/tmp/x.png", "cat\\..\\x.png", "C:/x.png"])
def test_names_that_lead_outside_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnusableArchive, match="lies outside of its folder"):
        unpack(zipped({**PETS, name: png()}), tmp_path / "a" / "b")
    assert not list(tmp_path.rglob("*.png"))


def test_links_are_refused(tmp_path: Path) -> None:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        link = zipfile.ZipInfo("cat/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")
    with pytest.raises(UnusableArchive, match="is a link"):
        unpack(buffer.getvalue(), tmp_path / "x")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", 20_000_000)
    content = zipped({"cat/1.png": b"", "dog/1.png": bytes(20_000_001)})
    assert len(content) < 50_000
    with pytest.raises(UnusableArchive, match=r"unpacks to 2 images of 20 MB\. Expected at most 5,000 images of 20 MB"):
        unpack(content, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_an_archive_that_hides_the_size_of_its_files_unpacks_no_more_than_it_states(tmp_path: Path) -> None:
    content = bytearray(zipped({"cat/1.png": bytes(10_000_000)}))
    stated = struct.pack("<I", 10_000_000)
    assert content.count(stated) == 2  # in the header of the file, and in the list at the end
    with pytest.raises(UnusableArchive, match="cannot be unpacked"):
        unpack(bytes(content).replace(stated, struct.pack("<I", 100)), tmp_path / "x")
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 100


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_IMAGES", 2)
    with pytest.raises(UnusableArchive, match="unpacks to 3 images"):
        unpack(zipped(PETS), tmp_path / "x")
    monkeypatch.setattr(archive, "_MAX_ENTRIES", 2)
    with pytest.raises(UnusableArchive, match="lists more than 2 files"):
        unpack(zipped(PETS), tmp_path / "x")


def encrypted(content: bytes) -> bytes:
    """Set the flag of an encrypted file in the list at the end of an archive."""
    start = content.index(b"PK\x01\x02")
    return content[: start + 8] + b"\x01" + content[start + 9 :]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be unpacked"),
        (png(), "cannot be unpacked"),
        (zipped(PETS)[:-30], "cannot be unpacked"),
        (zipped(PETS)[30:], "cannot be unpacked"),
        (zipped({"cat/1.txt": b"x"}), "contains no images"),
        (zipped({"1.png": png()}), "Expected a zip archive with a folder of images for each class"),
        (zipped({"cat/1.png": png()}), "Expected a zip archive with a folder of images for each class"),
        (encrypted(zipped({"cat/1.png": png()})), "is encrypted"),
    ],
    ids=["empty", "an image", "truncated", "without its start", "no images", "no folders", "one class", "encrypted"],
)
def test_unusable_archives_get_a_message_without_paths_of_this_machine(content: bytes, message: str) -> None:
    with pytest.raises(UnusableArchive) as error:
        read_archive(content, "pets.zip")
    assert message in str(error.value) and "/tmp" not in str(error.value)


def test_names_in_utf8_without_its_flag_are_read(tmp_path: Path) -> None:
    """Some programs write such archives. Names in other encodings are read as the format prescribes."""
    content = zipped({name.replace("cat", "kätzchen"): data for name, data in PETS.items()})
    for encoded, name in (
        (content, "kätzchen"),
        (content.replace("ä".encode(), b"\x84x"), "kätzchen".replace("ä", "äx")),
    ):
        unflagged = bytearray(encoded)
        for signature, offset in ((b"PK\x01\x02", 9), (b"PK\x03\x04", 7)):
            start = -1
            while (start := unflagged.find(signature, start + 1)) >= 0:
                unflagged[start + offset] &= ~0x08
        assert name in read_archive(bytes(unflagged), "pets.zip").summary


def test_damaged_lzma_data_gets_a_message(tmp_path: Path) -> None:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as file:
        for name in PETS:
            file.writestr(name, bytes(5000))
    content = bytearray(buffer.getvalue())
    content[60:75] = b"\xff" * 15
    with pytest.raises(UnusableArchive, match="cannot be unpacked"):
        unpack(bytes(content), tmp_path / "x")
