"""Replacing a weight folder: the old content survives every failure, and several processes may write at once."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from support.weight_folders import (
    ROOT,
    edit_config,
    file_contents,
    pico,
    write_weights,
)

from acmix_zoo.weights import check_folder, create_model
from acmix_zoo.weights.replace import replace_folder, temporary_sibling


@pytest.fixture
def old(written: Path, tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    """Return a weight folder to replace, and its content."""
    folder = Path(shutil.copytree(written, tmp_path / "weights"))
    return folder, file_contents(folder)


def test_an_old_folder_is_replaced(old) -> None:
    folder, before = old
    (folder / "pictures").mkdir(exist_ok=True)
    (folder / "pictures/old.png").write_text("of the old weights")
    edit_config(folder, acmix_zoo={"pictures": {"old.png": "Learning curves."}})
    torch.manual_seed(1)  # for different weights
    write_weights(folder)
    assert file_contents(folder)["model.safetensors"] != before["model.safetensors"]
    assert "pictures/old.png" not in file_contents(folder) and check_folder(folder) == []
    assert os.listdir(folder.parent) == ["weights"]


def test_a_full_disk_keeps_the_old_folder(old) -> None:
    """The kernel refuses to write more than a megabyte to a file, which fails like a full disk."""
    folder, before = old
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(OSError, match=r"could not write .*An existing folder is unchanged") as caught:
            write_weights(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert file_contents(folder) == before and os.listdir(folder.parent) == ["weights"]


def test_a_small_file_system_that_is_full_keeps_the_old_folder(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        folder = write_weights(disk / "weights")
        before = file_contents(folder)
        (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - 500_000))
        with pytest.raises(OSError, match="No space left on device") as caught:
            write_weights(folder)
        assert caught.value.errno == errno.ENOSPC
        assert file_contents(folder) == before and sorted(os.listdir(disk)) == ["ballast", "weights"]
        assert check_folder(folder) == []
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("step", range(5))
def test_an_interrupt_keeps_a_complete_folder(old, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    folder, before = old
    count, fsync = iter(range(100)), os.fsync

    def interrupted(descriptor: int) -> None:
        if next(count) == step:
            raise KeyboardInterrupt
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_weights(folder)
    assert file_contents(folder) == before and os.listdir(folder.parent) == ["weights"]


def test_a_failed_move_restores_the_old_folder(old, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, before = old
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.startswith(".weights."):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        write_weights(folder)
    assert file_contents(folder) == before and os.listdir(folder.parent) == ["weights"]


@pytest.mark.parametrize("is_new", [True, False])
def test_another_process_writes_the_folder_first(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_new: bool
) -> None:
    """Three times in a row, another process moves its folder to the target just before this one does."""
    folder = tmp_path / "weights"
    others = [Path(shutil.copytree(written, tmp_path / f"other{i}")) for i in range(3)]
    if not is_new:
        shutil.copytree(written, folder)
    model, rename = pico(), Path.rename

    def racing(self: Path, target: Path) -> Path:
        if target == folder and others:
            rename(others.pop(), folder)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", racing)
    write_weights(folder, model)
    assert not others and os.listdir(tmp_path) == ["weights"] and check_folder(folder) == []
    assert torch.equal(create_model(folder).fc.weight, model.fc.weight)


def test_many_threads_write_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acmix_zoo.weights.replace.check_folder", lambda folder: [])  # this test is about the move

    def fill(number: int) -> None:
        for i in range(50):
            with temporary_sibling(tmp_path / "weights") as new:
                for name in ("config.json", "model.safetensors"):
                    (new / name).write_text(f"{number} {i}")
                replace_folder(tmp_path / "weights", new)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fill, range(4)))
    found = file_contents(tmp_path / "weights")
    assert len(found) == 2 and found["config.json"] == found["model.safetensors"]
    assert os.listdir(tmp_path) == ["weights"]


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "model.safetensors", "model.pth", "best.ckpt"])
def test_a_file_name_as_the_target_is_rejected(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} is the name of a .* file, but weights are written as a folder"):
        write_weights(tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.slow
def test_a_killed_process_keeps_the_old_folder(old) -> None:
    """The process is killed while it writes, and the old folder still verifies."""
    folder, before = old
    code = (
        "import os, sys, timm, torch, acmix_zoo\n"
        "from acmix_zoo.weights import write_folder\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), 9)\n"
        "model = timm.create_model('acmix_resnet_pico')\n"
        "write_folder(sys.argv[1], model, architecture='acmix_resnet_pico', pretrained_cfg={}, record={},"
        " example=torch.zeros(1, 3, 32, 32))\n"
    )
    result = subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == -9, result.stderr
    assert file_contents(folder) == before and check_folder(folder) == []


def test_other_files_are_not_deleted(old) -> None:
    folder, before = old
    (folder / "notes.txt").write_text("mine")
    (folder / ".git").mkdir()
    with pytest.raises(FileExistsError, match=r"weights also contains \.git, notes\.txt, which would be deleted"):
        write_weights(folder)
    assert file_contents(folder) == {**before, "notes.txt": b"mine"}
    (folder / "notes.txt").unlink()
    (folder / ".git").rmdir()
    (folder / "pictures").mkdir()
    (folder / "pictures/mine.png").touch()
    (folder / "test/mine.png").touch()
    with pytest.raises(FileExistsError, match=r"weights also contains pictures/mine\.png, test/mine\.png, which"):
        write_weights(folder)
    other = folder.parent / "experiment"
    other.mkdir()
    (other / "config.json").write_text('{"lr": 0.1}')
    with pytest.raises(FileExistsError, match="experiment exists and is not a weight folder"):
        write_weights(other)


def test_a_damaged_folder_is_replaced(old) -> None:
    folder, before = old
    (folder / "pictures").mkdir()
    (folder / "pictures/curves.png").touch()
    (folder / "config.json").write_text("{")
    other = folder.parent / "bert"
    other.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, other)
    with pytest.raises(FileExistsError, match="bert exists and is not a weight folder"):
        write_weights(other)
    write_weights(folder)
    assert file_contents(folder).keys() == before.keys() and not check_folder(folder)


def test_the_current_directory_is_not_replaced(old, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell would stay in the deleted directory."""
    folder, before = old
    (folder / "test").mkdir(exist_ok=True)
    monkeypatch.chdir(folder / "test")
    for target in ("..", folder):
        with pytest.raises(ValueError, match="contains the current directory"):
            write_weights(target)
    assert file_contents(folder) == before


def test_a_symbolic_link_stays(old) -> None:
    folder, before = old
    link = folder.parent / "current"
    link.symlink_to(folder)
    torch.manual_seed(1)
    write_weights(link)
    assert link.is_symlink() and file_contents(folder)["model.safetensors"] != before["model.safetensors"]
