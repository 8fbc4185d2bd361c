"""The tables and errors of `acmix-zoo plan`."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from acmix_zoo.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
PICO = "acmix_resnet_pico"


def run_plan(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    """Return the output of the command, or its errors if it has to fail."""
    assert main(["plan", *arguments]) == code
    out, error = capsys.readouterr()
    return out if code == 0 else error


class TestOutput:
    def test_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        recipe = str(ROOT / "recipes/fashion_mnist/acmix_resnet_pico.yaml")
        out = run_plan(capsys, recipe, "--gpus", "1", "8", "1024", "--precision", "bf16-mixed").splitlines()
        assert out[0].startswith(f"{recipe}: acmix_resnet_pico, 65") and "10 % of 312 TFLOP/s (assumed)" in out[1]
        cells = [re.split("  +", line) for line in out[2:6]]
        assert [row[:2] for row in cells] == [
            ["GPUs", "images per step"],
            ["1", "128"],
            ["8", "1,024"],
            ["1,024", "131,072"],
        ]
        assert all(len(row) == len(cells[0]) for row in cells)
        assert any(line.startswith("Warning: with 1,024 GPUs, a step has 131,072 images.") for line in out)
        assert any("The largest published batch for sgd is 8,192" in line for line in out)

    def test_measured_throughput(self, capsys: pytest.CaptureFixture[str]) -> None:
        out = run_plan(capsys, PICO, "--gpus", "1", "--images-per-second", "640", "--batch", "64")
        row = re.split("  +", out.splitlines()[3])
        assert row[4] == "100" and row[7] == "640" and "640 images/s per GPU (measured)" in out

    def test_suggested_batch_fits(self, capsys: pytest.CaptureFixture[str]) -> None:
        options = ("--gpus", "1", "--gpu", "v100", "--precision", "32-true", "--batch")
        out = run_plan(capsys, PICO, *options, "200000")
        batch = int(re.search(r"do not fit into the 32 GB of V100 .*\. Use --batch (\d+)", out)[1])  # type: ignore[index]
        fits = run_plan(capsys, PICO, *options, str(batch))
        assert "do not fit" not in fits and re.split("  +", fits.splitlines()[3])[3] == "32.0"


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["nothing.yaml"], "nothing.yaml does not exist. Expected the name of a recipe"),
            (["imagenet1k/acmix_swin_x"], "The closest names are imagenet1k/acmix_swin_"),
            (["acmix_resnet5"], "unknown model 'acmix_resnet5'"),
            ([PICO, "--gpu", "tpu"], "unknown GPU 'tpu'. Expected one of v100, a100, h100, h200"),
            ([PICO, "--batch", "0"], "a batch of 0 images per device is impossible. Use at least 1"),
            ([PICO, "--gpus", "0"], "0 GPUs are impossible. Use at least 1"),
            ([PICO, "--gpus", "12"], "12 GPUs do not fill nodes of 8. Use at most 8, or a multiple of it"),
            ([PICO, "--gpus", "8", "--gpus-per-node", "0"], "8 GPUs in nodes of 0 are impossible. Use at least 1"),
            ([PICO, "--gpu", "v100"], "does not compute in bfloat16. Expected float32 or float16. Choose a different"),
            ([PICO, "--utilisation", "2"], "a utilisation of 2 is impossible. Use a fraction of peak throughput"),
            (
                [PICO, "--images-per-second", "0"],
                "a throughput of 0 images/s is impossible. Use a finite rate above 0",
            ),
            ([PICO, "--gpus-per-node", "0", "--network", "100"], "nodes of 0 GPUs are impossible. Use at least 1"),
            (
                [PICO, "--images-per-second", "nan"],
                "a throughput of nan images/s is impossible. Use a finite rate above 0",
            ),
            ([PICO, "--network", "nan"], "a network of nan Gbit/s per node is impossible. Use a rate above 0"),
            ([PICO, "--network", "0"], "a network of 0 Gbit/s per node is impossible. Use a rate above 0"),
            ([PICO, "--gpus", "8", "--global-batch", "4"], "4 images per step are too few for 8 GPUs. Use at least"),
        ],
    )
    def test_impossible_numbers(self, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        error = run_plan(capsys, *arguments, code=1)
        assert message in error and error.count("\n") == 1

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("trainer: {devices: 8}", "has no model.model, so it is not a recipe. Expected a recipe"),
            ("- 1", "holds a list instead of settings. Expected a recipe"),
            ("a: [", "is not YAML"),
            ("model: {model: acmix_resnet_pico, optimizer: lamb}", "unknown optimizer 'lamb'. Expected one of sgd"),
            ("{model: {model: acmix_resnet_pico}, trainer: {precision: 64-true}}", "unknown precision '64-true'"),
        ],
    )
    def test_bad_recipes(self, text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "r.yaml").write_text(text)
        error = run_plan(capsys, str(tmp_path / "r.yaml"), code=1)
        assert message in error and error.count("\n") == 1

    def test_unknown_option(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["plan", PICO, "--precisoin", "32-true"])
        assert "unknown option --precisoin; did you mean --precision?" in capsys.readouterr().err


@pytest.mark.slow
def test_commands_of_the_page(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (block,) = re.findall(r"^```bash\n(.*?)^```$", Path("docs/scaling.md").read_text(), re.DOTALL | re.MULTILINE)
    for command in block.splitlines():
        words = shlex.split(command)
        assert words[:2] == ["acmix-zoo", "plan"] and "images/s" in run_plan(capsys, *words[2:])


@pytest.mark.slow
def test_needs_no_lightning() -> None:
    code = "import sys, acmix_zoo.cli.plan; print('lightning' in sys.modules, 'datasets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False False"
