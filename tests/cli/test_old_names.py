"""Options are accepted under the names that they had in earlier versions."""

from pathlib import Path

import pytest

from acmix_zoo.cli.main import main
from acmix_zoo.cli.old_names import with_current_keys, with_current_options


def test_old_options_of_a_recorded_command_are_renamed() -> None:
    given = ["fit", "--data.max_bad", "3", "--data.predict_source=photos", "--run.folder", "--data.max_bad_luck=1"]
    assert with_current_options(given) == [
        "fit", "--data.max_unreadable", "3", "--data.predict=photos", "--run.folder", "--data.max_bad_luck=1",
    ]  # fmt: skip
    assert with_current_options(["--model.lr_batch=32"]) == ["--model.base_batch_size=32"]


def test_old_keys_of_a_configuration_are_renamed() -> None:
    config = {"data": {"max_bad": 3, "seed": 1}, "max_bad": 5, "ckpt_path": None}
    assert with_current_keys(config) == {"data": {"max_unreadable": 3, "seed": 1}, "max_bad": 5, "ckpt_path": None}
    assert config["data"] == {"max_bad": 3, "seed": 1}
    assert with_current_keys("max_bad") == "max_bad"


def test_the_configuration_of_an_old_run_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("data:\n  source: digits\n  max_bad: 7\n  predict_source: photos\nmodel:\n  model: resnet18\n")
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", str(file), "--print_config"])
    printed = capsys.readouterr().out
    assert exit_.value.code == 0
    assert "  max_unreadable: 7\n" in printed and "  predict: photos\n" in printed and "max_bad" not in printed
