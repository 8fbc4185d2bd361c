"""The end of a run: the best weights, tested once, written as a weight folder with the record of their making."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

import acmix_zoo
from acmix_zoo.analysis.complexity import complexity
from acmix_zoo.analysis.plots import plot_curves
from acmix_zoo.tasks import ClassificationTask
from acmix_zoo.training.run import RunFolder
from acmix_zoo.weights import write_folder


def finish_run(
    trainer: L.Trainer,
    task: ClassificationTask,
    data: Any,
    run: RunFolder,
    *,
    command: str | None = None,
    recipe: str | None = None,
) -> Path:
    """Load the best weights into `task`, test them unless `run.test` is off, write curves.png and weights/.

    Args:
        trainer: its fit is over.
        data: the ImageDataModule of the fit.
        run: the trainer's callback.
        command, recipe: for the record, as the user gave them.

    Returns:
        The weight folder.

    Raises:
        OSError: the folder could not be written; best.ckpt holds the weights then.
    """
    checkpoint = torch.load(run.best, map_location="cpu", weights_only=True)
    task.load_state_dict(checkpoint["state_dict"])
    dataset = data.describe()
    row = max(run.history, key=lambda r: (r.get("val/top1", r["epoch"]), -r.get("val/loss", 0.0)))
    scores = {"val": {name[4:]: value for name, value in row.items() if name.startswith("val/")}}
    if run.test and dataset["splits"].get("test"):
        (results,) = trainer.test(task, data, verbose=False)
        scores["test"] = {name[5:]: value for name, value in results.items() if name.startswith("test/")}
    if not trainer.is_global_zero:
        return run.folder / "weights"

    plot_curves(run.history, run.folder / "curves.png")
    size = tuple(data.input_size)  # (C, H, W)
    record = {
        "metrics": [
            {"dataset": dataset["name"], "split": split, "name": name, "value": value}
            for split, values in scores.items()
            for name, value in values.items()
            if name != "loss"
        ],
        "recipe": recipe,
        "command": command,
        "dataset": dataset,
        "seed": run.seed,
        "epochs": int(run.history[-1]["epoch"]),
        "best_epoch": int(row["epoch"]),
        "minutes": round(sum(r["seconds"] for r in run.history) / 60, 1),
        "environment": _environment(trainer),
        "git_revision": git_revision(),
        "macs": complexity(task.model, size).macs,
        "license": run.license,
        "origin": "trained here",
        "parent": str(task.hparams["pretrained"]) if task.hparams["pretrained"] else None,
    }
    cfg = {
        "tag": run.tag or dataset["name"].rpartition("/")[2].replace("-", "_"),
        "input_size": size,
        "fixed_input_size": bool(getattr(task.model, "pretrained_cfg", {}).get("fixed_input_size", False)),
        "mean": tuple(data.mean),
        "std": tuple(data.std),
        "interpolation": data.interpolation,
        "crop_pct": data.crop_pct,
        "label_names": list(data.class_names),
    }
    architecture = getattr(task.model, "pretrained_cfg", {}).get("architecture") or task.hparams["model"]
    try:
        folder = write_folder(
            run.folder / "weights",
            task.model,
            architecture=architecture,
            pretrained_cfg=cfg,
            record=record,
            example=_example(data),
        )
    except OSError as error:
        raise OSError(f"{error}. The weights are safe in {run.best}; {run.resume_words}") from error
    print(f"{_summary(scores, dataset['name'])}\n{folder}: the weights; {run.folder}: the run", flush=True)
    return folder


def _example(data: Any) -> Tensor:
    """Up to four validation images (B, C, H, W)."""
    images: Tensor = next(iter(data.val_dataloader()))[0]
    return images[:4]


def _summary(scores: dict[str, dict[str, float]], dataset: str) -> str:
    parts = [
        f"{split} top-1 {100 * values['top1']:.2f} %, top-5 {100 * values['top5']:.2f} %"
        for split, values in scores.items()
        if "top1" in values
    ]
    return f"{dataset}: " + "; ".join(parts)


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
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # not: a site-packages inside of somebody's clone
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return None
