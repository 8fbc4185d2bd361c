"""`acmix-zoo reproduce`: real trainings on tiny images, compared with their records."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

from support.training import make_image_folder
from support.weight_folders import SHIPPED, edit_config

from acmix_zoo.cli.main import main
from acmix_zoo.cli.record_comparison import print_comparison, tolerance
from acmix_zoo.cli.recorded_command import Target, find_target, recorded_arguments
from acmix_zoo.cli.reproduce import reproduce
from acmix_zoo.models.published import PUBLISHED
from acmix_zoo.weights import read_config
from acmix_zoo.weights.recipe_files import find_recipe

TRUST = "--trust-command"  # the recipes here are not shipped
RECIPE = """
seed_everything: 3
run: {{folder: {folder}, tag: {tag}}}
data: {{source: images, image_size: 32, batch_size: 16, val_fraction: 0.5}}
model: {{model: test_resnet, lr: 0.01, pretrained: {pretrained}}}
trainer: {{max_epochs: 3, accelerator: cpu, enable_model_summary: false}}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images, two recipes, and the weights of the second, which starts from those of the first."""
    folder = tmp_path_factory.mktemp("trained")
    make_image_folder(folder / "images", per_class=60)
    recipes = {"first": "false", "second": "runs/first/weights"}
    for name, pretrained in recipes.items():
        text = RECIPE.format(folder=f"runs/{name}", tag=name, pretrained=pretrained)
        (folder / f"{name}.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in recipes:
            assert main(["fit", "--config", f"{name}.yaml", "--model.weight_decay", "0.02"]) == 0
    shutil.move(folder / "runs/second/weights", folder / "weights")
    shutil.rmtree(folder / "runs")
    return folder


@pytest.fixture
def project(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of that folder, and make it the working directory. The runs themselves are missing."""
    shutil.copytree(trained, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def line_starting_with(text: str, word: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(word))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both stages are trained with the recorded settings, which include an option on the command line."""
    extra = ["--model.weight_decay", "0.02"]  # the record of the second stage does not have the options of the first
    assert main(["fit", "--config", "first.yaml", *extra]) == 0
    assert main(["reproduce", "weights", TRUST]) == 0
    out = capsys.readouterr().out
    assert "test_resnet.second: reproduced, bitwise equal: sha256" in out
    assert line_starting_with(out, "val top1").split()[-1] == "within"
    again = read_config(project / "runs/reproduce/test_resnet.second/weights")["acmix_zoo"]
    assert again["sha256"] == read_config(project / "weights")["acmix_zoo"]["sha256"]
    assert "--model.weight_decay 0.02" in again["command"]

    assert main(["reproduce", "weights", TRUST]) == 0  # the finished run is only compared
    out = capsys.readouterr().out
    assert "is finished, so it is only compared" in out and "epoch" not in out and "bitwise equal" in out


@pytest.mark.slow
def test_a_missing_first_stage_is_trained(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its recipe is found by its run folder. Options for data and machine apply to it, but not the second stage's.

    It uses the data source of the recorded command, because the one in the recipe may be somewhere else.
    """
    (project / "images").rename(project / "photos")
    command = read_config(project / "weights")["acmix_zoo"]["command"]
    edit_config(project / "weights", acmix_zoo={"command": f"{command} --data.source photos"})
    assert main(["reproduce", "weights", TRUST, "--run.folder", "again", "--trainer.max_epochs", "2"]) in (0, 1)
    out = capsys.readouterr().out
    assert "First training second.yaml" not in out
    assert "First training first.yaml, which produces the weights to start from" in out
    assert out.index("First training first.yaml") < out.index("Training test_resnet.second in again")
    record = read_config(project / "runs/first/weights")["acmix_zoo"]
    assert record["epochs"] == 2 and "weight_decay" not in record["command"]
    assert "not bitwise equal" in out


def test_a_different_result_is_reported_and_fails(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The data differs: the same images are in different classes."""
    images = sorted((project / "images").rglob("*.png"))
    for i, picture in enumerate(images):
        picture.rename(project / f"images/class{i % 3}/other{i}.png")
    arguments = ["--model.pretrained", "false", "--model.lr=0.02", "--run.folder", "bad"]
    assert main(["reproduce", "weights", TRUST, *arguments]) == 1
    out = capsys.readouterr().out
    recorded = read_config(project / "weights")["acmix_zoo"]["dataset"]["fingerprint"]
    assert f"was recorded with {recorded}" in out
    assert out.index("the images are not those of the record") < out.index("epoch 1/3")
    assert "test_resnet.second: not reproduced, not bitwise equal. What differs: " in out
    assert "--model.lr (none in the record, 0.02 here)" in out and f"data ({recorded} in the record" in out
    row = line_starting_with(out, "val top1")
    assert row.endswith("outside")
    record, found = (read_config(project / p)["acmix_zoo"] for p in ("weights", "bad/weights"))
    values = [next(100 * m["value"] for m in r["metrics"] if m["name"] == "top1") for r in (record, found)]
    assert [float(word.rstrip("%")) for word in row.split() if word[0].isdigit()] == pytest.approx(
        [values[0], values[1]], abs=0.006
    )  # fmt: skip
    assert f"{values[1] - values[0]:+.2f}" in row

    assert main(["reproduce", "weights", TRUST, "--run.folder", "bad", "--tolerance", "100"]) == 0
    capsys.readouterr()
    (project / "weights/config.json").write_text(  # a test score that the run did not measure
        json.dumps({**read_config(project / "weights"), "acmix_zoo": {
            **record, "metrics": [*record["metrics"], {"split": "test", "name": "top1", "value": 0.5}]
        }})
    )  # fmt: skip
    assert main(["reproduce", "weights", TRUST, "--run.folder", "bad", "--tolerance", "100"]) == 1
    assert line_starting_with(capsys.readouterr().out, "test top1").endswith("not measured")


@pytest.mark.slow
def test_an_interrupted_reproduction_is_resumed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is only compared once it is finished."""
    assert main(["fit", "--config", "first.yaml", "--model.weight_decay", "0.02"]) == 0
    shutil.copytree(project / "weights", project / "kept")
    assert main(["reproduce", "kept", TRUST, "--run.folder", "cut"]) == 0
    shutil.rmtree(project / "cut/weights")  # a kill between the last epoch and the weights leaves such a run
    capsys.readouterr()
    assert main(["reproduce", "kept", TRUST, "--run.folder", "cut"]) == 0
    out = capsys.readouterr().out
    assert "epoch 1/3" not in out and "bitwise equal" in out
    assert main(["reproduce", "kept", TRUST, "--run.folder", "rehearsal", "--trainer.fast_dev_run", "1"]) == 0
    assert "reproduced" not in capsys.readouterr().out


# ---- names


def test_a_recipe_is_found_by_any_of_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a recipe below the working directory would be taken first
    shipped = find_target("acmix_san_pico.fashion_mnist")
    for name in ("acmix_san_pico", "recipes/fashion_mnist/acmix_san_pico.yaml", "fashion_mnist/acmix_san_pico"):
        assert find_target(name) == shipped
    assert shipped.arguments[1] == str(find_recipe("acmix_san_pico"))
    assert shipped.arguments[2:] == ["--seed_everything", "0"]
    for name, scores in PUBLISHED.items():
        if name.startswith("acmix_"):
            target = find_target(f"imagenet1k/{name}")
            assert target.record["metrics"] == [{"split": "val", "name": "top1", "value": float(scores.top1) / 100}]
    assert find_target("acmix_resnet50_modern").record == {}
    assert find_target("acmix_swin_nano_stage1").record == {}
    assert find_recipe("ddp_8gpu") is None


def test_arguments_of_a_recorded_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments of a recorded command are kept, except for the run folder, its checkpoint and its publication."""
    monkeypatch.chdir(tmp_path)
    command = "acmix-zoo fit --config recipes/finetune/full.yaml --run.folder=x --ckpt_path last --run.push_to o/n"
    command += " -c recipes/hardware/cpu.yaml --model.lr=1e-3 --data.mean '[0, -1, 1]' --trainer.devices 1"
    record: dict[str, Any] = {"name": "w", "command": command, "seed": 7}
    recipes = [str(find_recipe(f"recipes/{name}.yaml")) for name in ("finetune/full", "hardware/cpu")]
    assert shlex.join(recorded_arguments(record)) == shlex.join([
        "--config", recipes[0], "--config", recipes[1], "--model.lr", "1e-3", "--data.mean", "[0, -1, 1]",
        "--trainer.devices", "1", "--seed_everything", "7",
    ])  # fmt: skip
    assert recorded_arguments({"name": "w", "recipe": "recipes/finetune/full.yaml"}) == ["--config", recipes[0]]
    for name in (
        "gone.yaml",
        "acmix_resnet50.yaml",
        "finetune/full.yaml",
    ):  # shipped ones start with recipes/
        with pytest.raises(FileNotFoundError, match=rf"the record of w names {name}, which does not exist and is not"):
            recorded_arguments({"name": "w", "recipe": name})
    (tmp_path / "gone.yaml").touch()
    assert recorded_arguments({"name": "w", "recipe": "gone.yaml"}) == ["--config", "gone.yaml"]


@pytest.mark.parametrize("name", ["acmix_resnet50.yaml", "mine.yaml", "recipes/mine.yaml"])
def test_a_recipe_of_the_user_is_not_confused_with_a_shipped_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record has only its file name. The configuration of the run is used, and no file with the same name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / name).touch()
    config = tmp_path / "run/config.yaml"
    config.parent.mkdir()
    config.write_text("run: {push_to: org/name}\ndata: {source: 'file:///home/ann/x'}\n")
    record = {"name": "w", "command": f"acmix-zoo fit --config {name} -c recipes/hardware/cpu.yaml --data.source x"}
    assert recorded_arguments(record, config) == [
        "--config", str(config), "--run.push_to", "null", "--config", str(find_recipe("recipes/hardware/cpu.yaml")),
        "--data.source", "file:///home/ann/x",
    ]  # fmt: skip


def test_options_that_changed_when_the_run_was_resumed_are_reported(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = read_config(project / "weights")
    changes = [{"step": 4, "options": {"trainer.max_epochs": [2, 3]}}]
    record = config["acmix_zoo"] = {**config["acmix_zoo"], "changes": changes}
    (project / "weights/config.json").write_text(json.dumps(config))

    def train(arguments: list[str], before_fit: Any) -> Any:
        print("the training")
        raise InterruptedError

    with pytest.raises(InterruptedError):
        reproduce(["weights", TRUST, "--model.pretrained", "false"], train)
    out = capsys.readouterr().out
    changed = "trainer.max_epochs from 2 to 3 after step 4"
    assert f"changed when it was resumed ({changed}), so a single command does not repeat it bit for bit" in out
    assert out.index("options of the recorded run were changed") < out.index("the training")
    repeated = {key: value for key, value in record.items() if key != "changes"} | {"sha256": "0" * 64}
    assert print_comparison(Target("w", [], record), repeated)
    printed = capsys.readouterr().out
    assert f"What differs: options changed on resuming ({changed} in the record, none here)\n" in printed


def test_another_backend_is_reported(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = read_config(project / "weights")["acmix_zoo"]
    assert "backend" not in record["environment"]  # a plain network
    ran = {**record["environment"], "backend": "native", "instruction_set": "avx2"}
    record["environment"] = ran
    other = {**record, "sha256": "0" * 64, "environment": {**ran, "backend": "old", "instruction_set": "sse"}}
    assert print_comparison(Target("w", [], other), record)
    differs = f"backend (old in the record, {ran['backend']} here); instruction_set (sse in the record,"
    assert f"What differs: {differs} {ran['instruction_set']} here)\n" in capsys.readouterr().out


def test_the_tolerance_is_three_standard_errors() -> None:
    assert tolerance("top1", 0.5, 10_000) == pytest.approx(0.015, rel=1e-3)  # 3 × 0.5 / 100
    assert 0 < tolerance("top5", 1.0, 1000) < 0.005
    assert tolerance("top1", 0.9, 100) > tolerance("top1", 0.9, 10_000)


@pytest.mark.parametrize("metric", ["map", "map_50", "miou", "pixel_accuracy"])
def test_the_number_of_images_says_nothing_about_scores_of_pixels_and_boxes(metric: str) -> None:
    assert tolerance(metric, 0.5, 72) == tolerance(metric, 0.9, 10_000) == 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_weights"], "unknown model 'no_such_weights'"),
        (["./nothing.yaml"], "./nothing.yaml does not exist. Expected the name of a recipe"),
    ],
    ids=["name", "file"],
)
def test_unknown_names_are_rejected(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"acmix-zoo: error: {message}") and len(error.splitlines()) == 1


def test_an_option_without_a_value_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["reproduce", "acmix_resnet_pico.fashion_mnist", "--config"])
    assert "expected" in capsys.readouterr().err


def test_converted_weights_cannot_be_reproduced(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = read_config(project / "weights")
    config["acmix_zoo"] = {"name": "w", "origin": "converted from w.pth"}
    (project / "weights/config.json").write_text(json.dumps(config))
    assert main(["reproduce", "weights", TRUST]) == 1
    assert "neither a command nor a recipe (origin: converted from w.pth)" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["reproduce", "--model.lr", "1", "weights"])
    assert stop.value.code == 2
    assert "Expected NAME first, then options" in capsys.readouterr().err


CODE = "{class_path: mine.Callback}"


@pytest.mark.parametrize(
    "words",
    ["--trainer.logger=CSVLogger --trainer.logger.save_dir=/etc", "--trainer.callbacks+=mine.Callback",
     "--trainer '{logger: CSVLogger}'", "--trainer mine", "--trainer.logger mine", "--trainer.accelerator mine",
     "--model mine", "--trainer.accelerator mine.Device", "--trainer.accelerator.class_path=mine.Device",
     f"--model.model_kwargs '{{x: {CODE}}}'", f"--model.model_kwargs.x '{CODE}'",
     f"""--model.model_kwargs '{{x: "{CODE}"}}'""",
     "-c mine", "--config mine", "--config recipes/../mine", "--model.lr 0.1 -cmine", "--model.lr -c=mine",
     f"--model.lr '-c{{trainer: {{callbacks: [{CODE}]}}}}'"],
)  # fmt: skip
def test_the_record_of_foreign_weights_runs_no_code(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in the working directory may have come with the weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text(CODE)
    (tmp_path / "recipes/fashion_mnist").mkdir(parents=True)
    (tmp_path / "recipes/fashion_mnist/acmix_swin_pico.yaml").write_text(CODE)  # the shipped one is meant
    folder = Path(shutil.copytree(SHIPPED, "weights"))
    plain = "acmix-zoo fit --config recipes/fashion_mnist/acmix_swin_pico.yaml --trainer.logger false"
    plain += " --trainer.strategy ddp --trainer.devices 0,1 --trainer.max_time '{hours: 1}' --trainer.callbacks []"
    edit_config(folder, acmix_zoo={"command": f"{plain} --model.lr 1e-3 --data.seed -1 --ckpt_path last"})
    assert "--model.lr" in find_target("weights").arguments
    edit_config(folder, acmix_zoo={"command": f"{plain} {words}"})
    with pytest.raises(ValueError, match=r"record of weights has --(?s:.*)add --trust-command"):
        find_target("weights")
    assert find_target("weights", is_trusted=True).arguments


def test_a_configuration_beside_foreign_weights_is_not_used(tmp_path: Path) -> None:
    """A clone of a repository may contain a config.yaml that runs code."""
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "clone"))
    (folder / "config.yaml").write_text(f"trainer: {{callbacks: {CODE}}}")
    assert str(folder / "config.yaml") not in find_target(str(folder)).arguments


@pytest.mark.parametrize(
    "record", [{"command": 5}, {"command": "acmix-zoo fit 'x"}, {"name": None}, {"command": "train", "recipe": None}]
)
def test_a_damaged_record_is_reported(record: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "weights"))
    edit_config(folder, acmix_zoo=record)
    with pytest.raises(ValueError, match=r"the record of .*weights is damaged"):
        find_target(str(folder))


@pytest.mark.parametrize(("name", "expected"), [("/elsewhere/outside", "elsewhere-outside"), ("..", "weights")])
def test_the_name_of_foreign_weights_stays_in_its_folder(project: Path, name: str, expected: str) -> None:
    config = json.loads((project / "weights/config.json").read_text())
    config["acmix_zoo"]["name"] = name
    (project / "weights/config.json").write_text(json.dumps(config))
    arguments: list[str] = []

    def train(given: list[str], before_fit: Any) -> Any:
        arguments.extend(given)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce(["weights", TRUST, "--model.pretrained", "false"], train)
    folder = Path(arguments[arguments.index("--run.folder") + 1])
    assert folder == Path("runs/reproduce") / expected
