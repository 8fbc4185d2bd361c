"""Walking through folders skips what is not an image."""

from pathlib import Path

from acmix_zoo.data.sources.find_images import walk_folders


def test_other_and_hidden_files_are_skipped(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", "Thumbs.db", ".hidden.png", "deep/er/c.webp", ".cache/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [Path(path).relative_to(tmp_path).as_posix() for path in walk_folders([tmp_path]).images[0]]
    assert found == ["a.JPG", "b.png", "deep/er/c.webp"]
