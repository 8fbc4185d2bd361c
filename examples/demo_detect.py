"""Detect blood cells, starting from a classifier's weights, in a few minutes: `make demo-detect`.

The demo trains a detector with recipes/detect/bccd.yaml on some of the microscope images of BCCD, which are in
examples/blood_cells. It tests the detector, and detects cells from the command line. It works offline.
"""

from __future__ import annotations

import time
from pathlib import Path

from examples.demo_steps import (
    acmix_zoo_command,
    evaluate_run,
    fit_command,
    new_folder,
    print_end,
    print_heading,
    print_text,
)

FOLDER = Path("runs/demo-detect")
CELLS = Path(__file__).resolve().with_name("blood_cells")
RECIPE = Path(__file__).resolve().parent.parent / "recipes/detect/bccd.yaml"
WEIGHTS = "acmix_resnet_nano.tiny_imagenet"  # in checkpoints/
EPOCHS = 15


def main() -> None:
    """Run the demo. The results go to a new folder below the current directory.

    It is runs/demo-detect, or runs/demo-detect-2, runs/demo-detect-3, … if there were earlier demos.
    """
    started = time.perf_counter()
    folder = new_folder(FOLDER)
    print_heading("Check the images and their boxes")
    acmix_zoo_command(["data", str(CELLS)])

    model, _, tag = WEIGHTS.partition(".")
    print_heading(f"Train a detector on {model}, pretrained on {tag}")
    options = {"model.model": model, "model.pretrained": tag, "trainer.max_epochs": EPOCHS}
    fit_command({"config": RECIPE, "data.source": CELLS, **options, "run.folder": folder / "run"})

    print_heading("Test it, and detect the cells of its test images")
    picture = evaluate_run(folder / "run", CELLS / "test")
    print_text(f"The boxes are in {folder / 'run/predictions.json'}, in COCO's format")
    print_end(started, f"Next, look at the detections beside the truth: {picture}")


if __name__ == "__main__":
    main()
