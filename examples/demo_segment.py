"""Segment scenes of handwritten digits, starting from a classifier's weights, in a few minutes: `make demo-segment`.

The demo places scikit-learn's handwritten digits on noisy backgrounds, with a mask that gives each pixel its digit. It
trains a U-Net on a pretrained ACmix network, tests it, and predicts masks from the command line. It works offline.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from PIL import Image

from acmix_zoo.data import open_source
from acmix_zoo.data.sources.image_sets import Images
from examples.demo_steps import evaluate_run, fit_command, new_folder, print_end, print_heading, print_text

FOLDER = Path("runs/demo-segment")
SIZE = 64  # pixels, height and width of a scene
SCENES = {"train": 320, "val": 40, "test": 80}
OPTIONS = {
    "task": "segmentation", "data.crop_size": "[64, 64]", "data.batch_size": 16, "data.hflip": 0,
    "model.model": "acmix_resnet_pico", "model.pretrained": "true", "model.decoder": "unet",
    "model.losses": "{cross_entropy: 1, dice: 1}", "model.lr": 3e-3, "model.layer_decay": 0.8, "model.ema_decay": 0.98,
    "trainer.max_epochs": 12, "trainer.gradient_clip_val": 1.0, "trainer.log_every_n_steps": 10, "ckpt_path": "last",
}  # fmt: skip


def main() -> None:
    """Run the demo. The results go to a new folder below the current directory.

    It is runs/demo-segment, or runs/demo-segment-2, runs/demo-segment-3, … if there were earlier demos.
    """
    started = time.perf_counter()
    folder = new_folder(FOLDER)
    print_heading("Write scenes of handwritten digits with their masks")
    scenes = write_scenes(folder / "scenes")
    counts = ", ".join(f"{count} in {split}" for split, count in SCENES.items())
    print_text(f"{scenes}: {counts}. The splits share no digits")

    print_heading("Train a U-Net on a network that was pretrained on clothes")
    fit_command({**OPTIONS, "data.source": scenes, "run.folder": folder / "run"})

    print_heading("Test it, and predict masks of new scenes")
    picture = evaluate_run(folder / "run", scenes / "images/test")
    print_end(started, f"Next, look at the predictions beside the truth: {picture}")


def write_scenes(folder: Path) -> Path:
    """Write images/ and masks/ with folders train, val and test, and classes.txt. Return the folder."""
    digits = open_source("digits")
    images = digits.splits["train"]
    generator = np.random.default_rng(0)
    borders = np.linspace(0, len(images), 10).astype(int)
    parts = {"train": range(borders[6]), "val": range(borders[6], borders[7]), "test": range(borders[7], len(images))}
    for split, count in SCENES.items():
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            scene, mask = make_scene(images, parts[split], generator)
            scene.save(folder / f"images/{split}/{number:03d}.png")
            mask.save(folder / f"masks/{split}/{number:03d}.png")
    (folder / "classes.txt").write_text("\n".join(["background", *digits.class_names]) + "\n", encoding="utf-8")
    return folder


def make_scene(images: Images, part: range, generator: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Return a scene with two to four digits, and its mask."""
    colours = generator.uniform(0, 255, (2, 2, 3)).astype(np.uint8)  # (2, 2, 3), the corners of the background
    background = np.asarray(Image.fromarray(colours).resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32)
    scene = 0.5 * background + generator.normal(0, 12, background.shape)  # (SIZE, SIZE, 3)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    for index in generator.choice(part, generator.integers(2, 5), replace=False).tolist():
        side = int(generator.integers(22, 34))
        top, left = generator.integers(0, SIZE - side, 2).tolist()
        ink = images.image(index).convert("L").resize((side, side), Image.Resampling.BICUBIC)
        share = np.asarray(ink, np.float32)[..., None] / 255  # (side, side, 1)
        window = (slice(top, top + side), slice(left, left + side))
        scene[window] = (1 - share) * scene[window] + share * generator.uniform(140, 255, 3)
        mask[window][share[..., 0] > 0.35] = 1 + int(images.targets[index])
    return Image.fromarray(scene.clip(0, 255).astype(np.uint8)), Image.fromarray(mask)


if __name__ == "__main__":
    main()
