"""The one place that says which weights a path means: a weight folder, a run folder or a file."""

from os import PathLike
from pathlib import Path


def locate(path: str | PathLike[str]) -> Path:
    """Return the weight folder or checkpoint file that `path` means.

    A run folder stands for its weights: `weights/` if the run has finished, else `checkpoints/best.ckpt`. So does the
    run's `config.yaml`. Any other path is returned unchanged, whether it exists or not.
    """
    path = Path(path)
    run = path.parent if path.name == "config.yaml" else path
    if (run / "config.json").is_file():  # a weight folder
        return path
    for weights in (run / "weights" / "config.json", run / "checkpoints" / "best.ckpt"):
        if weights.is_file():
            return weights.parent if weights.name == "config.json" else weights
    return path
