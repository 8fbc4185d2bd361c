"""Only one run at a time writes a run folder."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lightning")

from support.training import (
    fit_arguments,
)

from acmix_zoo.cli.main import main
from acmix_zoo.training.lock import Lock

HOLD = """
import sys, time
from pathlib import Path
from acmix_zoo.training.lock import Lock
lock = Lock(Path(sys.argv[1]))
lock.take()
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_run_in_the_same_folder_is_refused(
    tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
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
        holder.wait()
    lock = Lock(tmp_path)
    lock.take()
    lock.release()
    Lock(tmp_path).take()
