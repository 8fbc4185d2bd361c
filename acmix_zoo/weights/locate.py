"""Find the weights that a path refers to: a weight folder, a run folder or a file."""

from os import PathLike
from pathlib import Path


def locate(path: str | PathLike[str]) -> Path:
    """Return the weight folder or checkpoint file that `path` refers to.

    A run folder, or its `config.yaml`, refers to the run's weights: `weights/` if the run has finished, otherwise
    `checkpoints/best.ckpt`. Any other path is returned unchanged, whether or not it exists.
    """
    path = Path(path)
    run = path.parent if path.name == "config.yaml" else path
    if (run / "config.json").is_file():  # a weight folder
        return path
    for weights in (run / "weights" / "config.json", run / "checkpoints" / "best.ckpt"):
        if weights.is_file():
            return weights.parent if weights.name == "config.json" else weights
    return path
