"""Which options may change for a resumed or finished run, on the command line and in Python."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

import yaml
from support.training import (
    CrashInSecondEpoch,
    callback_option,
    fit_arguments,
    make_data,
    make_image_folder,
    make_task,
    make_trainer,
)

from acmix_zoo.cli.main import main
from acmix_zoo.cli.trainer import TrainingCLI
from acmix_zoo.layers import ACmix2d
from acmix_zoo.tasks import ClassificationTask
from acmix_zoo.training import RunFolder
from acmix_zoo.training.export_weights import export_run
from acmix_zoo.training.option_rules import RULES, Rule, find_changes, flatten
from acmix_zoo.weights import create_model, read_config, write_folder

# Options of every run here, in addition to data.source, run.folder and ckpt_path.
MORE = {"model__lr": 0.001, "trainer__max_epochs": 2, "trainer__limit_train_batches": 2}


class Parsed(Exception):
    """Stops the command line once its parser is built."""


@pytest.fixture(scope="module")
def parser() -> Any:
    """The parser of `fit`."""

    class OnlyParser(TrainingCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            raise Parsed(self._parser("fit"))

    with pytest.raises(Parsed) as parsed:
        OnlyParser("")
    return parsed.value.args[0]


# ---- the table


def test_every_option_has_a_rule(parser: Any) -> None:
    """The options come from the parser itself, so that no new option, including Lightning's, can be forgotten."""
    helpers = ("_HelpAction", "ActionConfigFile", "_ActionPrintConfig", "_ActionHelpClassPath", "_ActionConfigLoad")
    options = {action.dest for action in parser._actions if type(action).__name__ not in helpers}
    options -= {"data.num_classes --> model.num_classes", "model.num_classes"}  # the data's, compared with the data
    assert len(options) > 90
    assert sorted(options - RULES.keys()) == [], "give these options a rule in acmix_zoo/training/option_rules.py"
    assert sorted(RULES.keys() - options) == [], "these options no longer exist"


def test_a_parsed_configuration_keeps_every_option(parser: Any) -> None:
    config = parser.parse_args(["--data.source=x", "--model.model=test_resnet", "--trainer.callbacks=null"])
    assert flatten(config).keys() == RULES.keys()
    assert json.loads(json.dumps(flatten(config))) == flatten(config)


def test_values_are_compared_as_they_mean() -> None:
    recorded = {"data.mean": [0.5, 0.5], "data.classes_file": "a/b", "trainer.limit_val_batches": 1.0, "run.tag": "a"}
    given = {"data.mean": (0.5, 0.5), "data.classes_file": "./a/b", "trainer.limit_val_batches": 1, "run.tag": "b"}
    assert find_changes(recorded, given, Rule.FIXED) == {"trainer.limit_val_batches": (1.0, 1)}  # one batch, not all
    assert find_changes(recorded, given, Rule.APPLIES) == {"run.tag": ("a", "b")}
    assert find_changes({}, given, *Rule) == {}  # an option that the recording version did not have


@pytest.mark.parametrize(
    ("option", "recorded", "given", "is_same"),
    [
        ("model.warmup_epochs", 0, 0.0, True),
        ("model.lr", 1, 1.0, True),
        ("model.ema_decay", 0, False, False),
        ("model.nesterov", True, 1, False),
        ("trainer.overfit_batches", 1, 1.0, False),
        ("trainer.val_check_interval", 1.0, 1, False),
        ("model.model_kwargs", {"depths": (1, 2), "rate": 0}, {"depths": [1, 2], "rate": 0.0}, True),
        ("model.model_kwargs", {"depths": (1, 2)}, {"depths": [1, 3]}, False),
        ("model.model_kwargs", {"depths": (1, 2)}, {"depths": [1, 2], "rate": 0}, False),
    ],
)
def test_numbers_are_compared_by_value(option: str, recorded: Any, given: Any, is_same: bool) -> None:
    """Except where an int is a count and a float is a share."""
    assert (find_changes({option: recorded}, {option: given}, Rule.FIXED) == {}) is is_same


# ---- a run that is stopped, through the command line


def command(place: Path, run: str, **changes: Any) -> list[str]:
    return fit_arguments(place / "images", place / run, **{"ckpt_path": "last", **MORE, **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images/, a run `cut` that was stopped in its second epoch, and a finished run `done`."""
    folder = tmp_path_factory.mktemp("made")
    make_image_folder(folder / "images")
    with pytest.raises(RuntimeError, match="power"):
        main(command(folder, "cut", trainer__callbacks=callback_option(CrashInSecondEpoch)))
    assert main(command(folder, "done")) == 0
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the runs; the images are where they were."""
    shutil.copytree(made, tmp_path / "place")
    shutil.rmtree(tmp_path / "place/images")
    (tmp_path / "place/images").symlink_to(made / "images")
    return tmp_path / "place"


def files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize(
    ("option", "value", "recorded"),
    [
        ("model.lr", 0.1, "0.001"),
        ("model.weight_decay", 0.5, "0.05"),
        ("model.momentum", 0.5, "0.9"),
        ("model.optimizer", "sgd", "adamw"),
        ("model.layer_decay", 0.5, "null"),
        ("model.linear_probe", "true", "false"),
        ("model.ema_decay", 0.9, "null"),
        ("data.augment", "none", "light"),
        ("data.seed", 1, "0"),
        ("seed_everything", 1, "0"),
        ("trainer.gradient_clip_val", 1.0, "null"),
        ("trainer.limit_val_batches", 1, "null"),
    ],
    ids=lambda value: str(value),
)
@pytest.mark.parametrize("run", ["cut", pytest.param("done", marks=pytest.mark.slow)])
def test_what_changes_the_result_is_refused(
    made: Path, run: str, option: str, value: Any, recorded: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(made / run)
    assert main(command(made, run, **{option.replace(".", "__"): value})) == 1
    error = capsys.readouterr().err
    assert f"was started with {option} {recorded}; this command says {option} {value}" in error
    assert f"Resume with --{option} {recorded}, or choose another --run.folder" in error
    assert "Traceback" not in error and len(error.strip().splitlines()[-1]) < 400
    assert files(made / run) == before


def test_what_is_compared_with_the_data_is_refused_there(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(made, "cut", data__batch_size=4)) == 1
    assert "--data.batch_size 8" in capsys.readouterr().err
    assert main(command(made, "done", data__batch_size=4)) == 1  # the data of a finished run is not read
    assert "is finished; it was trained with data.batch_size 8" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["validate"], ["fit"]], ids=lambda words: words[0])
def test_classes_with_other_names_are_refused(
    made: Path, tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Renamed classes would otherwise be silently treated as the old ones."""
    image_folder = shutil.copytree(made / "images", tmp_path / "images")
    (image_folder / "class0").rename(image_folder / "zebra")
    if arguments == ["fit"]:
        words = command(made, "cut", data__source=image_folder)
    else:
        words = [*arguments, f"--config={made / 'done/config.yaml'}", f"--data.source={image_folder}"]
    assert main(words) == 1
    assert "images has other classes than the checkpoint. Missing: class0; new: zebra." in capsys.readouterr().err


def test_what_has_no_influence_takes_effect(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The weights are those of an uninterrupted run, and the record has the first command."""
    options = {"trainer__log_every_n_steps": 1, "data__num_workers": 1, "run__save_every": 1}
    assert main(command(place, "cut", **options)) == 0
    one, two = (torch.load(place / run / "checkpoints/last.ckpt", weights_only=True) for run in ("cut", "done"))
    assert all(torch.equal(value, two["state_dict"][key]) for key, value in one["state_dict"].items())
    record = read_config(place / "cut/weights")["acmix_zoo"]
    assert [set(change["options"]) for change in record["changes"]] == [{"trainer.callbacks"}]  # the stop is gone
    assert yaml.safe_load((place / "cut/config.yaml").read_text())["trainer"]["log_every_n_steps"] == 1


def test_more_epochs_take_effect_and_are_recorded(place: Path) -> None:
    assert main(command(place, "done", trainer__max_epochs=3)) == 0
    record = read_config(place / "done/weights")["acmix_zoo"]
    assert (record["epochs"], record["steps"]) == (3, 6)
    assert record["changes"] == [{"step": 4, "options": {"trainer.max_epochs": [2, 3]}}]
    assert "--trainer.max_epochs=3" in record["command"]


def test_fewer_epochs_than_were_trained_are_refused(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(made / "done")
    assert main(command(made, "done", trainer__max_epochs=1)) == 1
    assert "has already reached epoch 2; this command asks for 1" in capsys.readouterr().err
    assert files(made / "done") == before


# ---- a run that is finished


def test_a_finished_run_says_so_and_is_left_alone(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, record = files(made / "done"), read_config(made / "done/weights")["acmix_zoo"]
    capsys.readouterr()
    assert main(command(made, "done")) == 0
    said = capsys.readouterr().out
    assert f"The run in {made / 'done'} is finished: 2 of 2 epochs" in said
    assert f"best epoch {record['best_epoch']}; val top-1" in said
    assert f"Its weights are in {made / 'done/weights'}. Nothing was changed." in said
    assert "--trainer.max_epochs 4" in said
    assert main(command(made, "done", data__num_workers=1, trainer__log_every_n_steps=7)) == 0
    assert files(made / "done") == before


@pytest.mark.parametrize(("option", "value"), [("run.tag", "other"), ("run.license", "mit"), ("run.test", "false")])
def test_a_finished_card_is_not_rewritten(
    made: Path, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(made / "done")
    assert main(command(made, "done", **{option.replace(".", "__"): value})) == 1
    assert f"is finished; it was trained with {option} " in capsys.readouterr().err
    assert files(made / "done") == before


def test_a_run_that_could_not_write_its_weights_keeps_its_command(place: Path) -> None:
    """The run is finished by a command with its config.yaml, which is not the command that trained the weights."""
    first = read_config(place / "done/weights")["acmix_zoo"]
    shutil.rmtree(place / "done/weights")
    shutil.rmtree(place / "done/tensorboard")
    assert main(["fit", f"--config={place / 'done/config.yaml'}", "--ckpt_path=last"]) == 0
    again = read_config(place / "done/weights")["acmix_zoo"]
    assert again["command"] == first["command"] and again["sha256"] == first["sha256"] and "changes" not in again


# ---- the same in Python, and for checkpoints that an older version wrote


def test_a_task_with_other_hyperparameters_is_not_resumed(made: Path, tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    make_trainer(run, epochs=1).fit(make_task(lr=0.001), make_data(made / "images"))
    with pytest.raises(ValueError, match=r"with lr 0\.001, momentum 0\.9; this task has lr 0\.1, momentum 0\.5"):
        make_trainer(epochs=2, enable_checkpointing=False).fit(
            make_task(lr=0.1, momentum=0.5), make_data(made / "images"), ckpt_path=run.last, weights_only=True
        )
    other = make_task(lr=0.1, weight_decay=0.3)  # an evaluation does not use them
    make_trainer(enable_checkpointing=False).validate(
        other, make_data(made / "images"), ckpt_path=run.last, verbose=False, weights_only=True
    )


def test_an_older_checkpoint_is_compared_by_its_hyperparameters(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = place / "cut/checkpoints/last.ckpt"
    content = torch.load(last, weights_only=True)
    del content["callbacks"]["RunFolder"]["options"]
    torch.save(content, last)
    assert main(command(place, "cut", model__lr=0.1)) == 1
    assert "was started with model.lr 0.001; this command says model.lr 0.1" in capsys.readouterr().err


def test_a_checkpoint_with_a_former_name_of_an_option_is_resumed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`base_batch_size` was once called `lr_batch`."""
    last = place / "cut/checkpoints/last.ckpt"
    content = torch.load(last, weights_only=True)
    for options, prefix in (
        (content["callbacks"]["RunFolder"]["options"], "model."),
        (content["hyper_parameters"], ""),
    ):
        del options[f"{prefix}base_batch_size"]
        options[f"{prefix}lr_batch"] = 16
    torch.save(content, last)
    assert main(command(place, "cut")) == 1
    assert "was started with model.base_batch_size 16; this command says" in capsys.readouterr().err
    assert main(command(place, "cut", model__base_batch_size=16)) == 0


# ---- a checkpoint is complete


def test_a_checkpoint_does_not_need_the_pretrained_weights(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It needs neither the file that it was fine-tuned from nor, for prediction, the training images."""
    place = tmp_path / "place"
    shutil.copytree(made / "images", place / "images")
    start = place / "start.pth"
    torch.save(ClassificationTask("test_resnet", num_classes=3).model.state_dict(), start)
    with pytest.raises(RuntimeError, match="power"):
        main(
            command(
                place,
                "run",
                model__pretrained=start,
                trainer__callbacks=callback_option(CrashInSecondEpoch),
            )
        )
    start.unlink()
    assert main(command(place, "run", model__pretrained=start)) == 0
    assert read_config(place / "run/weights")["acmix_zoo"]["parent"] == "start.pth"
    config = f"--config={place / 'run/config.yaml'}"
    assert main(["validate", config]) == 0
    task = ClassificationTask.load_from_checkpoint(place / "run/checkpoints/best.ckpt", weights_only=True)
    assert task.hparams["pretrained"] == str(start)
    shutil.move(place / "images", place / "photos")
    capsys.readouterr()
    assert main(["predict", config, f"--data.predict={place / 'photos/class1'}"]) == 0
    assert "12 images" in capsys.readouterr().out


def test_a_checkpoint_does_not_need_the_weight_folder_given_as_the_model(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(made / "done/weights", folder)
    run = RunFolder(str(tmp_path / "run"))
    task = ClassificationTask(str(folder), num_classes=3)
    assert (task.hparams["model"], task.hparams["pretrained"]) == ("test_resnet", str(folder))
    make_trainer(run, epochs=1).fit(task, make_data(made / "images"))
    shutil.rmtree(folder)
    again = ClassificationTask.load_from_checkpoint(run.last, weights_only=True)
    state = torch.load(run.last, weights_only=True)["state_dict"]
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())


PICO = "acmix_resnet_pico"


@pytest.fixture(scope="module")
def small_window(made: Path) -> Path:
    """A weight folder whose network attends to 3 × 3 positions, not 7 × 7. The parameter shapes are the same for
    both."""
    torch.manual_seed(0)
    return write_folder(
        made / "small_window", create_model(PICO, num_classes=3, kernel_att=3), architecture=PICO, pretrained_cfg={},
        record={"origin": "test"}, example=torch.randn(1, 3, 32, 32),
    )  # fmt: skip


def windows(model: torch.nn.Module) -> set[int]:
    return {module.kernel_att for module in model.modules() if isinstance(module, ACmix2d)}


def windows_of_the_command(words: list[str]) -> set[int]:
    """Run a command; return the attention windows of the network that it used."""
    seen: list[set[int]] = []
    with pytest.MonkeyPatch.context() as patch:
        setup = ClassificationTask.setup
        patch.setattr(ClassificationTask, "setup", lambda t, stage: (seen.append(windows(t.model)), setup(t, stage))[1])
        assert main(words) == 0
    return set.union(*seen)


@pytest.mark.parametrize("given_as", ["model", pytest.param("pretrained", marks=pytest.mark.slow)])
def test_arguments_of_a_weight_folder_are_kept(
    made: Path, small_window: Path, tmp_path: Path, given_as: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command that loads the checkpoint uses the recorded arguments, even if the folder is gone."""
    folder = tmp_path / "start"
    shutil.copytree(small_window, folder)
    start = {"model__model": folder} if given_as == "model" else {"model__model": PICO, "model__pretrained": folder}
    options = {**start, "run__folder": tmp_path / "run", "run__test": "false"}
    stop = {"trainer__callbacks": callback_option(CrashInSecondEpoch)}
    with pytest.raises(RuntimeError, match="power"):
        main(command(made, "unused", **options, **stop))
    shutil.rmtree(folder)
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert windows(ClassificationTask.load_from_checkpoint(last).model) == {3}
    assert windows(create_model(last)) == {3}
    assert windows(create_model(last, kernel_att=5)) == {5}
    assert read_config(export_run(last, tmp_path / "exported"))["model_args"] == {"kernel_att": 3}
    evaluate = ["validate", *command(made, "unused", **options, ckpt_path="best")[1:]]
    assert windows_of_the_command(evaluate) == {3}
    assert windows_of_the_command(command(made, "unused", **options)) == {3}
    assert read_config(tmp_path / "run/weights")["model_args"] == {"kernel_att": 3}


@pytest.fixture(scope="module")
def small_window_run(made: Path) -> Path:
    """A checkpoint of a network that attends to 3 × 3 positions."""
    run = RunFolder(str(made / "small_window_run"))
    task = ClassificationTask(PICO, num_classes=3, model_kwargs={"kernel_att": 3})
    make_trainer(run, epochs=1, limit_train_batches=1).fit(task, make_data(made / "images"))
    return run.last


@pytest.mark.parametrize("given_as", [pytest.param("model", marks=pytest.mark.slow), "pretrained"])
def test_arguments_of_a_checkpoint_are_kept(made: Path, small_window_run: Path, tmp_path: Path, given_as: str) -> None:
    """Fine-tuning from a checkpoint keeps its model arguments, and so does loading the new checkpoint."""
    start = tmp_path / "start.ckpt"
    shutil.copy(small_window_run, start)
    words = {"model__model": start} if given_as == "model" else {"model__model": PICO, "model__pretrained": start}
    words |= {"run__folder": tmp_path / "run", "run__test": "false"}
    assert windows_of_the_command(command(made, "unused", **words)) == {3}
    start.unlink()
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert windows(ClassificationTask.load_from_checkpoint(last).model) == {3}
    assert windows(create_model(last)) == windows(create_model(PICO, last)) == {3}
    assert read_config(export_run(last, tmp_path / "exported"))["model_args"] == {"kernel_att": 3}
    assert windows_of_the_command(command(made, "unused", **words, trainer__max_epochs=3)) == {3}


def test_a_start_whose_arguments_were_ignored_is_rebuilt_as_it_was(
    made: Path, small_window_run: Path, tmp_path: Path
) -> None:
    """Earlier versions ignored the arguments of a checkpoint given as `pretrained`, and recorded none."""
    run = RunFolder(str(tmp_path / "run"))
    task = ClassificationTask(PICO, num_classes=3)
    make_trainer(run, epochs=1, limit_train_batches=1).fit(task, make_data(made / "images"))
    content = torch.load(run.last, weights_only=True)
    content["hyper_parameters"]["pretrained"] = str(small_window_run)
    torch.save(content, run.last)
    assert windows(ClassificationTask.load_from_checkpoint(run.last).model) == {7}
    assert windows(create_model(run.last)) == {7}
    assert "kernel_att" not in (read_config(export_run(run.last, tmp_path / "exported")).get("model_args") or {})


@pytest.mark.parametrize("call", ["validate", "predict"])
def test_a_checkpoint_of_another_network_is_not_evaluated(made: Path, small_window_run: Path, call: str) -> None:
    """Its weights fit, because kernel_att changes no shape, but the scores would be wrong."""
    evaluate = getattr(make_trainer(enable_checkpointing=False), call)
    data = make_data(made / "images", predict=str(made / "images/class1"))
    with pytest.raises(ValueError, match=r'built with \{"kernel_att": 3\}, .* no model_kwargs.* \(model_kwargs='):
        evaluate(ClassificationTask(PICO, num_classes=3), data, ckpt_path=small_window_run, weights_only=True)
    # what only affects training may differ
    task = ClassificationTask(PICO, num_classes=3, model_kwargs={"kernel_att": 3, "drop_path_rate": 0.1})
    evaluate(task, data, ckpt_path=small_window_run, weights_only=True)


def test_own_arguments_take_precedence_over_a_weight_folder(small_window: Path) -> None:
    task = ClassificationTask(PICO, 3, pretrained=str(small_window), model_kwargs={"kernel_att": 5, "drop_rate": 0.1})
    assert windows(task.model) == {5}
    assert task.hparams["model_kwargs"] == {"kernel_att": 5, "drop_rate": 0.1}
    assert ClassificationTask(PICO, 3, pretrained=str(small_window)).hparams["model_kwargs"] == {"kernel_att": 3}


def test_older_checkpoints_of_a_weight_folder_are_resumed(made: Path, small_window: Path, tmp_path: Path) -> None:
    """Their hyper-parameters have the folder as the model, or lack what it stores."""
    run = RunFolder(str(tmp_path / "run"))
    make_trainer(run, epochs=1).fit(ClassificationTask(str(small_window), num_classes=3), make_data(made / "images"))
    content = torch.load(run.last, weights_only=True)
    for older in (
        {"model": str(small_window), "pretrained": False, "model_kwargs": None},
        {"model": PICO, "pretrained": str(small_window), "model_kwargs": None},
    ):
        torch.save({**content, "hyper_parameters": {**content["hyper_parameters"], **older}}, run.last)
        task = ClassificationTask(older["model"], num_classes=3, pretrained=older["pretrained"])
        trainer = make_trainer(epochs=2, enable_checkpointing=False, limit_train_batches=1)
        trainer.fit(task, make_data(made / "images"), ckpt_path=run.last, weights_only=True)
        assert trainer.current_epoch == 2
        assert windows(ClassificationTask.load_from_checkpoint(run.last).model) == {3}


@pytest.mark.parametrize("given_as", [pytest.param("model", marks=pytest.mark.slow), "pretrained"])
def test_a_training_in_python_from_a_weight_folder_is_resumed_by_a_command(
    made: Path, small_window: Path, tmp_path: Path, given_as: str
) -> None:
    run = RunFolder(str(tmp_path / "run"))
    task = ClassificationTask(PICO, num_classes=3, pretrained=str(small_window), warmup_epochs=0)
    make_trainer(run, epochs=1).fit(task, make_data(made / "images"))
    start = {"model": {"model__model": small_window}, "pretrained": {"model__model": PICO}}[given_as]
    if given_as == "pretrained":
        start["model__pretrained"] = small_window
    words = command(
        made, "unused", **start, run__folder=tmp_path / "run", model__warmup_epochs=0, trainer__limit_train_batches=1.0,
        data__augment="none",
    )  # fmt: skip
    assert main(words) == 0
