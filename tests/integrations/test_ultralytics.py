"""ACmix in the real Ultralytics: rows of a model yaml, swaps, training, validation, checkpoints and export.

Every step runs in a separate process, because Ultralytics reads its settings and modifies other packages when it is
imported, and training changes global settings of torch. Nothing is downloaded, and the settings are written to the
test's own folder.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.yolo_study import write_data

if importlib.util.find_spec("ultralytics") is None:
    pytest.skip("ultralytics is not installed", allow_module_level=True)


ROOT = Path(__file__).resolve().parents[2]
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

PARSE = """
from acmix_zoo.integrations.ultralytics import swap, write_yaml
def error_of(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
def build_row(*arguments):
    config = json.loads(Path("yolo11n-small.yaml").read_text())
    config["backbone"][5][3] = list(arguments)
    Path("yolo11n-wrong.yaml").write_text(json.dumps(config))
    return YOLO("yolo11n-wrong.yaml")
found = {scale: layers(YOLO(f"yolo11{scale}-small.yaml").model) for scale in "ns"}
rows = YOLO("yolo11n-small.yaml").model.model
counted = [row.np == sum(p.numel() for p in row.parameters()) for row in rows]

yolo = YOLO("yolo11n-small.yaml")
network = yolo.model
kept = network.model[3].conv
swapped = swap(yolo, "model.[14].*", kernel_att=3)
again = type(network)(network.yaml, ch=3, nc=7, verbose=False)
report(
    found=found, counted=counted, swapped=list(swapped.replaced), again=layers(again), after_swap=layers(network),
    keys_match=again.state_dict().keys() == network.state_dict().keys(), starts=yolo.ckpt["model"] is network,
    errors=[
        error_of(build_row, 512, 3, 2, 1), error_of(build_row), error_of(build_row, 512, 3, 2, {"heads": 3}),
        error_of(build_row, 512, 4), error_of(build_row, 512, {"depth": 3}), error_of(swap, yolo, "model.13.*"),
        error_of(write_yaml, "yolov3"), error_of(write_yaml, "yolov99n"),
    ],
)
"""

READY = """
from acmix_zoo.integrations.ultralytics import write_yaml
models = {name: YOLO(write_yaml(name)).model for name in ("yolo11n", "yolov8n", "yolo11s", "yolo12n", "yolo26n")}
rows = {name: [row[2] for row in model.yaml["head"]] for name, model in models.items()}
report(
    layers={name: layers(model) for name, model in models.items()},
    rows={name: [found.count("Conv"), found.count("ACmix2d")] for name, found in rows.items()},
)
"""

TRAIN = """
import acmix_zoo.integrations.ultralytics
yolo = YOLO("yolo11n-small.yaml")
gflops = yolo.info()[3]
before = {k: v.clone() for k, v in yolo.model.state_dict().items()}
averaged = []
yolo.add_callback("on_train_batch_end", lambda trainer: averaged.append(layers(trainer.ema.ema)))
yolo.train(epochs=1, name="t", **OPTIONS)
after = yolo.model.state_dict()
moved = [k for k in before if "qkv.weight" in k and not torch.equal(before[k], after[k])]
report(gflops=gflops, layers=layers(yolo.model), averaged=averaged, moved=moved, best=str(yolo.trainer.best))
"""

# This and the following scripts do not import acmix_zoo.
USE = """
best = "runs/t/weights/best.pt"
yolo = YOLO(best)
found, stored = layers(yolo.model), str(next(torch.load(best, weights_only=False)["model"].parameters()).dtype)
metrics = yolo.val(name="v", **OPTIONS).results_dict
half_metrics = YOLO(best).val(name="h", quantize=16, **OPTIONS).results_dict
image = str(next(Path("data/images/val").iterdir()))
boxes = YOLO(best).predict(image, imgsz=96, device="cpu", verbose=False, conf=0.0)[0].boxes.shape
YOLO(best).save("saved.pt")

x = torch.rand(1, 3, 96, 96)
plain = YOLO(best).model.float().eval()
expected = output(plain, x)
fused = YOLO(best).model.float().eval().fuse(verbose=False)
half = output(YOLO(best).model.half().eval(), x.half())
report(
    layers=found, stored=stored, metrics=metrics, half_metrics=half_metrics, boxes=list(boxes),
    gflops=[plain.info()[3], fused.info()[3]], scale=float(expected.abs().max()),
    fused=float((output(fused, x) - expected).abs().max()), half=bool(half.isfinite().all()),
    saved=torch.equal(output(YOLO("saved.pt").model.eval(), x), expected),
)
"""

TRAIN_AGAIN = """
yolo = YOLO("{path}")
before = yolo.model.float().state_dict()
yolo.add_callback("on_pretrain_routine_end", lambda trainer: torch.save(trainer.model.state_dict(), "state.pt"))
yolo.train(epochs=1, name="again", **OPTIONS)
start = torch.load("state.pt")
same = [torch.equal(before[k], start[k]) for k in start if k in before and before[k].shape == start[k].shape]
report(layers=layers(yolo.model), carried_over=[sum(same), len(same), len(start)])
"""

EXPORT = """
import onnxruntime
best = "runs/t/weights/best.pt"
plain = YOLO(best).model.float().eval()
x, other = torch.rand(1, 3, 96, 96), torch.rand(2, 3, 64, 128)
def difference(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = [i.name for i in session.get_inputs()]
    out = torch.from_numpy(session.run(None, {name: x.numpy()})[0])
    expected = output(plain, x)
    return float((out - expected).abs().max() / expected.abs().max())
differences = {}
path = YOLO(best).export(format="onnx", imgsz=96, device="cpu", simplify=False)
differences["onnx"] = difference(path, x)
path = YOLO(best).export(format="onnx", imgsz=96, device="cpu", simplify=False, dynamic=True)
differences["onnx, dynamic"] = difference(path, x)
differences["onnx, dynamic, another size"] = difference(path, other)
path = YOLO(best).export(format="torchscript", imgsz=96, device="cpu")
out, expected = output(torch.jit.load(path), x), output(plain, x)
differences["torchscript"] = float((out - expected).abs().max() / expected.abs().max())
report(differences=differences)
"""

SWAP = """
from acmix_zoo.integrations.ultralytics import swap
yolo = YOLO("yolov8n.yaml")
swap(yolo, "model.6.*")
yolo.save("start.pt")
before = yolo.model.state_dict()
before = {k: v.clone() for k, v in before.items()}
yolo.add_callback("on_pretrain_routine_end", lambda trainer: torch.save(trainer.model.state_dict(), "state.pt"))
yolo.train(epochs=1, name="s", **OPTIONS)
start = torch.load("state.pt")
same_shape = [k for k in start if k in before and start[k].shape == before[k].shape]
differ = [k for k in same_shape if not torch.equal(start[k], before[k])]
metrics = yolo.val(name="sv", **OPTIONS).results_dict
report(layers=layers(yolo.model), metrics=metrics, differ=differ, keys=start.keys() == before.keys())
"""

EVERY_SWAP = """
from acmix_zoo.integrations.ultralytics import swap
results = {}
tasks = [f"yolo11n-{task}" for task in ("seg", "pose", "obb", "cls")]
for name in ("yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n", *tasks):
    torch.manual_seed(0)
    model = YOLO(f"{name}.yaml").model
    head = [type(m).__name__ for m in model.model[-1].modules()]
    swapped = swap(model)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1), module.running_var.uniform_(0.8, 1.2)
    x = torch.rand(1, 3, 64, 64)
    model.eval()
    gflops = model.info()[3]
    before = output(model, x)
    rebuilt = type(model)(model.yaml, verbose=False)
    model.fuse(verbose=False)
    after = output(model, x)
    difference = float((after - before).abs().max() / before.abs().max()) if torch.is_tensor(before) else 0.0
    results[name] = dict(
        replaced=list(swapped.replaced), gflops=gflops, fused=model.is_fused(), difference=difference,
        kept=list(swapped.skipped.values()), rebuilt=layers(rebuilt) == layers(model),
        head=head == [type(m).__name__ for m in YOLO(f"{name}.yaml").model.model[-1].modules()],
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


def write_model(folder: Path) -> None:
    for scale in "ns":  # Ultralytics takes the scale from the name of the file
        (folder / f"yolo11{scale}-small.yaml").write_text(json.dumps(MODEL))


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("parsed")
    write_model(folder)
    return run(PARSE, folder)


@pytest.mark.slow
class TestParser:
    """[in, out, stride, kernel_conv, kernel_att, heads] of each layer."""

    def test_widths_limits_repeats_and_heads_are_scaled(self, parsed: dict[str, Any]) -> None:
        assert parsed["found"]["n"] == [
            [64, 128, 2, 5, 7, 4], [64, 64, 1, 3, 7, 4], [64, 64, 1, 3, 7, 4], [64, 64, 2, 3, 5, 4]
        ]  # fmt: skip
        # The scale s halves widths, but allows 256 channels at most before that.
        assert [layer[1] for layer in parsed["found"]["s"]] == [128, 128, 128, 128]
        assert all(parsed["counted"])

    def test_a_swap_is_part_of_the_yaml(self, parsed: dict[str, Any]) -> None:
        assert parsed["swapped"] == ["model.1.conv", "model.4.m.0.cv1.conv", "model.4.m.0.cv2.conv"]
        assert parsed["again"] == parsed["after_swap"]
        assert [layer[4] for layer in parsed["again"]] == [3, 3, 3, 7, 7, 7, 5]
        assert parsed["starts"], "train() starts from the swapped network"

    @pytest.mark.slow
    def test_ready_models_have_acmix_in_the_neck(self, tmp_path: Path) -> None:
        ready = run(READY, tmp_path)
        nano = [[64, 64, 2, 3, 7, 4], [128, 128, 2, 3, 7, 4]]
        small = [[128, 128, 2, 3, 7, 4], [256, 256, 2, 3, 7, 4]]
        names = ("yolo11n", "yolov8n", "yolo12n", "yolo26n")
        assert ready["layers"] == {**dict.fromkeys(names, nano), "yolo11s": small}
        assert all(counts == [0, 2] for counts in ready["rows"].values())

    def test_errors(self, parsed: dict[str, Any]) -> None:
        beginnings = (
            "ValueError: row 5: ACmix2d has the arguments [512, 3, 2, 1]. Expected [channels, kernel_conv, stride]",
            "ValueError: row 5: ACmix2d has the arguments []. Expected",
            "ValueError: row 5: an ACmix2d with these arguments cannot be built: 128 output channels are not divisible",
            "ValueError: ACmix2d: kernel_conv",
            "TypeError: swap_conv3x3: ",
            "ValueError: swap: filter='model.13.*' matches no 3×3 convolution outside the head. Expected a pattern for",
            "ValueError: write_yaml: the neck of yolov3 has no Conv with kernel size 3 and stride 2",
            "FileNotFoundError: ",
        )
        for error, beginning in zip(parsed["errors"], beginnings, strict=True):
            assert str(error).startswith(beginning), error


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write six photographs of blood cells as an Ultralytics data set, and the yaml of the model."""
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is missing: set ACMIX_DATA to a folder with bccd/")
    folder = tmp_path_factory.mktemp("ultralytics")
    write_data(DATA, folder / "data", limits={"train": 4, "val": 2, "test": 1})
    write_model(folder)
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, Any]:
    return run(TRAIN, folder)


# fmt: off
LAYERS = [[64, 128, 2, 5, 7, 4], [64, 64, 1, 3, 7, 4], [64, 64, 1, 3, 7, 4], [64, 64, 2, 3, 5, 4]]
# fmt: on


@pytest.mark.slow
@pytest.mark.timeout(900)
class TestYaml:
    def test_trains(self, trained: dict[str, Any]) -> None:
        assert trained["layers"] == LAYERS
        assert trained["gflops"] > 0
        assert trained["averaged"] == [LAYERS] * 2  # two batches: the EMA keeps a copy of the layers
        assert len(trained["moved"]) == len(LAYERS)

    def test_checkpoint_works_in_a_new_process(self, trained: dict[str, Any], folder: Path) -> None:
        used = run(USE, folder)
        assert used["layers"] == LAYERS and used["stored"] == "torch.float16"
        assert {"metrics/mAP50(B)", "fitness"} <= used["metrics"].keys() == used["half_metrics"].keys()
        assert used["boxes"][1] == 6
        assert all(gflops > 0 for gflops in used["gflops"])
        assert used["fused"] < 1e-4 * used["scale"] and used["half"] and used["saved"]

    def test_checkpoint_is_fine_tuned_in_a_new_process(self, trained: dict[str, Any], folder: Path) -> None:
        """Reading the checkpoint imports the parser that knows the rows."""
        again = run(TRAIN_AGAIN.replace("{path}", trained["best"]), folder)
        assert again["layers"] == LAYERS
        same, compared, total = again["carried_over"]
        assert same == compared == total

    def test_exports_equal_torch(self, trained: dict[str, Any], folder: Path) -> None:
        differences = run(EXPORT, folder)["differences"]
        assert len(differences) == 4
        assert all(difference < 1e-4 for difference in differences.values()), differences


@pytest.mark.slow
@pytest.mark.timeout(900)
class TestSwap:
    def test_lasts_in_every_trainer(self, folder: Path) -> None:
        swapped = run(SWAP, folder)
        assert swapped["layers"] == [[64, 64, 1, 3, 7, 4]] * 4
        assert swapped["keys"], "the trainer built the same network"
        # Training has three classes and the yaml 80, so the last layers of the head start from new weights.
        assert all(key.startswith("model.22.cv3") for key in swapped["differ"])
        assert "fitness" in swapped["metrics"]
        for path in ("runs/s/weights/best.pt", "start.pt"):
            assert run(TRAIN_AGAIN.replace("{path}", path), folder)["layers"] == swapped["layers"]

    def test_of_every_kind_of_model(self, folder: Path) -> None:
        """The head is left alone, the model can be rebuilt and fused, and its GFLOPs are counted."""
        results = run(EVERY_SWAP, folder)["results"]
        for name, result in results.items():
            assert len(result["replaced"]) > 4 and "model.0.conv" not in result["replaced"], name
            assert result["gflops"] > 0 and result["fused"] and result["rebuilt"] and result["head"], name
            assert result["difference"] < 1e-4, name
        assert any("RepConv.fuse_convs" in reason for reason in results["yolov9t"]["kept"])
