"""Resuming and loading runs that started from pretrained weights: a checkpoint is complete without its parent."""

import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")

from support.training import CrashInSecondEpoch, callback_option, make_data, make_trainer, resume_command

from acmix_zoo.cli.main import main
from acmix_zoo.layers import ACmix2d
from acmix_zoo.tasks import ClassificationTask
from acmix_zoo.training import RunFolder
from acmix_zoo.training.export_weights import export_run
from acmix_zoo.weights import create_model, read_config, write_folder

PICO = "acmix_resnet_pico"


@pytest.mark.slow
def test_a_checkpoint_does_not_need_the_pretrained_weights(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resuming needs no pretrained file, and prediction needs no training images."""
    shutil.copytree(runs / "images", tmp_path / "images")
    start = tmp_path / "start.pth"
    torch.save(ClassificationTask("test_resnet", num_classes=3).model.state_dict(), start)
    crash = callback_option(CrashInSecondEpoch)
    assert main(resume_command(tmp_path, "run", model__pretrained=start, trainer__callbacks=crash)) == 1
    start.unlink()
    assert main(resume_command(tmp_path, "run", model__pretrained=start)) == 0
    assert read_config(tmp_path / "run/weights")["acmix_zoo"]["parent"] == "start.pth"
    config = f"--config={tmp_path / 'run/config.yaml'}"
    assert main(["validate", config]) == 0
    task = ClassificationTask.load_from_checkpoint(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert task.hparams["pretrained"] == str(start)
    shutil.move(tmp_path / "images", tmp_path / "photos")
    capsys.readouterr()
    assert main(["predict", config, f"--data.predict={tmp_path / 'photos/class1'}"]) == 0
    assert "12 images" in capsys.readouterr().out


def test_a_checkpoint_does_not_need_the_weight_folder_given_as_the_model(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(runs / "finished/weights", folder)
    run = RunFolder(str(tmp_path / "run"))
    task = ClassificationTask(str(folder), num_classes=3)
    assert (task.hparams["model"], task.hparams["pretrained"]) == ("test_resnet", str(folder))
    make_trainer(run, epochs=1).fit(task, make_data(runs / "images"))
    shutil.rmtree(folder)
    again = ClassificationTask.load_from_checkpoint(run.last, weights_only=True)
    state = torch.load(run.last, weights_only=True)["state_dict"]
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())


@pytest.fixture(scope="module")
def small_window(runs: Path) -> Path:
    """Return a weight folder of a network that attends to 3 × 3 positions. The default of 7 × 7 has the same shapes."""
    torch.manual_seed(0)
    return write_folder(
        runs / "small_window", create_model(PICO, num_classes=3, kernel_att=3), architecture=PICO, pretrained_cfg={},
        record={"origin": "test"}, example=torch.randn(1, 3, 32, 32),
    )  # fmt: skip


def kernel_sizes(model: torch.nn.Module) -> set[int]:
    """Return the kernel_att of all ACmix layers."""
    return {module.kernel_att for module in model.modules() if isinstance(module, ACmix2d)}


def kernel_sizes_in_command(arguments: list[str]) -> set[int]:
    """Run a command, and return the kernel_att of the network that it used."""
    seen: list[set[int]] = []
    with pytest.MonkeyPatch.context() as patch:
        setup = ClassificationTask.setup
        patch.setattr(
            ClassificationTask, "setup", lambda t, stage: (seen.append(kernel_sizes(t.model)), setup(t, stage))[1]
        )
        assert main(arguments) == 0
    return set.union(*seen)


@pytest.mark.slow
@pytest.mark.parametrize("given_as", ["model", "pretrained"])
def test_arguments_of_a_weight_folder_are_kept(
    runs: Path, small_window: Path, tmp_path: Path, given_as: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command that loads the checkpoint uses the recorded arguments, even if the folder is gone."""
    folder = tmp_path / "start"
    shutil.copytree(small_window, folder)
    start = {"model__model": folder} if given_as == "model" else {"model__model": PICO, "model__pretrained": folder}
    options = {**start, "run__folder": tmp_path / "run", "run__test": "false"}
    crash = {"trainer__callbacks": callback_option(CrashInSecondEpoch)}
    assert main(resume_command(runs, "not_used", **options, **crash)) == 1
    shutil.rmtree(folder)
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert kernel_sizes(ClassificationTask.load_from_checkpoint(last).model) == {3}
    assert kernel_sizes(create_model(last)) == {3}
    assert kernel_sizes(create_model(last, kernel_att=5)) == {5}
    assert read_config(export_run(last, tmp_path / "exported"))["model_args"] == {"kernel_att": 3}
    evaluate = ["validate", *resume_command(runs, "not_used", **options, ckpt_path="best")[1:]]
    assert kernel_sizes_in_command(evaluate) == {3}
    assert kernel_sizes_in_command(resume_command(runs, "not_used", **options)) == {3}
    assert read_config(tmp_path / "run/weights")["model_args"] == {"kernel_att": 3}


@pytest.fixture(scope="module")
def small_window_checkpoint(runs: Path) -> Path:
    """Return a checkpoint of a network that attends to 3 × 3 positions."""
    run = RunFolder(str(runs / "small_window_checkpoint"))
    task = ClassificationTask(PICO, num_classes=3, model_kwargs={"kernel_att": 3})
    make_trainer(run, epochs=1, limit_train_batches=1).fit(task, make_data(runs / "images"))
    return run.last


@pytest.mark.slow
@pytest.mark.parametrize("given_as", ["model", "pretrained"])
def test_arguments_of_a_checkpoint_are_kept(
    runs: Path, small_window_checkpoint: Path, tmp_path: Path, given_as: str
) -> None:
    """Fine-tuning from a checkpoint keeps its model arguments, and so does loading the new checkpoint."""
    start = tmp_path / "start.ckpt"
    shutil.copy(small_window_checkpoint, start)
    options = {"model__model": start} if given_as == "model" else {"model__model": PICO, "model__pretrained": start}
    options |= {"run__folder": tmp_path / "run", "run__test": "false"}
    assert kernel_sizes_in_command(resume_command(runs, "not_used", **options)) == {3}
    start.unlink()
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert kernel_sizes(ClassificationTask.load_from_checkpoint(last).model) == {3}
    assert kernel_sizes(create_model(last)) == kernel_sizes(create_model(PICO, last)) == {3}
    assert read_config(export_run(last, tmp_path / "exported"))["model_args"] == {"kernel_att": 3}
    assert kernel_sizes_in_command(resume_command(runs, "not_used", **options, trainer__max_epochs=3)) == {3}


def test_an_old_checkpoint_without_model_arguments_is_rebuilt_as_it_was_trained(
    runs: Path, small_window_checkpoint: Path, tmp_path: Path
) -> None:
    """Earlier versions ignored the model arguments of a checkpoint given as `pretrained`, and did not record them."""
    run = RunFolder(str(tmp_path / "run"))
    task = ClassificationTask(PICO, num_classes=3)
    make_trainer(run, epochs=1, limit_train_batches=1).fit(task, make_data(runs / "images"))
    content = torch.load(run.last, weights_only=True)
    content["hyper_parameters"]["pretrained"] = str(small_window_checkpoint)
    torch.save(content, run.last)
    assert kernel_sizes(ClassificationTask.load_from_checkpoint(run.last).model) == {7}
    assert kernel_sizes(create_model(run.last)) == {7}
    assert "kernel_att" not in (read_config(export_run(run.last, tmp_path / "exported")).get("model_args") or {})


@pytest.mark.parametrize("call", ["validate", "predict"])
def test_a_checkpoint_with_different_model_arguments_is_not_evaluated(
    runs: Path, small_window_checkpoint: Path, call: str
) -> None:
    """The weights would fit, because kernel_att changes no shape, but the scores would be wrong."""
    evaluate = getattr(make_trainer(enable_checkpointing=False), call)
    data = make_data(runs / "images", predict=str(runs / "images/class1"))
    with pytest.raises(ValueError, match=r'built with \{"kernel_att": 3\}, .* no model_kwargs.* \(model_kwargs='):
        evaluate(ClassificationTask(PICO, num_classes=3), data, ckpt_path=small_window_checkpoint, weights_only=True)
    # arguments that only affect training may differ
    task = ClassificationTask(PICO, num_classes=3, model_kwargs={"kernel_att": 3, "drop_path_rate": 0.1})
    evaluate(task, data, ckpt_path=small_window_checkpoint, weights_only=True)


def test_model_kwargs_take_precedence_over_a_weight_folder(small_window: Path) -> None:
    task = ClassificationTask(PICO, 3, pretrained=str(small_window), model_kwargs={"kernel_att": 5, "drop_rate": 0.1})
    assert kernel_sizes(task.model) == {5}
    assert task.hparams["model_kwargs"] == {"kernel_att": 5, "drop_rate": 0.1}
    assert ClassificationTask(PICO, 3, pretrained=str(small_window)).hparams["model_kwargs"] == {"kernel_att": 3}


def test_older_checkpoints_of_a_weight_folder_are_resumed(runs: Path, small_window: Path, tmp_path: Path) -> None:
    """Their hyper-parameters name the folder as the model, or lack the model arguments that it stores."""
    run = RunFolder(str(tmp_path / "run"))
    make_trainer(run, epochs=1).fit(ClassificationTask(str(small_window), num_classes=3), make_data(runs / "images"))
    content = torch.load(run.last, weights_only=True)
    for older in (
        {"model": str(small_window), "pretrained": False, "model_kwargs": None},
        {"model": PICO, "pretrained": str(small_window), "model_kwargs": None},
    ):
        torch.save({**content, "hyper_parameters": {**content["hyper_parameters"], **older}}, run.last)
        task = ClassificationTask(older["model"], num_classes=3, pretrained=older["pretrained"])
        trainer = make_trainer(epochs=2, enable_checkpointing=False, limit_train_batches=1)
        trainer.fit(task, make_data(runs / "images"), ckpt_path=run.last, weights_only=True)
        assert trainer.current_epoch == 2
        assert kernel_sizes(ClassificationTask.load_from_checkpoint(run.last).model) == {3}


@pytest.mark.slow
@pytest.mark.parametrize("given_as", ["model", "pretrained"])
def test_a_run_that_was_started_in_python_is_resumed_by_a_command(
    runs: Path, small_window: Path, tmp_path: Path, given_as: str
) -> None:
    run = RunFolder(str(tmp_path / "run"))
    task = ClassificationTask(PICO, num_classes=3, pretrained=str(small_window), warmup_epochs=0)
    make_trainer(run, epochs=1).fit(task, make_data(runs / "images"))
    start = {"model": {"model__model": small_window}, "pretrained": {"model__model": PICO}}[given_as]
    if given_as == "pretrained":
        start["model__pretrained"] = small_window
    arguments = resume_command(
        runs, "not_used", **start, run__folder=tmp_path / "run", model__warmup_epochs=0,
        trainer__limit_train_batches=1.0, data__augment="none",
    )  # fmt: skip
    assert main(arguments) == 0
