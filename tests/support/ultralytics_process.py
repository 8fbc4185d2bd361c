"""Run scripts with Ultralytics, each in a separate process.

Ultralytics reads its settings and modifies other packages when it is imported, and training changes global settings of
torch. Nothing is downloaded, and the settings are written to the test's own folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.documents import ROOT

DATA = Path(os.environ.get("ACMIX_DATA", ROOT.parent / "shared" / "data")) / "bccd"

# A small YOLO11 with a row of every kind. Ultralytics reads JSON as YAML.
MODEL: dict[str, Any] = {
    "nc": 3,
    "scales": {"n": [0.5, 0.25, 1024], "s": [0.5, 0.5, 256]},
    "backbone": [
        [-1, 1, "Conv", [64, 3, 2]],
        [-1, 1, "Conv", [128, 3, 2]],
        [-1, 2, "C3k2", [128, False, 0.25]],
        [-1, 1, "Conv", [256, 3, 2]],
        [-1, 2, "C3k2", [256, False, 0.25]],  # 4, stride 8
        [-1, 1, "ACmix2d", [512, 5, 2]],  # 5, stride 16
    ],
    "head": [
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 4], 1, "Concat", [1]],
        [-1, 1, "Conv", [256, 1, 1]],
        [-1, 4, "ACmix2d", [256]],  # 9, stride 8, repeated
        [-1, 1, "ACmix2d", [256, 3, 2, {"kernel_att": 5}]],  # 10, stride 16
        [[-1, 5], 1, "Concat", [1]],
        [-1, 1, "C3k2", [512, False]],
        [[9, 12], 1, "Detect", ["nc"]],
    ],
}

COMMON = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from ultralytics import YOLO
OPTIONS = dict(data="data/data.yaml", imgsz=96, batch=2, workers=0, device="cpu", plots=False, amp=False)
OPTIONS["project"] = str(Path.cwd() / "runs")
def layers(model):
    found = [m for m in model.modules() if type(m).__name__ == "ACmix2d"]
    return [[m.in_channels, m.out_channels, m.stride, m.kernel_conv, m.kernel_att, m.heads] for m in found]
def report(**values):
    print(json.dumps(values))
def output(model, x):
    with torch.no_grad():
        y = model(x)
    return y[0] if isinstance(y, (tuple, list)) else y
"""


def run(script: str, folder: Path) -> dict[str, Any]:
    """Run a script in a separate process, and return what it reports on its last line."""
    result: dict[str, Any] = json.loads(run_python(COMMON + script, folder).splitlines()[-1])
    return result


def run_python(script: str, folder: Path) -> str:
    """Run a script in a separate process, with the folder as its working directory, and return what it prints."""
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "YOLO_CONFIG_DIR": str(folder / "settings"), "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def write_model(folder: Path) -> None:
    for scale in "ns":  # Ultralytics takes the scale from the name of the file
        (folder / f"yolo11{scale}-small.yaml").write_text(json.dumps(MODEL))
