"""Finish a run: test the best weights once, export them as a weight folder with their record, and publish them."""

import contextlib
import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from torch import Tensor, nn

from acmix_zoo.data.images import UnreadableImage
from acmix_zoo.data.resumable import ResumableDataModule
from acmix_zoo.data.splits import UnusableImages
from acmix_zoo.tasks import Task
from acmix_zoo.tasks.sharded import is_sharded, load_full_state, read_checkpoint
from acmix_zoo.training.card_pictures import card_pictures
from acmix_zoo.training.environment import git_revision, run_environment
from acmix_zoo.training.evaluation_files import WrittenFile, warn_of_failure, write_evaluation
from acmix_zoo.training.guard import NotFinite
from acmix_zoo.training.history import Row, format_scores, write_csv
from acmix_zoo.training.plots import plot_curves
from acmix_zoo.training.record import (
    evaluation_limits,
    is_complete,
    parent_record,
    run_cfg,
    run_record,
    split_scores,
)
from acmix_zoo.training.run import RunFolder
from acmix_zoo.weights import push, write_folder


class FinishedRun(NamedTuple):
    """What a run has produced.

    Attributes:
        weights: the weight folder.
        split: the split on which the best weights were evaluated in detail; "" for none.
        files: the files to look at.
    """

    weights: Path
    split: str
    files: list[WrittenFile]


def finish_run(trainer: L.Trainer, task: Task, data: ResumableDataModule, run: RunFolder) -> FinishedRun:
    """Load the best weights into `task`, test them unless `run.test` is off, write metrics.csv, curves.png, weights/
    and what was found on the test split (without a test, on the validation split), and publish the weights if
    `run.push_to` is set. Every process returns once they are written.

    Args:
        trainer: a trainer whose fit has ended.
        data: the data module of the fit.
        run: the trainer's callback.

    Raises:
        NotFinite: training diverged.
        ValueError: nothing was trained.
        FileNotFoundError: best.ckpt was removed.
        OSError: the folder could not be written. The weights are still in best.ckpt.
    """
    if not run.best.exists():
        if run.history:
            raise FileNotFoundError(f"{run.best} is missing. Expected the best weights of the run. Train it again")
        raise ValueError(
            "no epoch was trained, so there are no weights to test and export. Expected at least one step. Check "
            "trainer.max_steps and trainer.max_time"
        )
    checkpoint = read_checkpoint(run.best)
    row = _best_row(checkpoint)
    if not math.isfinite(row.get("val/loss", 0.0)):
        raise NotFinite(
            f"training diverged: the validation loss is {row['val/loss']} in every epoch. No weights were exported. "
            f"The logs are in {run.folder}. Start a new run with a lower model.lr (it was {task.hparams.get('lr')}), "
            "a longer model.warmup_epochs, or trainer.gradient_clip_val 1.0"
        )
    load_full_state(task, checkpoint["state_dict"])
    sizes, limits = data.card()["dataset"]["splits"], evaluation_limits(trainer)
    limited = [split for split in ("val", "test") if sizes.get(split) and not is_complete(limits, split)]
    scores = {} if "val" in limited else split_scores("val", row, task.kind)
    if run.test and sizes.get("test"):
        test_scores = _test(trainer, task, data, run)
        scores |= {} if "test" in limited else test_scores
    if limited and trainer.is_global_zero:
        print(
            "Warning: trainer.limit_val_batches or trainer.limit_test_batches left out images, so the scores of "
            f"{' and '.join(limited)} are not recorded. To measure them, evaluate the finished run with that option "
            "set to 1.0",
            flush=True,
        )
    if "test" not in task.evaluations and sizes.get("val"):
        with warnings.catch_warnings(), contextlib.suppress(UnusableImages):  # without them, there is no class table
            warnings.simplefilter("ignore")  # the run has already warned of unreadable images
            results = trainer.validate(task, data, verbose=False)  # the run's own validations keep no details
            if results and "val" not in limited and not scores.get("val"):  # their epoch ended without a validation
                scores |= split_scores("val", results[0], task.kind)
    split = next((name for name in ("test", "val") if name in task.evaluations), "")
    files: list[WrittenFile] = []
    try:
        if trainer.is_global_zero:
            evaluated = write_evaluation(task, data, split, run.folder) if split else []
            files = _write(trainer, task, data, run, checkpoint, scores, "" if split in limited else split)
            files += evaluated
            _print_result(run, task, data, scores, int(row["epoch"]), limited)
    finally:
        trainer.strategy.barrier("weights")
    folder = run.folder / "weights"
    if run.push_to and trainer.is_global_zero:
        _publish(folder, run.push_to)
    return FinishedRun(folder, split, files)


def _write(
    trainer: L.Trainer,
    task: Task,
    data: ResumableDataModule,
    run: RunFolder,
    checkpoint: dict[str, Any],
    scores: dict[str, dict[str, float]],
    split: str,
) -> list[WrittenFile]:
    """Write the history and the weights, and return the files to look at.

    Args:
        split: the split whose evaluation the model card shows; "" for none.
    """
    card, state = data.card(), checkpoint["state_dict"]
    start, start_cfg = task.hparams["pretrained"], getattr(task.model, "pretrained_cfg", {})
    write_csv(run.folder / "metrics.csv", run.history)  # a kill may have come between a checkpoint and its row
    with warn_of_failure(run.folder / "curves.png"):
        plot_curves(run.history, run.folder / "curves.png", task.kind.metrics)
    with warn_of_failure(run.folder / "predictions.png"):
        task.plot_examples(data, run.folder / "predictions.png")
    record = {
        **run_record(run.state_dict(), card, scores),
        "best_epoch": int(_best_row(checkpoint)["epoch"]),
        "environment": run_environment(trainer, task.model),
        "git_revision": git_revision(),
        **parent_record(run.state_dict(), start, start_cfg),
        "evaluation": task.evaluation_options(task.hparams) or None,
        "class_scores": _class_scores(task, scores),
    }
    network = _full_network(task, state)
    cfg: dict[str, Any] = getattr(network, "pretrained_cfg", {})
    try:
        write_folder(
            run.folder / "weights",
            network,
            architecture=cfg.get("architecture") or task.hparams["model"],
            pretrained_cfg={
                "fixed_input_size": bool(cfg.get("fixed_input_size", False)),
                **run_cfg(run.state_dict(), card),
            },
            record=record,
            example=data.example_images(),
            pictures=card_pictures(run.folder, split, card["dataset"]),
        )
    except OSError as error:
        raise OSError(f"{error}. The best weights are in {run.best}. {run.resume_message}") from error
    contents = {
        "weights": "the network with its model card",
        "curves.png": "loss, scores and learning rate of every epoch",
        "augmented.png": "training images as the network received them",
        "predictions.png": "images with what the network found in them",
    }
    paths = {run.folder / name: content for name, content in contents.items()}
    return [WrittenFile(path, content) for path, content in paths.items() if path.exists()]


def _test(trainer: L.Trainer, task: Task, data: ResumableDataModule, run: RunFolder) -> dict[str, dict[str, float]]:
    """Return {"test": {metric: value}}, or {} with a warning if the test images cannot be used."""
    try:
        results = trainer.test(task, data, verbose=False)
    except (UnusableImages, UnreadableImage) as error:
        if trainer.world_size > 1 and isinstance(error, UnreadableImage):  # only one process raises it
            raise UnreadableImage(
                f"{error}. The best weights are in {run.best}. To export them without a test, use --run.test false"
            ) from error
        if trainer.is_global_zero:
            print(
                f"Warning: could not test the weights: {error}\nThey are exported without a test score. Repair the "
                f"images, then run: acmix-zoo test --config {run.folder / 'config.yaml'}",
                flush=True,
            )
        return {}
    return split_scores("test", results[0], task.kind) if results else {}  # none with limit_test_batches=0


def _class_scores(task: Task, scores: dict[str, dict[str, float]]) -> dict[str, Any] | None:
    """Return the test scores of each class for the record, or None if they were not measured."""
    measured = task.class_scores.get("test") if "test" in scores else None
    if not measured:
        return None
    rounded = {
        metric: {name: round(value, 6) if math.isfinite(value) else None for name, value in values.items()}
        for metric, values in measured.items()
    }
    return {"split": "test", "values": rounded}


def _best_row(checkpoint: dict[str, Any]) -> Row:
    """Return the history's row for the epoch of best.ckpt."""
    row: Row = checkpoint["callbacks"]["RunFolder"]["history"][-1]
    return row


def _restore_dtypes(task: Task, state: dict[str, Tensor]) -> None:
    """Convert a task to the dtypes of a checkpoint: averaged weights are float32 even after training in bfloat16."""
    for name, tensor in (*task.named_parameters(), *task.named_buffers()):
        if name in state and tensor.dtype != state[name].dtype:
            tensor.data = tensor.data.to(state[name].dtype)


def _full_network(task: Task, state: dict[str, Tensor]) -> nn.Module:
    """Return the task's network with the weights in full precision, or a new one if its own is sharded."""
    if not is_sharded(task.model):
        _restore_dtypes(task, state)
        task.load_state_dict(state)  # load them again, because testing in half precision rounded them
        return task.model
    copy = type(task)(**{**task.hparams, "pretrained": False})
    copy.load_state_dict(state)
    return copy.model


def _publish(folder: Path, name: str) -> None:
    """Publish the weights on the Hub. A failure is printed and does not fail the run."""
    try:
        print(f"Published the weights: {push(folder, name)}", flush=True)
    except (OSError, ValueError) as error:
        print(
            f"Warning: could not publish the weights: {error}\nTo try again: acmix-zoo push {folder} {name}", flush=True
        )


def _print_result(
    run: RunFolder,
    task: Task,
    data: ResumableDataModule,
    scores: dict[str, dict[str, float]],
    best_epoch: int,
    limited: list[str],
) -> None:
    """Print the scores, and where the weights are.

    Args:
        limited: the splits of which images were left out.
    """
    dataset = data.card()["dataset"]
    splits = [split for split in ("val", "test") if dataset["splits"].get(split)]
    if any(task.kind.main_metric in values for values in scores.values()):
        text = format_scores(scores, task.kind)
    elif not splits:
        text = "not evaluated, because there was no validation or test split"
    elif set(splits) & set(limited):
        text = "no complete score, because options of the trainer left out images"
    else:
        text = f"not evaluated on its {' or '.join(splits)} split"
    print(f"{dataset['name']}: {text}", flush=True)
    folder = run.folder / "weights"
    print(f"Saved best weights (epoch {best_epoch}) to {folder}; logs and curves in {run.folder}", flush=True)
