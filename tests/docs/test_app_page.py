"""docs/app.md: its commands exist, its limits are those of the code, and the command for a Space runs."""

import shutil
from pathlib import Path

from support.documents import ROOT, Document, Reader

from acmix_zoo.app import archive
from acmix_zoo.cli.app import _parse

PAGE = Document("docs/app.md")


def test_the_commands_are_understood() -> None:
    commands = [words[2:] for words in PAGE.commands() if words[:2] == ["acmix-zoo", "app"]]
    assert len(commands) == 3
    for words in commands:
        _parse(words)


def test_the_limits_are_those_of_the_code() -> None:
    assert f"more than {archive.MAX_IMAGES:,} images or {archive.MAX_BYTES // 1_000_000} MB" in PAGE.text


def test_the_folder_of_a_space_is_written(tmp_path: Path) -> None:
    words = next(words for words in PAGE.commands() if "--export-space" in words)
    shutil.copytree(ROOT / "checkpoints/acmix_resnet_pico.fashion_mnist", tmp_path / "runs/clothing/weights")
    printed = Reader(tmp_path).acmix_zoo(*words[1:])
    assert printed.code == 0, printed.err
    assert [path.name for path in (tmp_path / "my_space/models").iterdir()] == ["0-acmix_resnet_pico.fashion_mnist"]


def test_the_screenshot_is_small() -> None:
    assert (ROOT / "docs/images/app.png").stat().st_size <= 150_000


def test_links_lead_somewhere() -> None:
    assert not PAGE.missing_links()
