"""YOLO models with ACmix in the real Ultralytics: training, validation, checkpoints, fusing and export."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from support.ultralytics_process import DATA, run, write_model

from tools.yolo_study import write_data

if importlib.util.find_spec("ultralytics") is None:
    pytest.skip("ultralytics is not installed", allow_module_level=True)

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
