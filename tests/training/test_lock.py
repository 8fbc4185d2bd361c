"""Only one run at a time writes a run folder."""

import multiprocessing
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

pytest.importorskip("lightning")

from support.training import (
    fit_arguments,
)

from acmix_zoo.cli.main import main
from acmix_zoo.training.lock import Lock


def hold_lock(folder: Path, is_held: Event) -> None:
    """Take the lock of a run folder and keep it."""
    lock = Lock(folder)
    lock.take()
    is_held.set()
    time.sleep(60)


def test_a_second_run_in_the_same_folder_is_rejected(
    tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fork = multiprocessing.get_context("fork")  # a new process would import torch again
    is_held = fork.Event()
    holder = fork.Process(target=hold_lock, args=(tmp_path, is_held))
    holder.start()
    try:
        assert is_held.wait(60)
        message = rf"another run is writing to .* \(process {holder.pid} on .*\)\. Stop that run"
        with pytest.raises(OSError, match=message):
            Lock(tmp_path).take()
        arguments = fit_arguments(image_folder, tmp_path, ckpt_path="last")
        assert main(arguments) == 1
        assert f"acmix-zoo: error: another run is writing to {tmp_path} (process" in capsys.readouterr().err
        assert main([*arguments, "--trainer.fast_dev_run=true"]) == 0
        assert not (tmp_path / "config.yaml").exists()  # the folder belongs to the other run
    finally:
        holder.kill()
        holder.join()
    lock = Lock(tmp_path)
    lock.take()
    lock.release()
    Lock(tmp_path).take()
