"""What the demos have in common: a new folder for the results, printing, and running commands of `acmix-zoo`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

console = Console(highlight=False)


def new_folder(wanted: Path) -> Path:
    """Create and return `wanted`, or the first of `wanted`-2, `wanted`-3, … that does not exist yet."""
    folder, number = wanted, 1
    while True:
        try:
            folder.mkdir(parents=True)  # atomic: if two demos start together, one of them takes the next number
            return folder
        except FileExistsError:
            number += 1
            folder = wanted.with_name(f"{wanted.name}-{number}")


def print_heading(text: str) -> None:
    """Print the heading of a part."""
    console.rule(f"[bold]{text}", align="left")


def print_text(text: str) -> None:
    """Print text unchanged."""
    console.print(text, markup=False, soft_wrap=True)


def print_end(started: float, text: str) -> None:
    """Print how long the demo took, and what to do next.

    Args:
        started: the value of `time.perf_counter` when the demo started.
        text: what to do next.
    """
    minutes, seconds = divmod(round(time.perf_counter() - started), 60)
    print_text(f"\nFinished in {minutes} min {seconds} s. {text}")


def acmix_zoo_command(arguments: Sequence[str]) -> None:
    """Print a command of `acmix-zoo` and run it. If it fails, exit with its code."""
    print_text(f"$ acmix-zoo {' '.join(arguments)}")
    code = subprocess.run([sys.executable, "-m", "acmix_zoo.cli", *arguments]).returncode
    if code:
        sys.exit(code)


def fit_command(options: Mapping[str, object]) -> None:
    """Run `acmix-zoo fit` with these options."""
    acmix_zoo_command(["fit", *(f"--{name}={value}" for name, value in options.items())])


def evaluate_run(run: Path, images: Path) -> Path:
    """Test the run's best weights, predict a folder of images, and return the picture that shows test images."""
    acmix_zoo_command(["test", "--config", str(run)])
    acmix_zoo_command(["predict", "--config", str(run), f"--data.predict={images}"])
    return run / "predictions.png"
