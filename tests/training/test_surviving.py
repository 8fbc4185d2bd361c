"""What a run survives, and what it says: damaged checkpoints, losses that are no numbers, signals, other batches."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

import lightning as L
from support.training import (
    CallAt,
    CrashAfterFirstEpoch,
    assert_same_run,
    callback_option,
    cut_power,
    fit_arguments,
    make_data,
    make_image_folder,
    make_task,
    make_trainer,
)
from torch import Tensor, nn

from acmix_zoo.cli.main import main
from acmix_zoo.tasks import ClassificationTask
from acmix_zoo.tasks.metrics import ExactMean
from acmix_zoo.tasks.sharded import _Unpickler
from acmix_zoo.training import RunFolder, warmup_cosine
from acmix_zoo.training.checkpoints import is_checkpoint
from acmix_zoo.training.export_weights import parent
from acmix_zoo.training.guard import NotFinite
from acmix_zoo.training.lock import Lock
from acmix_zoo.training.logs import Log
from acmix_zoo.training.signals import Interrupted, Signals, requeue
from acmix_zoo.weights import check_folder, create_model


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    return make_image_folder(tmp_path / "images")


def fit(
    folder: Path, image_folder: Path, *callbacks: L.Callback, resume: Path | None = None, **kwargs: Any
) -> RunFolder:
    """Three epochs of six steps; `kwargs` are of the run folder, the task (model_…), or the trainer (trainer_…)."""
    own = {key: kwargs.pop(key) for key in list(kwargs) if key.startswith("trainer_")}
    run = RunFolder(str(folder), **{k: kwargs.pop(k) for k in list(kwargs) if k == "save_every"})
    trainer = make_trainer(*callbacks, run, **{key.removeprefix("trainer_"): value for key, value in own.items()})
    trainer.fit(
        make_task(ema_decay=0.9, **kwargs), make_data(image_folder, batch_size=4), ckpt_path=resume, weights_only=True
    )
    return run


# ---- checkpoints within an epoch, and damaged ones


def test_a_checkpoint_within_an_epoch_and_the_one_before(image_folder: Path, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", image_folder)
    with pytest.raises(RuntimeError, match="power"):
        fit(tmp_path / "cut", image_folder, CallAt(cut_power, epoch=1, batch=4), save_every=2)
    run = RunFolder(str(tmp_path / "cut"))
    steps = [torch.load(path, weights_only=True)["global_step"] for path in (run.last, run.checkpoints.previous)]
    assert steps == [10, 8]  # six an epoch; the power went in the eleventh
    assert run.checkpoints.find() == run.last
    run.last.write_bytes(run.last.read_bytes()[:1000])  # as a power cut may leave it
    assert run.checkpoints.find() == run.checkpoints.previous
    assert_same_run(whole, fit(tmp_path / "cut", image_folder, resume=run.checkpoints.previous, save_every=2))


def test_nothing_but_damage(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    assert run.checkpoints.find() is None
    run.last.parent.mkdir()
    run.last.write_bytes(b"")
    assert not is_checkpoint(run.last)
    with pytest.raises(ValueError, match=r"last\.ckpt: damaged, every one; move the folder away"):
        run.checkpoints.find()


def test_impossible_save_every(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save_every=0: expected a number of steps"):
        RunFolder(str(tmp_path), save_every=0)


def test_a_signal_waits_for_the_accumulated_step(image_folder: Path, tmp_path: Path) -> None:
    """Its gradients would be lost otherwise."""
    whole = fit(tmp_path / "whole", image_folder, trainer_accumulate_grad_batches=2)
    at = CallAt(lambda: os.kill(os.getpid(), signal.SIGTERM), epoch=1, batch=2)  # the first of two
    with pytest.raises(Interrupted):
        fit(tmp_path / "cut", image_folder, at, trainer_accumulate_grad_batches=2)
    last = tmp_path / "cut/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 3 + 2
    assert_same_run(whole, fit(tmp_path / "cut", image_folder, resume=last, trainer_accumulate_grad_batches=2))


def test_accumulated_batches_draw_other_numbers(image_folder: Path, tmp_path: Path) -> None:
    class Draws(L.Callback):
        seen: list[float] = []  # noqa: RUF012

        def on_before_backward(self, trainer: L.Trainer, module: L.LightningModule, loss: Tensor) -> None:
            self.seen.append(float(torch.rand(())))

    fit(tmp_path / "run", image_folder, draws := Draws(), trainer_accumulate_grad_batches=2, trainer_epochs=1)
    assert len(set(draws.seen)) == 6


def test_a_log_that_cannot_be_written_ends_alone(
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
    said = capsys.readouterr().out
    assert said.count("NOT LOGGED") == 1 and "No such file or directory; TensorBoard's log ends here" in said


# ---- two runs in one folder

HOLD = """
import sys, time
from pathlib import Path
from acmix_zoo.training.lock import Lock
lock = Lock(Path(sys.argv[1]))
lock.take()
print("held", flush=True)
time.sleep(60)
"""


def test_a_folder_is_one_runs(tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        words = rf"is being written by another run \(process {holder.pid} on .*\); end that one"
        with pytest.raises(OSError, match=words):
            Lock(tmp_path).take()
        arguments = fit_arguments(image_folder, tmp_path, ckpt_path="last")
        assert main(arguments) == 1
        assert f"acmix-zoo: error: {tmp_path} is being written by another run" in capsys.readouterr().err
        assert main([*arguments, "--trainer.fast_dev_run=true"]) == 0
        assert not (tmp_path / "config.yaml").exists()  # it stays the other one's
    finally:
        holder.kill()
        holder.wait()
    lock = Lock(tmp_path)
    lock.take()
    lock.release()
    Lock(tmp_path).take()


# ---- losses and weights that are no numbers


class NanLoss(nn.CrossEntropyLoss):
    """Gives NaN for its n-th batch."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.left = batch

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.left -= 1
        return super().forward(x, y) * (float("nan") if self.left < 0 else 1)


def test_a_loss_that_is_no_number_keeps_batch_and_weights(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, task = RunFolder(str(tmp_path / "run")), make_task(lr=0.01)
    task.train_criterion = NanLoss(8)
    data = make_data(image_folder, batch_size=4)
    data.setup("fit")
    data.train_dataloader().sampler.set_epoch(1)
    gone = data.describe_batch(2)[0]
    Path(gone).unlink()
    with (
        pytest.raises(NotFinite, match=r"nan at epoch 2, step 8; the batch is in .*state is in .*last\.ckpt") as e,
        pytest.warns(UserWarning, match="skipped"),
    ):
        make_trainer(run).fit(task, data)
    assert all(p.isfinite().all() for p in task.parameters())
    (kept,) = (tmp_path / "run").glob("not_finite_step8_rank0.pt")
    assert str(kept) in str(e.value)
    batch = torch.load(kept, weights_only=True)
    assert batch["images"].shape == (3, 3, 32, 32) and batch["epoch"] == 1 and batch["step"] == 8
    assert gone not in batch["names"]
    classes = [int(Path(name).parent.name.removeprefix("class")) for name in batch["names"]]
    assert classes == batch["targets"].tolist()
    assert torch.load(run.last, weights_only=True)["global_step"] == 6


def test_weights_that_are_no_numbers_are_not_saved(image_folder: Path, tmp_path: Path) -> None:
    """A good loss may have a gradient that is none."""

    class Spoil(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
            if trainer.global_step == 9:
                next(module.parameters()).grad.fill_(float("inf"))  # type: ignore[union-attr]

    with pytest.raises(NotFinite, match="the weights are not finite after step 10, so they were not saved"):
        fit(tmp_path / "run", image_folder, Spoil(), save_every=2)
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 8


# ---- SLURM


def test_requeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    requeue()
    assert capsys.readouterr().out == ""  # no SLURM job
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("PATH", str(tmp_path))
    requeue()
    said = capsys.readouterr().out
    assert "NOT QUEUED AGAIN" in said and "scontrol requeue 12, or sbatch again" in said
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $@ > {tmp_path}/called\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "11")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    requeue()
    assert (tmp_path / "called").read_text() == "requeue 11_3\n"
    assert "SLURM job 11_3 is queued again" in capsys.readouterr().out


# ---- rates, probes, checkpointing


def test_rates_follow_the_global_batch(image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = make_task(lr=0.1, lr_batch=16, warmup_epochs=0, optimizer="sgd", nesterov=False)
    trainer = make_trainer(epochs=1, enable_checkpointing=False, limit_train_batches=2, accumulate_grad_batches=2)
    trainer.fit(task, make_data(image_folder, batch_size=4))
    group = task.trainer.optimizers[0].param_groups[0]
    assert group["initial_lr"] == pytest.approx(0.1 * 4 * 2 / 16) and not group["nesterov"]
    said = "batch: 1 × 4 × 2 accumulated = 8 images a step; lr 0.05 = 0.1 × 8 / 16"
    assert said in capsys.readouterr().out


def test_rates_need_a_batch_size() -> None:
    loader = torch.utils.data.DataLoader([(torch.zeros(3, 32, 32), 0)] * 4, batch_size=2)
    with pytest.raises(ValueError, match="lr_batch is set, but the data has no batch_size"):
        make_trainer(epochs=1, enable_checkpointing=False).fit(make_task(lr_batch=4), loader)


def test_warm_up_starts_where_it_is_told() -> None:
    factor = warmup_cosine(3, 10, start=0.25)
    assert [factor(step) for step in range(4)] == pytest.approx([0.4375, 0.625, 0.8125, 1.0])


def test_a_linear_probe_trains_the_classifier_alone(image_folder: Path) -> None:
    task = make_task(linear_probe=True, lr=0.1)
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    make_trainer(epochs=2, enable_checkpointing=False).fit(task, make_data(image_folder))
    changed = {key for key, value in task.model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"fc.weight", "fc.bias"}


def test_gradient_checkpointing_is_switched_on() -> None:
    assert make_task(grad_checkpointing=True).model.grad_checkpointing


# ---- means that do not depend on the way


def test_an_exact_mean_does_not_depend_on_order_or_parts() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 3
    whole, parts = ExactMean(), ExactMean()
    whole.update(values)
    for part in values.flip(0).split(7):
        parts.update(part)
    assert torch.equal(whole.compute(), parts.compute())
    assert float(whole.compute()) == pytest.approx(float(values.double().mean()), abs=1e-6)
    other = ExactMean()
    other.restore(whole.sums())
    other.update(torch.tensor(float("inf")))
    assert other.compute().isnan() and ExactMean().compute().isnan()


# ---- reading a checkpoint of parts runs no code


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


def test_metadata_runs_no_code(tmp_path: Path) -> None:
    with (tmp_path / "evil").open("wb") as file:
        pickle.dump(Evil(), file)
    with (tmp_path / "evil").open("rb") as file, pytest.raises(pickle.UnpicklingError, match=r"posix\.system"):
        _Unpickler(file).load()


def test_a_signal_while_others_are_waited_for_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    signals = Signals()

    def waits(values: Tensor, *_: Any) -> None:
        signals.number = signal.SIGTERM

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", waits)
    assert signals.agree(torch.device("cpu")) == [0]
    assert signals.agree(torch.device("cpu")) == [signal.SIGTERM]


# ---- files that break in the time of a run


def splits(folder: Path) -> Path:
    for split in ("train", "val", "test"):
        make_image_folder(folder / split, per_class=6)
    return folder


def broken(content: bytes) -> bytes:
    return b"no picture"


def damaged(content: bytes) -> bytes:
    """In the middle, where a look at the ends does not see it."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("spoil", "words_of_it"), [(broken, "1 of 18 test images cannot be used"), (damaged, "class1/3.png cannot be read")]
)
def test_an_image_that_breaks_does_not_keep_a_run_from_going_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, words_of_it: str
) -> None:
    """Stopped after its first epoch; an image of each split is no image any more when it goes on."""
    data, folder = splits(tmp_path / "data"), tmp_path / "run"
    words = fit_arguments(data, folder, ckpt_path="last", trainer__max_epochs=2)
    with pytest.raises(RuntimeError, match="the power is cut"):
        main([*words, f"--trainer.callbacks={callback_option(CrashAfterFirstEpoch)}"])
    for split in ("train", "val", "test"):
        file = data / split / "class1/3.png"
        file.write_bytes(spoil(file.read_bytes()))
    capsys.readouterr()
    with pytest.warns(UserWarning, match="skipped: image") as warned:
        assert main(words) == 0
    assert sum("skipped" in str(warning.message) for warning in warned) == 2
    said = capsys.readouterr().out
    assert "Resuming from epoch 2 of 2 (step 2 of 4)" in said
    assert ("image files have changed" in said) == (spoil is broken)  # the fingerprint is of names and sizes
    assert "NOT TESTED: " in said and words_of_it in said
    assert f"acmix-zoo test --config {folder / 'config.yaml'}" in said
    assert check_folder(folder / "weights") == []
    make_image_folder(tmp_path / "more" / "test", per_class=6)
    shutil.copy(tmp_path / "more/test/class1/3.png", data / "test/class1/3.png")
    assert main(["test", "--config", str(folder / "config.yaml")]) == 0
    assert "test: top-1 " in capsys.readouterr().out


def test_more_epochs_are_another_schedule(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(tmp_path / "run", image_folder, trainer_epochs=1)
    assert "OTHER SCHEDULE" not in capsys.readouterr().out
    fit(tmp_path / "run", image_folder, trainer_epochs=3, resume=run.last)
    said = capsys.readouterr().out
    assert "Resuming from epoch 2 of 3 (step 6 of 18)" in said
    assert "OTHER SCHEDULE: the run was planned for 1 epochs. From here on it follows the schedule of 3 epochs." in said


def test_the_record_names_the_weights_that_a_run_began_from() -> None:
    cfg = create_model("acmix_resnet_pico", pretrained=True, num_classes=3).pretrained_cfg
    assert parent(True, cfg) == "acmix_resnet_pico.fashion_mnist"  # not: True
    assert parent("runs/x/weights", cfg) == "runs/x/weights" and parent(False, cfg) is None


# ---- what is evaluated


def test_a_run_that_was_killed_at_its_end_is_finished(image_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = fit_arguments(image_folder, folder, ckpt_path="last")
    assert main(words) == 0
    (folder / "metrics.csv").unlink()
    shutil.rmtree(folder / "weights")
    assert main(words) == 0
    assert len((folder / "metrics.csv").read_text().splitlines()) == 2 and check_folder(folder / "weights") == []


def test_an_epoch_that_was_not_validated_is_not_the_best(image_folder: Path, tmp_path: Path) -> None:
    run = fit(tmp_path / "run", image_folder, trainer_check_val_every_n_epoch=2, trainer_epochs=5)
    assert [row["epoch"] for row in run.history if "val/top1" in row] == [2, 4]
    assert torch.load(run.best, weights_only=True)["epoch"] + 1 in (2, 4)
    with pytest.raises(RuntimeError, match="power"):
        fit(
            tmp_path / "cut",
            image_folder,
            CallAt(cut_power, epoch=2, batch=3),
            trainer_check_val_every_n_epoch=2,
            trainer_epochs=5,
        )
    cut = tmp_path / "cut/checkpoints/last.ckpt"
    again = fit(tmp_path / "cut", image_folder, trainer_check_val_every_n_epoch=2, trainer_epochs=5, resume=cut)
    assert_same_run(run, again)
    never = fit(tmp_path / "never", image_folder, trainer_limit_val_batches=0)
    assert torch.load(never.best, weights_only=True)["epoch"] == 2  # the last


class Tie(L.Callback):
    """Gives every epoch the same accuracy; the second of three has the lowest loss."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss = (3.0, 1.0, 2.0)[trainer.current_epoch]
        trainer.callback_metrics.update({"val/top1": torch.tensor(0.5), "val/loss": torch.tensor(loss)})


def test_the_line_names_the_epoch_whose_weights_are_kept(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(tmp_path / "run", image_folder, Tie())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert [line.partition("(best ")[2].partition(")")[0] for line in lines] == [
        "50.00 in epoch 1", "50.00 in epoch 2", "50.00 in epoch 2",
    ]  # fmt: skip
    assert torch.load(run.best, weights_only=True)["epoch"] + 1 == 2


def test_a_run_without_validation_ends_well(image_folder: Path, tmp_path: Path) -> None:
    assert main(fit_arguments(image_folder, tmp_path / "run", data__val_fraction=0)) == 0
    assert check_folder(tmp_path / "run/weights") == []


def test_an_image_that_breaks_alone_in_its_batch_is_not_counted(image_folder: Path) -> None:
    data = make_data(image_folder, batch_size=4)  # nine images of validation: the last one is by itself
    data.setup("validate")
    images, indices = data.splits["val"]
    trainer, task = make_trainer(enable_checkpointing=False), make_task()
    before = list(data.val_dataloader())
    Path(images.describe(int(indices[-1]))).unlink()
    with pytest.warns(UserWarning, match="skipped"):
        (scores,) = trainer.validate(task, data, verbose=False)
    task.eval()
    with torch.no_grad():
        logits, y = (torch.cat(parts) for parts in zip(*((task(x), y) for x, y in before[:-1]), strict=True))
    assert len(before[-1][1]) == 1 and len(y) == 8
    assert scores["val/loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, y)), abs=1e-6)
    assert scores["val/top1"] == pytest.approx(float((logits.argmax(1) == y).float().mean()), abs=1e-6)


def test_a_run_that_began_from_weights_is_evaluated_by_its_own(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tmp_path / "start.pth"
    torch.save(ClassificationTask("test_resnet", num_classes=3).model.state_dict(), start)
    folder = tmp_path / "run"
    options = {"trainer__max_epochs": 3, "model__pretrained": start, "model__lr": 0.01}
    assert main(fit_arguments(image_folder, folder, **options)) == 0
    history = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["callbacks"]["RunFolder"]["history"]
    best = max(row["val/top1"] for row in history)
    capsys.readouterr()
    assert main(["validate", "--config", str(folder / "config.yaml")]) == 0
    assert f"val: top-1 {100 * best:.2f} %" in capsys.readouterr().out
    assert best > 0.7, "no more than chance: the start would do as well"
