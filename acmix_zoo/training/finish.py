"""The end of a run: the best weights, tested once, written as a weight folder with the record of their making."""

import math
import platform
import subprocess
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import acmix_zoo
from acmix_zoo.data.images import UnreadableImage
from acmix_zoo.data.splits import UnusableImages
from acmix_zoo.tasks import ClassificationTask
from acmix_zoo.tasks.sharded import is_sharded, load_whole, read_checkpoint
from acmix_zoo.training.export_weights import (
    evaluation_limits,
    is_whole,
    parent,
    run_cfg,
    run_record,
    validation_scores,
)
from acmix_zoo.training.guard import NotFinite
from acmix_zoo.training.history import write_csv
from acmix_zoo.training.plots import plot_curves
from acmix_zoo.training.run import RunFolder
from acmix_zoo.weights import push, write_folder


def finish_run(trainer: L.Trainer, task: ClassificationTask, data: Any, run: RunFolder) -> Path:
    """Load the best weights into `task`, test them unless `run.test` is off, write metrics.csv, curves.png and
    weights/, publish them if `run.push_to` says where. Every process returns when they are written.

    Args:
        trainer: its fit is over.
        data: the ImageDataModule of the fit.
        run: the trainer's callback.

    Returns:
        The weight folder.

    Raises:
        OSError: the folder could not be written; best.ckpt holds the weights then.
    """
    checkpoint = read_checkpoint(run.best)
    if not math.isfinite(_row(checkpoint).get("val/loss", 0.0)):
        raise NotFinite(
            f"the training diverged: the validation loss is {_row(checkpoint)['val/loss']} in every epoch, so no "
            f"weights are worth keeping. The logs are in {run.folder}. Start a new run with a lower model.lr "
            f"(it was {task.hparams.get('lr')}), a longer model.warmup_epochs, or trainer.gradient_clip_val 1.0"
        )
    load_whole(task, checkpoint["state_dict"])
    whole_val, whole_test = (_is_whole(trainer, name) for name in ("val", "test"))
    scores = validation_scores(_row(checkpoint)) if whole_val else {}
    if run.test and data.card()["dataset"]["splits"].get("test"):
        tested = _test(trainer, task, data, run)
        scores |= tested if whole_test else {}
    if not (whole_val and whole_test) and trainer.is_global_zero:
        print(
            "Warning: trainer.limit_val_batches or trainer.limit_test_batches left out images. Scores on part of a "
            "split are not recorded; evaluate the finished run without these options",
            flush=True,
        )
    try:
        if trainer.is_global_zero:
            _write(trainer, task, data, run, checkpoint, scores)
    finally:
        trainer.strategy.barrier("weights")
    folder = run.folder / "weights"
    if run.push_to and trainer.is_global_zero:
        _publish(folder, run.push_to)
    return folder


def _is_whole(trainer: L.Trainer, split: str) -> bool:
    """Return whether every image of a split is evaluated. Records only state scores on complete splits."""
    return is_whole(evaluation_limits(trainer), split)


def _write(
    trainer: L.Trainer,
    task: ClassificationTask,
    data: Any,
    run: RunFolder,
    checkpoint: dict[str, Any],
    scores: dict[str, dict[str, float]],
) -> None:
    card, state = data.card(), checkpoint["state_dict"]
    write_csv(run.folder / "metrics.csv", run.history)  # a kill may have come between a checkpoint and its row
    plot_curves(run.history, run.folder / "curves.png")
    record = {
        **run_record(run.state_dict(), card, scores),
        "best_epoch": int(_row(checkpoint)["epoch"]),
        "environment": _environment(trainer),
        "git_revision": git_revision(),
        "parent": parent(task.hparams["pretrained"], getattr(task.model, "pretrained_cfg", {})),
    }
    network = _whole(task, state)
    cfg: dict[str, Any] = getattr(network, "pretrained_cfg", {})
    try:
        folder = write_folder(
            run.folder / "weights",
            network,
            architecture=cfg.get("architecture") or task.hparams["model"],
            pretrained_cfg={
                "fixed_input_size": bool(cfg.get("fixed_input_size", False)),
                **run_cfg(run.state_dict(), card),
            },
            record=record,
            example=_example(data),
        )
    except OSError as error:
        raise OSError(f"{error}. The weights are safe in {run.best}; {run.resume_message}") from error
    best = f"the best weights (epoch {int(_row(checkpoint)['epoch'])} of {int(run.history[-1]['epoch'])})"
    limited = [name for name in ("val", "test") if not _is_whole(trainer, name)]
    print(_summary(scores, card["dataset"], limited), flush=True)
    print(f"Saved {best} to {folder}; logs and curves are in {run.folder}", flush=True)


def _test(trainer: L.Trainer, task: ClassificationTask, data: Any, run: RunFolder) -> dict[str, dict[str, float]]:
    try:
        (results,) = trainer.test(task, data, verbose=False)
    except (UnusableImages, UnreadableImage) as error:
        if trainer.world_size > 1 and isinstance(error, UnreadableImage):  # one process's, while others wait for it
            raise UnreadableImage(f"{error}, or with --run.test false; {run.best} holds the weights") from error
        if trainer.is_global_zero:
            print(
                f"NOT TESTED: {error}\nThe weights are written without a test. To test them once that is mended: "
                f"acmix-zoo test --config {run.folder / 'config.yaml'}",
                flush=True,
            )
        return {}
    return {"test": {name[5:]: value for name, value in results.items() if name.startswith("test/")}}


def _row(checkpoint: dict[str, Any]) -> dict[str, float]:
    """Of the history: these weights' own, whatever could not be saved."""
    row: dict[str, float] = checkpoint["callbacks"]["RunFolder"]["history"][-1]
    return row


def _full_precision(task: ClassificationTask, state: dict[str, Tensor]) -> None:
    """Convert a task to the dtypes of a checkpoint, whose average is in float32 even after training in bfloat16."""
    for name, tensor in (*task.named_parameters(), *task.named_buffers()):
        if name in state and tensor.dtype != state[name].dtype:
            tensor.data = tensor.data.to(state[name].dtype)


def _whole(task: ClassificationTask, state: dict[str, Tensor]) -> nn.Module:
    """The task's network; a new one with the same weights if its own is spread over processes."""
    if not is_sharded(task.model):
        _full_precision(task, state)
        task.load_state_dict(state)  # load them again, because testing in half precision rounded them
        return task.model
    twin = type(task)(**{**task.hparams, "pretrained": False})
    twin.load_state_dict(state)
    return twin.model


def _publish(folder: Path, name: str) -> None:
    """A run is not lost because the Hub could not be reached."""
    try:
        print(f"published: {push(folder, name)}", flush=True)
    except (OSError, ValueError) as error:
        print(f"NOT PUBLISHED: {error}\nTo try again: acmix-zoo push {folder} {name}", flush=True)


def _example(data: Any) -> Tensor:
    """Up to four validation images (B, C, H, W); noise where there are none, or where all processes must read them."""
    loader = data.val_dataloader()
    if not isinstance(loader, DataLoader):
        return torch.randn(1, *data.input_size, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bad images: the run has said it
        images: Tensor = next(iter(loader))[0]
    return images[:4]


def _summary(scores: dict[str, dict[str, float]], dataset: dict[str, Any], limited: list[str]) -> str:
    """
    Args:
        dataset: of the data's card.
        limited: the splits of which images were left out.
    """
    parts = [
        f"{split} " + ", ".join(f"{n.replace('top', 'top-')} {100 * v:.2f} %" for n, v in values.items() if n != "loss")
        for split, values in scores.items()
        if "top1" in values
    ]
    splits = [name for name in ("val", "test") if dataset["splits"].get(name)]
    if not splits:
        reason = "not evaluated, because there was no validation or test split"
    elif set(splits) & set(limited):
        reason = "no score, because options of the trainer left out images of the validation or test split"
    else:
        reason = f"not evaluated on its {' or '.join(splits)} split"
    return f"{dataset['name']}: " + ("; ".join(parts) or reason)


def _environment(trainer: L.Trainer) -> dict[str, Any]:
    """Describe what the numbers depend on, and nothing that names the machine."""
    return {
        "lightning": L.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": trainer.strategy.root_device.type,
        "devices": trainer.world_size,
        "threads": torch.get_num_threads(),
        "precision": str(trainer.precision),
    }


def git_revision() -> str | None:
    """Revision of the clone that this code runs from, with "-dirty" if it was changed; None outside of a clone."""
    here = Path(acmix_zoo.__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, encoding="utf-8", check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # not: a site-packages inside of somebody's clone
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return None
