"""`acmix-zoo validate`, `test`, `verify --data` and `reproduce` repeat the scores and weights of a run of any task."""

from pathlib import Path

import pytest

pytest.importorskip("lightning")

from support.tasks import TrainedTask
from support.training import have_same_weights

from acmix_zoo.cli.main import main
from acmix_zoo.weights import read_config


def test_a_run_is_reproduced_from_its_portable_record(trained: TrainedTask, tmp_path: Path) -> None:
    """The record does not contain the path of the data, but config.yaml does."""
    run = trained.folder
    assert main(["reproduce", str(run), "--run.folder", str(tmp_path / "again")]) == 0
    assert have_same_weights(run / "checkpoints/best.ckpt", tmp_path / "again/checkpoints/best.ckpt")


def modification_times(run: Path, split: str) -> dict[Path, int]:
    """Return when the files of a run were last changed, without those that an evaluation of a split writes."""
    return {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and p.parent != run / split}


@pytest.mark.parametrize(
    ("command", "options"),
    [("validate", {"--config": "config.yaml"}), ("test", {"--config": "weights", "--ckpt_path": "."})],
)
def test_evaluation_repeats_the_record(
    command: str, options: dict[str, str], trained: TrainedTask, capsys: pytest.CaptureFixture[str]
) -> None:
    """The options accept every part of the run folder."""
    run, kind = trained.folder, trained.task.kind
    split = {"validate": "val", "test": "test"}[command]
    before = modification_times(run, split)
    assert main([command, *[f"{option}={run / part}" for option, part in options.items()]]) == 0
    record = read_config(run / "weights")["acmix_zoo"]
    expected = {m["name"]: m["value"] for m in record["metrics"] if m["split"] == split}
    shown = [f"{label} {100 * expected[name]:.2f} %" for name, label in kind.metrics.items() if name in expected]
    out = capsys.readouterr().out
    assert f"{split}: {', '.join(shown)}" in out
    if split == "test" and kind.class_metrics:
        scores = record["class_scores"]["values"]
        assert tuple(scores) == kind.class_metrics
        columns = [[f"{100 * value:.2f} %" for value in values.values()] for values in scores.values()]
        rows = [line.split("  ") for line in out.splitlines()]
        shown_rows = [tuple(cell.strip() for cell in row if cell.strip())[-len(columns) :] for row in rows]
        assert all(cells in shown_rows for cells in zip(*columns, strict=True))
        card = (run / "weights/README.md").read_text(encoding="utf-8")
        assert all(f"| {' | '.join(cells)} |" in card for cells in zip(*columns, strict=True))
    assert modification_times(run, split) == before


def test_the_recorded_scores_are_measured_again(trained: TrainedTask, capsys: pytest.CaptureFixture[str]) -> None:
    run, kind = trained.folder, trained.task.kind
    assert main(["verify", str(run), "--data", str(trained.source)]) == 0
    out = capsys.readouterr().out
    for metric in read_config(run / "weights")["acmix_zoo"]["metrics"]:
        if metric["name"] in kind.metrics:
            value = 100 * metric["value"]
            shown = f"{metric['split']} {metric['name']}: {value:.2f} % measured, {value:.2f} % recorded"
            assert shown in out
    assert out.count("test ") and out.count("val ")
