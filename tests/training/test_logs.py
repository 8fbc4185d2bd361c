"""A TensorBoard log that cannot be written does not end the training."""

import shutil
import threading
from pathlib import Path

import pytest

pytest.importorskip("lightning")


from acmix_zoo.training.logs import Log


def test_a_log_that_cannot_be_written_does_not_end_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)  # TensorBoard writes in a thread, which dies
    log = Log(tmp_path / "tensorboard")
    with pytest.raises(ValueError, match="not supported"):
        log.log_metrics({"loss": "no number"})  # type: ignore[dict-item]
    shutil.rmtree(tmp_path / "tensorboard")
    for step in range(5):
        log.log_metrics({"loss": 1.0}, step)
        log.save()
    log.finalize("success")
    printed = capsys.readouterr().out
    assert (
        printed.count("could not write") == 1 and "No such file or directory. The TensorBoard log ends here" in printed
    )
