"""Files, folders and patterns to predict; URLs are rejected."""

from pathlib import Path

import pytest
from support.image_data import write_files

from acmix_zoo.data.predict_images import find_images_in, readable_images_in


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_files(tmp_path / "photos", "b.jpg", "a.png", "trip/c.jpg", "trip/notes.txt", "list.txt")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.jpg", ["b.jpg"]),
        ("[ab].*", ["a.png", "b.jpg"]),
        ("**/*.jpg", ["b.jpg", "trip/c.jpg"]),
        ("t*", ["trip/c.jpg"]),  # a folder
        ("**", ["a.png", "b.jpg", "trip/c.jpg"]),  # the folder, and everything in it
        ("", ["a.png", "b.jpg", "trip/c.jpg"]),
    ],
)
def test_patterns_are_expanded(photos: Path, pattern: str, names: list[str]) -> None:
    assert find_images_in(photos / pattern).paths == [str(photos / name) for name in names]


def test_files_that_match_but_are_no_images_are_reported_once(photos: Path) -> None:
    assert find_images_in(photos / "**").remarks == [f"{photos}/**: skipped 2 other files: .txt 2"]
    assert find_images_in(photos / "*.*").remarks == [f"{photos}/*.*: skipped 1 other file: .txt 1"]
    with pytest.raises(ValueError, match=r"\*\.txt contains no images; skipped 1 other file"):
        find_images_in(photos / "*.txt")


def test_a_file_whose_name_looks_like_a_pattern_is_found(tmp_path: Path) -> None:
    write_files(tmp_path, "[1].png")
    assert find_images_in(tmp_path / "[1].png").paths == [str(tmp_path / "[1].png")]


@pytest.mark.parametrize("url", ["https://example.com/cat.jpg", "s3://bucket/cat.jpg", Path("https://example.com/cat")])
def test_urls_are_rejected(url: str | Path) -> None:
    with pytest.raises(ValueError, match=r"is a URL\. Expected an image file, a folder or a pattern"):
        find_images_in(url)


def test_what_does_not_exist_is_rejected(photos: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing matches .*\*\.gif\. Expected a pattern"):
        find_images_in(photos / "*.gif")
    with pytest.raises(FileNotFoundError, match=r"c\.png does not exist"):
        find_images_in(photos / "c.png")


def test_predict_accepts_patterns_too(photos: Path) -> None:
    (photos / "b.jpg").write_bytes(b"\xff\xd8\xff")
    found = readable_images_in(f"{photos}/*.*g")
    assert found.paths == [str(photos / "a.png")] and "1 file cannot be predicted" in found.remarks[0]
