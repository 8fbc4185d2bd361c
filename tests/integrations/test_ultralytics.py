"""ACmix in the model yamls of the real Ultralytics: rows, swaps, ready models and errors."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from support.ultralytics_process import run, write_model

if importlib.util.find_spec("ultralytics") is None:
    pytest.skip("ultralytics is not installed", allow_module_level=True)

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
swapped = swap(yolo, "model.[14].*", kernel_att=3)
again = type(network)(network.yaml, ch=3, nc=7, verbose=False)
old = YOLO("yolo11n-small.yaml")
old.load = lambda weights: old  # that of version 8.4.0 leaves ckpt empty, so that train() would drop the weights
swap(old, "model.1.*")
unswapped, whole = YOLO("yolo11n-small.yaml"), YOLO("yolo11n-small.yaml")
swap(whole)
edited = write_yaml("yolo11n")
assert write_yaml("yolo11n") == edited
text = "# mine" + chr(10) + edited.read_text()
edited.write_text(text)
report(
    found=found, counted=counted, swapped=list(swapped.replaced), again=layers(again), after_swap=layers(network),
    keys_match=again.state_dict().keys() == network.state_dict().keys(), starts=yolo.ckpt["model"] is network,
    old_starts=old.ckpt.get("model") is old.model,
    errors=[
        error_of(build_row, 512, 3, 2, 1), error_of(build_row), error_of(build_row, 512, 3, 2, {"heads": 3}),
        error_of(build_row, 512, 4), error_of(build_row, 512, {"depth": 3}), error_of(swap, yolo, "model.13.*"),
        error_of(write_yaml, "yolov3"), error_of(write_yaml, "yolov99n"),
        error_of(swap, unswapped, heads=7), error_of(swap, whole), error_of(write_yaml, "yolo11n"),
    ],
    unrecorded="acmix_swap" not in unswapped.model.yaml, edited=edited.read_text() == text,
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
        assert parsed["keys_match"] and parsed["starts"], "train() starts from the swapped network"
        assert parsed["old_starts"]

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
            "ValueError: row 5: ACmix2d cannot have these arguments: ACmix2d: kernel_conv",
            "ValueError: row 5: ACmix2d cannot have these arguments: swap_conv3x3: unknown argument depth=3. Expected",
            "ValueError: swap: filter='model.13.*' matches no 3×3 convolution outside the head. Expected a pattern for",
            "ValueError: write_yaml: the neck of yolov3 has no Conv with kernel size 3 and stride 2",
            "FileNotFoundError: ",
            "ValueError: swap: none of the convolutions that match can be replaced: ",
            "ValueError: swap: there is no 3×3 convolution outside the head and behind the first layer. Expected",
            "FileExistsError: write_yaml: yolo11n-acmix.yaml exists with different content. Expected",
        )
        assert parsed["unrecorded"] and parsed["edited"]
        for error, beginning in zip(parsed["errors"], beginnings, strict=True):
            assert str(error).startswith(beginning), error
