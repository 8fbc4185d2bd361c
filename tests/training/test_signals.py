"""Signals over several processes, and requeueing a SLURM job."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

from torch import Tensor

from acmix_zoo.training.signals import Interrupted, Signals, ending_on_sigterm, requeue


def test_a_slurm_job_is_requeued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    requeue()
    assert capsys.readouterr().out == ""  # no SLURM job
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("PATH", str(tmp_path))
    requeue()
    printed = capsys.readouterr().out
    assert "could not requeue SLURM job 12" in printed and "run `scontrol requeue 12` or submit" in printed
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $@ > {tmp_path}/called\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "11")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    requeue()
    assert (tmp_path / "called").read_text() == "requeue 11_3\n"
    assert "Requeued SLURM job 11_3" in capsys.readouterr().out


def test_a_signal_that_arrives_during_the_exchange_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    signals = Signals()

    def receive_signal(values: Tensor, *_: Any) -> None:
        signals.number = signal.SIGTERM

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", receive_signal)
    assert signals.agree(torch.device("cpu")) == [0]
    assert signals.agree(torch.device("cpu")) == [signal.SIGTERM]


def test_a_sigterm_inside_a_destructor_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    """Python ignores exceptions there, also those of signal handlers."""

    class Terminated:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    kept = [Terminated()]
    with pytest.raises(Interrupted) as raised, ending_on_sigterm():
        kept.clear()
        time.sleep(10)
    assert raised.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err.count("stopped by SIGTERM") == 1
