"""Ctrl-C and signals that stop a command at any time."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lightning")

from support.training import (
    InterruptTest,
    SignalBeforeFirstStep,
    callback_option,
    fit_arguments,
    make_data,
    make_trainer,
)

from acmix_zoo.cli.main import main
from acmix_zoo.tasks import ClassificationTask
from acmix_zoo.training.run import RunFolder
from acmix_zoo.training.signals import Interrupted
from acmix_zoo.weights import check_folder

ROOT = Path(__file__).parents[2]


def test_an_interrupted_test_reports_that_the_weights_are_safe(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    arguments = fit_arguments(photos, tmp_path / "run", ckpt_path="last")
    try:
        with pytest.raises(Interrupted) as stop:
            main([*arguments, f"--trainer.callbacks={callback_option(InterruptTest)}"])
    finally:
        signal.signal(signal.SIGINT, handler)
    assert stop.value.code == 128 + signal.SIGINT
    printed = capsys.readouterr().out
    assert f"the best weights are in {tmp_path / 'run/checkpoints/best.ckpt'}" in printed
    assert "Run the same command again to complete them" in printed
    assert main(arguments) == 0
    assert check_folder(tmp_path / "run/weights") == []


def test_the_resume_message_says_how_to_resume(photos: Path, tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    assert run.resume_message == "Nothing had been saved yet."
    make_trainer(run, epochs=1).fit(ClassificationTask("test_resnet", num_classes=3), make_data(photos / "train"))
    assert "pass it to Trainer.fit as ckpt_path" in run.resume_message
    run.resume_command = "the same command again"
    assert run.resume_message.endswith("run the same command again to resume.")


def accept_ctrl_c() -> None:
    """React to Ctrl-C even if pytest runs as a background job of a shell, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_before_the_first_step_leaves_no_folder(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = callback_option(SignalBeforeFirstStep, name="SIGINT")
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    try:
        assert main(fit_arguments(photos, tmp_path / "run", trainer__callbacks=callback)) == 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, handler)
    assert capsys.readouterr().err.splitlines()[-1] == "acmix-zoo: interrupted"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "line"), [("SIGINT", "interrupted"), ("SIGTERM", "stopped by SIGTERM")])
def test_a_signal_before_the_first_step_leaves_no_folder(name: str, line: str, photos: Path, tmp_path: Path) -> None:
    """The command, in its own process, prints one line and exits with the code of the signal."""
    callback = callback_option(SignalBeforeFirstStep, name=name)
    arguments = fit_arguments(photos, tmp_path / "run", trainer__callbacks=callback)
    command = [sys.executable, "-m", "acmix_zoo.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, preexec_fn=accept_ctrl_c)
    assert result.returncode == 128 + getattr(signal, name)
    assert [row for row in result.stderr.splitlines() if "Seed set" not in row and row] == [f"acmix-zoo: {line}"]
    assert not (tmp_path / "run").exists()


def test_ctrl_c_during_imports_prints_one_line(tmp_path: Path) -> None:
    """A fake torch module sends the signal, before the command line is reached."""
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    result = subprocess.run(
        [sys.executable, "-m", "acmix_zoo.cli", "list"],
        capture_output=True, text=True, env=environment, preexec_fn=accept_ctrl_c,
    )  # fmt: skip
    assert (result.returncode, result.stderr.strip()) == (130, "acmix-zoo: interrupted")


def test_ctrl_c_in_a_command_prints_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("acmix_zoo.cli.list.list_networks", interrupt)
    assert main(["list"]) == 130
    assert capsys.readouterr().err.strip() == "acmix-zoo: interrupted"
