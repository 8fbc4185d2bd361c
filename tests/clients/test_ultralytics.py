"""ACmix2d in the real Ultralytics, unpatched: rows of a model yaml, swapped models, training, validation and export.

Every step runs in a separate process, because Ultralytics reads its settings when it is imported, and training changes
global settings of torch. Nothing is downloaded, and the settings are written to the test's own folder.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from acmix_zoo import swap_conv3x3

pytest.importorskip("ultralytics")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["WBC", "RBC", "Platelets"]

# A small YOLO11: the parser replaces `c2` by the width of the row before, which it has scaled.
MODEL = """
nc: 3
scales:
  n: [0.50, 0.25, 1024]
backbone:
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, Conv, [128, 3, 2]]
  - [-1, 2, C3k2, [128, False, 0.25]]
  - [-1, 1, Conv, [256, 3, 2]]
  - [-1, 2, C3k2, [256, False, 0.25]] # 4, stride 8
  - [-1, 1, Conv, [512, 3, 2]]
  - [-1, 1, ACmix2d, [c2, c2]] # 6, stride 16
head:
  - [-1, 1, nn.Upsample, [None, 2, nearest]]
  - [[-1, 4], 1, Concat, [1]]
  - [-1, 1, Conv, [256, 1, 1]]
  - [-1, 4, ACmix2d, [c2, c2, 3, 1]] # 10, stride 8, repeated
  - [-1, 1, ACmix2d, [c2, c2, 3, 2]] # 11, stride 16
  - [[-1, 6], 1, Concat, [1]]
  - [-1, 1, C3k2, [512, False]]
  - [[10, 13], 1, Detect, [nc]]
"""

COMMON = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from ultralytics import YOLO
OPTIONS = dict(data="data.yaml", imgsz=96, batch=2, workers=0, device="cpu", plots=False)
OPTIONS["project"] = str(Path.cwd() / "runs")
def layers(model):
    return [[m.in_channels, m.out_channels, m.stride] for m in model.modules() if type(m).__name__ == "ACmix2d"]
def report(**values):
    print(json.dumps(values))
"""

TRAIN = """
import ultralytics.nn.tasks
from acmix_zoo import ACmix2d
ultralytics.nn.tasks.ACmix2d = ACmix2d
yolo = YOLO("model.yaml")
gflops = yolo.info()[3]
before = {k: v.clone() for k, v in yolo.model.state_dict().items()}
averaged = []
yolo.add_callback("on_train_batch_end", lambda trainer: averaged.append(layers(trainer.ema.ema)))
yolo.train(epochs=1, amp=False, name="t", **OPTIONS)
after = yolo.model.state_dict()
moved = [k for k in before if "qkv.weight" in k and not torch.equal(before[k], after[k])]
report(gflops=gflops, layers=layers(yolo.model), averaged=averaged, moved=moved, best=str(yolo.trainer.best))
"""

USE = """
best = "runs/t/weights/best.pt"
yolo = YOLO(best)
found, stored = layers(yolo.model), str(next(torch.load(best, weights_only=False)["model"].parameters()).dtype)
metrics = yolo.val(name="v", **OPTIONS).results_dict
half_metrics = YOLO(best).val(name="h", quantize=16, **OPTIONS).results_dict
image = str(next(Path("set/images/val").iterdir()))
boxes = YOLO(best).predict(image, imgsz=96, device="cpu", verbose=False, conf=0.0)[0].boxes.shape

x = torch.rand(1, 3, 96, 96)
def output(model, x=x):
    with torch.no_grad():
        y = model(x)
    return y[0] if isinstance(y, (tuple, list)) else y
plain = YOLO(best).model.float().eval()
expected = output(plain)
fused = YOLO(best).model.float().eval().fuse(verbose=False)
half = output(YOLO(best).model.half().eval(), x.half())
report(
    layers=found, stored=stored, metrics=metrics, half_metrics=half_metrics, boxes=list(boxes),
    gflops=[plain.info()[3], fused.info()[3]], scale=float(expected.abs().max()),
    fused=float((output(fused) - expected).abs().max()), half=bool(half.isfinite().all()),
)
"""

EXPORT = """
import onnxruntime
best = "runs/t/weights/best.pt"
plain = YOLO(best).model.float().eval()
def expected(x):
    with torch.no_grad():
        return plain(x)[0]
x, other = torch.rand(1, 3, 96, 96), torch.rand(2, 3, 64, 128)
def difference(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = [i.name for i in session.get_inputs()]
    out = torch.from_numpy(session.run(None, {name: x.numpy()})[0])
    return float((out - expected(x)).abs().max() / expected(x).abs().max())
differences = {}
path = YOLO(best).export(format="onnx", imgsz=96, device="cpu", simplify=False)
differences["onnx"] = difference(path, x)
path = YOLO(best).export(format="onnx", imgsz=96, device="cpu", simplify=False, dynamic=True)
differences["onnx, dynamic"] = difference(path, x)
differences["onnx, dynamic, another size"] = difference(path, other)
path = YOLO(best).export(format="torchscript", imgsz=96, device="cpu")
out = torch.jit.load(path)(x)
out = out[0] if isinstance(out, (tuple, list)) else out
differences["torchscript"] = float((out - expected(x)).abs().max() / expected(x).abs().max())
report(differences=differences)
"""

# The trainer is the example at the end of the docstring of `swap_conv3x3`.
TRAINER = textwrap.dedent(inspect.getdoc(swap_conv3x3).partition("::\n")[2])
SWAP = f"""
from ultralytics.models.yolo.detect import DetectionTrainer
from acmix_zoo import swap_conv3x3
{TRAINER}
yolo = YOLO("yolov8n.yaml")
yolo.train(trainer=Trainer, epochs=1, amp=False, name="s", **OPTIONS)
swapped = YOLO("runs/s/weights/best.pt")
found = layers(swapped.model)
metrics = swapped.val(name="sv", **OPTIONS).results_dict
again = YOLO("runs/s/weights/best.pt")
again.train(epochs=1, amp=False, name="p", **OPTIONS)  # Ultralytics' own trainer
report(layers=found, metrics=metrics, without=layers(again.model))
"""

EVERY_SWAP = """
from acmix_zoo import swap_conv3x3
results = {}
for name in ("yolov5n", "yolov8n", "yolov9t", "yolo11n", "yolo11n-seg", "yolo12n"):
    torch.manual_seed(0)
    model = YOLO(f"{name}.yaml").model
    swapped = swap_conv3x3(model)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1), module.running_var.uniform_(0.8, 1.2)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        model.eval()
        flops = model.info()[3]
        before = model(x)[0]
        before = before[0] if isinstance(before, (tuple, list)) else before
        model.fuse(verbose=False)
        after = model(x)[0]
        after = after[0] if isinstance(after, (tuple, list)) else after
    results[name] = dict(
        replaced=list(swapped.replaced), gflops=flops, fused=model.is_fused(),
        difference=float((after - before).abs().max() / before.abs().max()),
        kept=[reason for reason in swapped.skipped.values()],
    )
report(results=results)
"""


def run(script: str, folder: Path) -> dict[str, Any]:
    """Run a script in a separate process, and return what it reports on its last line."""
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "YOLO_CONFIG_DIR": str(folder / "settings"), "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", COMMON + script], cwd=folder, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an Ultralytics data set of six photographs of blood cells with boxes, and the yaml of the model."""
    source = Path(os.environ.get("ACMIX_DATA", ROOT.parent / "shared" / "data")) / "bccd"
    if not source.is_dir():
        pytest.skip(f"{source} is missing: set ACMIX_DATA to a folder with bccd/")
    folder = tmp_path_factory.mktemp("ultralytics")
    for i, image in enumerate(sorted((source / "JPEGImages").iterdir())[:6]):
        split = "train" if i < 4 else "val"
        root = ElementTree.parse(source / "Annotations" / f"{image.stem}.xml").getroot()
        width, height = (float(root.findtext(f"size/{key}", "0")) for key in ("width", "height"))
        rows = []
        for box in root.iter("object"):
            corners = ("xmin", "ymin", "xmax", "ymax")
            left, top, right, bottom = (float(box.findtext(f"bndbox/{key}", "0")) for key in corners)
            centre = (left + right) / 2 / width, (top + bottom) / 2 / height
            sides = (right - left) / width, (bottom - top) / height
            rows.append(" ".join(map(str, (CLASSES.index(box.findtext("name", "")), *centre, *sides))))
        for kind in ("images", "labels"):
            (folder / "set" / kind / split).mkdir(parents=True, exist_ok=True)
        shutil.copy(image, folder / "set" / "images" / split)
        (folder / "set" / "labels" / split / f"{image.stem}.txt").write_text("\n".join(rows))
    data = {"path": str(folder / "set"), "train": "images/train", "val": "images/val", "names": CLASSES}
    (folder / "data.yaml").write_text(json.dumps(data))  # JSON is YAML
    (folder / "model.yaml").write_text(MODEL)
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, Any]:
    return run(TRAIN, folder)


# (in, out, stride): widths are a quarter of those in the yaml; a repeated row appears twice.
LAYERS = [[128, 128, 1], [64, 64, 1], [64, 64, 1], [64, 64, 2]]


def test_a_yaml_trains(trained: dict[str, Any]) -> None:
    assert trained["layers"] == LAYERS
    assert trained["gflops"] > 0
    assert trained["averaged"] == [LAYERS] * 2  # two batches: the EMA keeps a copy of the layers
    assert len(trained["moved"]) == len(LAYERS)


def test_a_checkpoint_works_in_a_fresh_process(trained: dict[str, Any], folder: Path) -> None:
    """The parser does not have to know the name of the layer, because the checkpoint contains the modules."""
    used = run(USE, folder)
    assert used["layers"] == LAYERS and used["stored"] == "torch.float16"
    assert {"metrics/mAP50(B)", "fitness"} <= used["metrics"].keys() == used["half_metrics"].keys()
    assert used["boxes"][1] == 6
    assert all(gflops > 0 for gflops in used["gflops"])
    assert used["fused"] < 1e-4 * used["scale"] and used["half"]


def test_exports_equal_torch(trained: dict[str, Any], folder: Path) -> None:
    differences = run(EXPORT, folder)["differences"]
    assert len(differences) == 4
    assert all(difference < 1e-4 for difference in differences.values()), differences


def test_a_swap_lasts_in_a_trainer_that_repeats_it(folder: Path) -> None:
    swapped = run(SWAP, folder)
    assert swapped["layers"] == [[64, 64, 1]] * 4
    assert "fitness" in swapped["metrics"]
    # The default trainer builds from the yaml, so the swap is lost, as the docstring of swap_conv3x3 says.
    assert swapped["without"] == []


def test_swapped_models_survive_fuse(folder: Path) -> None:
    results = run(EVERY_SWAP, folder)["results"]
    for name, result in results.items():
        assert len(result["replaced"]) > 10 and "model.0.conv" not in result["replaced"], name
        assert result["gflops"] > 0 and result["fused"], name
        assert result["difference"] < 1e-4, name
    assert any("RepConv.fuse_convs" in reason for reason in results["yolov9t"]["kept"])
