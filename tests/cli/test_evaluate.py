"""`acmix-zoo validate`, `test` and `reproduce` repeat the scores and weights of a run."""

from pathlib import Path

import pytest

pytest.importorskip("lightning")

from support.training import have_same_weights

from acmix_zoo.cli.main import main
from acmix_zoo.weights import read_config


def test_a_run_is_reproduced_from_its_portable_record(run: Path, tmp_path: Path) -> None:
    """The record does not contain the path of the data, but config.yaml does."""
    assert main(["reproduce", str(run), "--run.folder", str(tmp_path / "again")]) == 0
    assert have_same_weights(run / "checkpoints/best.ckpt", tmp_path / "again/checkpoints/best.ckpt")


@pytest.mark.parametrize(
    ("command", "options"),
    [("validate", {"--config": "config.yaml"}), ("test", {"--config": "weights", "--ckpt_path": "."})],
)
def test_evaluation_repeats_the_record(
    command: str, options: dict[str, str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The options accept every part of the run folder."""
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    assert main([command, *[f"{option}={run / part}" for option, part in options.items()]]) == 0
    split = {"validate": "val", "test": "test"}[command]
    record = read_config(run / "weights")["acmix_zoo"]
    expected = {m["name"]: m["value"] for m in record["metrics"] if m["split"] == split}
    shown = capsys.readouterr().out
    assert f"{split}: top-1 {100 * expected['top1']:.2f} %, loss " in shown
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before
