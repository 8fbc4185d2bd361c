"""Unknown, misspelt and incomplete options are refused in one line with the closest option."""

from pathlib import Path

import pytest

pytest.importorskip("lightning")

from support.training import three_epochs

from acmix_zoo.cli.main import main

ROOT = Path(__file__).parents[2]


def test_an_unknown_option_is_named(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(three_epochs(photos, tmp_path / "run", "--model.learning_rate=1"))
    assert stop.value.code == 2
    assert "learning_rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.lrr", "1"], "unknown option --model.lrr; did you mean --model.lr"),
        (["--lr=1"], "unknown option --lr; did you mean --model.lr"),
        (["--data.batchsize=1"], "unknown option --data.batchsize; did you mean --data.batch_size"),
        (["--model.optimizer=adamm"], "--model.optimizer: expected one of 'adamw', 'sgd'. Got adamm"),
        (["--model.lr=fast"], "--model.lr: expected a number. Got fast"),
        (["stray"], "unexpected argument 'stray'"),
        (["--config", "misspelt.yaml"], "in the configuration, unknown option --model.lrr; did you mean --model.lr"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_options_of_fit_are_rejected_in_one_line(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("misspelt.yaml").write_text("model:\n  lrr: 1\n")
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--model.model=test_resnet", *options])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert (
        lines[-2].startswith(f"acmix-zoo fit: error: {message}")
        and lines[-1] == "All options: acmix-zoo fit --help-all"
    )
    assert len(lines) == 2 and "typing" not in lines[0]


def test_wrong_options_of_other_commands_are_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["classify", "a.png", "--model", "weights", "--topp", "3"])
    assert "acmix-zoo classify: error: unknown option --topp; did you mean --top?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["fit", "--confg", "x.yaml"], "unknown option --confg; did you mean --config?"),
        (["fit", "--con", str(ROOT / "recipes/finetune/folder.yaml")], "unknown option --con; did you mean --config?"),
        (["fit", "--model.model", "x", "--data.sourc", "y"], "unknown option --data.sourc; did you mean --data.source"),
        (["fit", "--lr", "1"], "unknown option --lr; did you mean --model.lr"),
        (["fit", "--data.source", "x"], "missing option --model.model"),
        (
            ["fit", "--config", "recipes/finetune/foldr.yaml"],
            "The closest names are finetune/folder",
        ),
        (["fit", "--config", "recipes/finetune"], "--config recipes/finetune is a folder without a config.yaml"),
        (["verify", "x", "--dat", "y"], "acmix-zoo verify: error: unknown option --dat; did you mean --data?"),
        (
            ["classify", "x", "--model", "y", "--to=3"],
            "acmix-zoo classify: error: unknown option --to; did you mean --top?",
        ),
        (["data", "x", "--label", "y"], "unknown option --label; did you mean --label_column?"),
        (["list", "--pre"], "unknown option --pre; did you mean --pretrained?"),
        (["export", "x", "y", "--no"], "unknown option --no; did you mean --no-ema?"),
        (["plan", "x", "--gp", "1"], "unknown option --gp; did you mean --gpus or --gpu or --gpus-per-node?"),
        (["bench", "acmix_resnet_pico", "--rep", "1"], "unknown option --rep; did you mean --repeats?"),
    ],
    ids=lambda value: " ".join(value[:3:2]) if isinstance(value, list) else "",
)
def test_incomplete_options_and_paths_are_rejected_with_a_hint(
    words: list[str], hint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options cannot be abbreviated, because a prefix could set a different option than intended."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert hint in error and f"All options: acmix-zoo {words[0]} --help" in error
    assert len(error.splitlines()) == 2


@pytest.mark.parametrize("command", ["reproduce", "plan"])
def test_the_closest_recipe_is_named(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main([command, "recipes/fashion_mnist/acmix_resnet_pic.yaml"]) == 1
    assert "The closest names are fashion_mnist/acmix_resnet_pico" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bench", "resnet18", "--device", "foo"], "there is no device foo here. Expected cpu, or cuda on a machine"),
        (["bench", "resnet18", "--device", "meta"], "there is no device meta here. Expected cpu"),
        (["bench", "resnet18", "resnet18+deploy", "--mode", "both"], "resnet18+deploy cannot be trained. Use --mode"),
        (["bench", "resnet18", "--plot", "x.foo"], "--plot cannot write x.foo. Expected a name that ends in .png"),
        (["classify", "x.png", "--model", "m", "--csv", "."], "--csv . is a folder. Expected the name of a file"),
        (["classify", "x.png", "--model", "m", "--csv", f"{__file__}/x.csv"], "x.csv cannot be written ("),
        (["classify", "x.png", "--model", "m", "--sheet", f"{__file__}/x.png"], "x.png cannot be written ("),
        (["bench", "resnet18", "--csv", f"{__file__}/x.csv"], "x.csv cannot be written ("),
        (["predict", "x.png", "--model", "m", "--output", __file__], "is a file. Expected the name of a folder"),
        (["predict", "x.png", "--model", "m", "--output", f"{__file__}/a/b"], "test_wrong_options.py is a file)"),
        (["explain", "x.png", "--model", "m", "--out", f"{__file__}/a"], "a cannot be written ("),
        (["explain", "x.png", "--model", "m", "--out", "a" * 300], "cannot be written (File name too long)"),
        (["bench", "resnet18", "--csv", "/proc/x/y.csv"], "y.csv cannot be written ("),
        (["export", "acmix_resnet_pico.fashion_mnist", f"{__file__}/x.pt2"], "x.pt2 cannot be written ("),
        (["info", "resnet18", "--size", "0"], "--size must be at least 1"),
    ],
)
def test_impossible_values(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert message in capsys.readouterr().err


def test_info_at_a_size_that_the_network_does_not_support(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "levit_128", "--size", "33"]) == 1
    assert "levit_128 does not work with images of 33×33 pixels (" in capsys.readouterr().err
