"""`acmix-zoo plan`: its formulas by hand, what it counts, every recipe."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.utils.checkpoint as library
from torch import nn

from acmix_zoo import create_model
from acmix_zoo.analysis.activations import Activations, on_gpu, saved
from acmix_zoo.analysis.jobs import Job, read_job
from acmix_zoo.analysis.machines import GPUS, LINK_SHARE, Link, Machine
from acmix_zoo.analysis.plan import BUCKET, Training, all_reduce, compute, memory, step
from acmix_zoo.analysis.scaling_check import MODES, fit_link, network_checks, read_checks, training
from acmix_zoo.analysis.scaling_check import main as scaling_check
from acmix_zoo.cli import main
from acmix_zoo.ops import remembered

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.yaml") if path.parent.name != "hardware")
# 1 GFLOP/s, 1 kB/s in a node and 100 B/s between nodes, messages of 1 and 2 seconds.
SLOW = Machine("slow", 1e6, {"float32": 1e9, "bfloat16": 4e9}, Link(1e3, 1.0), Link(1e2, 2.0))
SMALL = Training(1000, 600, 10**6, Activations(50, 7), batch=10)


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(["plan", *arguments]) == code
    out, error = capsys.readouterr()
    return out if code == 0 else error


def counted(name: str, dtype: torch.dtype = torch.float32, checkpoints: bool = False) -> Activations:
    with torch.device("meta"):
        model = create_model(name)
    model.set_grad_checkpointing(checkpoints)
    return on_gpu(model, (3, 32, 32), dtype)


class TestFormulas:
    def test_all_reduce(self) -> None:
        assert all_reduce(800, 1, SLOW) == (0, 0)
        assert all_reduce(800, 2, SLOW) == (800, 0.8 + 2)  # half of it, there and back, in two messages
        assert all_reduce(800, 4, SLOW) == pytest.approx((1200, 1.2 + 6))
        # Four nodes of two: 800 within the node; of the half that a GPU sums, 2 · 3/4 between the nodes.
        assert all_reduce(800, 8, SLOW, node=2) == pytest.approx((800 + 600, 0.8 + 2 + 6.0 + 6 * 2))

    @pytest.mark.parametrize("node", [1, 4, 8])
    def test_two_rings_send_what_one_does(self, node: int) -> None:
        for gpus in (8, 16, 64, 1024):
            assert all_reduce(1e6, gpus, SLOW, node)[0] == pytest.approx(2 * (gpus - 1) / gpus * 1e6)

    def test_memory(self) -> None:
        one = memory(SMALL, 1)
        assert tuple(vars(one).values()) == (4000, 2400, 4800, 0, 0, 50 + 70) and one.total == 11320
        assert memory(replace(SMALL, ema=True), 1).ema == 4000
        assert memory(replace(SMALL, states=1), 1).optimiser == 2400
        assert memory(SMALL, 8) == replace(one, buffers=2400)
        shared = memory(replace(SMALL, strategy="fsdp", dtype="bfloat16", ema=True), 8)
        assert tuple(vars(shared).values()) == (500, 300, 600, 500, 2000, 120)

    def test_compute(self) -> None:
        assert compute(SMALL, SLOW) == pytest.approx(3 * 2 * 1e6 * 10 / (0.3 * 1e9))
        assert compute(replace(SMALL, dtype="bfloat16"), SLOW) == pytest.approx(60e6 / (0.1 * 4e9))
        assert compute(replace(SMALL, accumulate=3, passes=4), SLOW, utilisation=0.5) == pytest.approx(240e6 / 0.5e9)
        assert compute(replace(SMALL, accumulate=3), SLOW, rate=15) == 2

    def test_waiting(self) -> None:
        """DDP waits for the last bucket, and for what the backward pass, two thirds of the step, does not cover."""
        fast = replace(SLOW, inner=Link(BUCKET / 4, 0))  # a bucket takes 4 s on two GPUs
        many = replace(SMALL, trainable=10 * BUCKET // 4)  # ten buckets
        long, short = step(many, fast, 2, rate=0.1), step(many, fast, 2, rate=1)
        assert long.compute == 100 and long.exposed == pytest.approx(4)
        assert short.compute == 10 and short.exposed == pytest.approx(40 - 20 / 3)
        assert short.efficiency == pytest.approx(10 / (50 - 20 / 3)) and short.images == 20
        assert short.rate == pytest.approx(20 / short.seconds)
        # Accumulated: the last pass alone hides it.
        twice = step(replace(many, accumulate=2), fast, 2, rate=1)
        assert twice.compute == 20 and twice.exposed == pytest.approx(40 - 20 / 3) and twice.images == 40

    def test_waiting_fsdp(self) -> None:
        fast = replace(SLOW, inner=Link(BUCKET / 4, 0))
        one = replace(SMALL, params=BUCKET // 4, trainable=BUCKET // 4, strategy="fsdp")
        found = step(one, fast, 2, rate=1)  # 10 s; two gathers and a scatter of half of the bucket: 2 s each
        assert found.exposed == pytest.approx(4) and found.volume == pytest.approx(1.5 * BUCKET)
        ten = replace(one, params=10 * BUCKET // 4, trainable=10 * BUCKET // 4)
        assert step(ten, fast, 2, rate=1).exposed == pytest.approx((20 - 10 / 3) + (40 - 20 / 3))

    @pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
    def test_more_gpus_are_worse_used(self, strategy: str) -> None:
        job = replace(Job("pico", "acmix_resnet_pico"), strategy=strategy)
        steps = job.steps(GPUS["a100"], (1, 2, 4, 8, 16, 64, 256, 1024))
        of = steps[0].compute, job.training(1)
        assert steps[0].efficiency == 1 and steps[0].volume == 0
        for fewer, more in pairwise(steps):
            assert more.efficiency < fewer.efficiency and more.volume > fewer.volume and more.rate > fewer.rate
        sent = 8 * of[1].trainable if strategy == "ddp" else 3 * 2 * of[1].params
        assert 0.99 * sent < steps[-1].volume < sent


class TestActivations:
    def test_by_hand(self) -> None:
        """Autograd keeps the input, what ReLU gives (of which the next layer keeps the same storage), and the loss's
        log-probabilities and classes."""
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))
        assert saved(model, torch.zeros(4, 3, 2, 2)) == 4 * 4 * (12 + 5 + 3) + 4 * 8 + 4
        frozen = model.requires_grad_(False)
        frozen[3].requires_grad_(True)
        assert saved(frozen, torch.zeros(4, 3, 2, 2)) == 4 * 4 * (5 + 3) + 4 * 8 + 4

    def test_checkpointed(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.wide = nn.Sequential(nn.Linear(12, 100), nn.ReLU(), nn.Linear(100, 12))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                for _ in range(2):
                    x = library.checkpoint(self.wide, x, use_reentrant=False)
                return x

        x = torch.zeros(4, 12, requires_grad=True)
        once = library.checkpoint
        # Both inputs, what is made of one of them, log-probabilities, classes.
        assert saved(Twice(), x) == 4 * 4 * (12 + 12 + 100 + 12) + 4 * 8 + 4
        assert library.checkpoint is once

    @pytest.mark.parametrize("name", ["acmix_resnet_pico", "acmix_swin_pico", "acmix_san_pico", "acmix_pvt_pico"])
    def test_on_a_gpu_that_is_not_there(self, name: str, python_backend: None) -> None:
        """In float32 not far from what the CPU keeps where it keeps all; half numbers take less, checkpoints less."""
        before = dict(remembered._tensors)
        full, half = counted(name), counted(name, torch.bfloat16)
        assert 0.4 * full.image < half.image < 0.8 * full.image and half.fixed > full.fixed >= 0
        here = create_model(name).train()
        image = (saved(here, torch.zeros(4, 3, 32, 32)) - saved(here, torch.zeros(2, 3, 32, 32))) / 2
        assert 0.75 * image < full.image < 1.35 * image
        assert remembered._tensors.keys() >= before.keys()
        assert not torch.is_autocast_enabled("cuda")
        assert not any("cuda" in str(key) for key in remembered._tensors)

    def test_checkpoints_take_less(self) -> None:
        full, less = (counted("acmix_resnet_pico", checkpoints=on) for on in (False, True))
        assert 0.2 * full.image < less.image < 0.8 * full.image


class TestMachines:
    def test_peaks_are_those_of_lightning(self) -> None:
        """Where its table has the number without sparsity."""
        from lightning.fabric.utilities.throughput import _CUDA_FLOPS

        for name, theirs in (("v100", "v100 sxm"), ("a100", "a100"), ("h100", "h100 sxm")):
            for dtype, flops in GPUS[name].peak.items():
                assert flops == pytest.approx(_CUDA_FLOPS[theirs][getattr(torch, dtype)], rel=2e-3)

    def test_network(self) -> None:
        outer = GPUS["a100"].with_network(100, 8).outer
        assert outer.rate == pytest.approx(LINK_SHARE * 100e9 / 8 / 8)
        assert GPUS["a100"].with_network(8 * 200, 8).outer.rate == pytest.approx(GPUS["a100"].outer.rate)


class TestJobs:
    @pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
    def test_every_recipe(self, recipe: Path) -> None:
        job = read_job(recipe)
        text = recipe.read_text(encoding="utf-8")
        assert re.search(rf"^  model: {job.model}\b", text, re.MULTILINE)
        assert re.search(rf"^  batch_size: {job.batch}\b", text, re.MULTILINE)
        assert job.images == (None if recipe.parent.name == "finetune" else 1_281_167 if job.size == 224 else 54_000)
        if job.lr_batch:
            assert job.scaled_lr(2 * job.lr_batch) == 2 * job.lr
        for overlay in (ROOT / "recipes/hardware").glob("*.yaml"):
            laid = read_job(recipe, overlay)
            assert laid.strategy == ("fsdp" if overlay.stem == "fsdp" else "ddp")
            assert laid.precision == ("32-true" if overlay.stem == "cpu" else "bf16-mixed")

    def test_batch_is_the_recipes_until_there_are_too_many(self) -> None:
        job = replace(Job("pico", "acmix_resnet_pico"), batch=32, together=256)
        assert [(t.batch, t.accumulate) for t in map(job.training, (1, 2, 8, 32))] == [
            (32, 8), (32, 4), (32, 1), (32, 1)
        ]  # fmt: skip
        assert (job.training(64, at_most=512).batch, job.training(64, at_most=512).accumulate) == (8, 1)
        assert job.training(1, at_most=128).accumulate == 4

    def test_overlay_and_arguments(self, tmp_path: Path) -> None:
        recipe, overlay = tmp_path / "r.yaml", tmp_path / "o.yaml"
        recipe.write_text(
            "data: {image_size: 32, batch_size: 16}\n"
            "model: {model: acmix_resnet_pico, optimizer: sgd, momentum: 0.0, lr: 1e-1, lr_batch: 64, ema_decay: 0.9,\n"
            "  linear_probe: true, model_kwargs: {num_classes: 7}}\n"
            "trainer: {accumulate_grad_batches: 4, max_epochs: 3}\n"
        )
        overlay.write_text("trainer: {devices: 8, num_nodes: 2, accumulate_grad_batches: 1, precision: 16-mixed}\n")
        job = read_job(recipe)
        assert (job.together, job.precision, job.ema, job.epochs, job.lr) == (64, "32-true", True, 3, 0.1)
        assert read_job(recipe, overlay).together == 256 and read_job(recipe, overlay).precision == "16-mixed"
        t = job.training(1)
        assert (t.states, t.passes, t.accumulate) == (0, 1, 4) and t.trainable == 7 * (512 + 1)
        assert t.activations.image == 4 * (512 + 7) + 8  # what enters the classifier, log-probabilities, class
        assert read_job(recipe, batch=8, precision="bf16-mixed", strategy="fsdp").training(2).strategy == "fsdp"
        assert read_job("acmix_resnet_pico", overlay, batch=8).precision == "16-mixed"


class TestScalingCheck:
    def test_link_is_found_again(self) -> None:
        link = Link(2e9, 5e-5)
        spent = {size: [1e3 * (size / 2e9 + 2 * 5e-5)] * 3 for size in (4096, 2**20, 2**26)}
        found = fit_link(spent)
        assert (found.rate, found.latency) == (pytest.approx(link.rate), pytest.approx(link.latency))

    def test_of_networks(self) -> None:
        """Of a network that takes 10 ms alone and 11 beside another, on a CPU that reaches a tenth of 10 ms' peak."""
        flops = compute(training("acmix_resnet_pico"), Machine("", 0, {"float32": 1}, SLOW.inner, SLOW.outer), 1)
        spent = dict(zip(MODES, ([10.0], [19.0], [11.0], [15.0]), strict=True))
        rows = network_checks({"acmix_resnet_pico": spent}, Link(1e9, 1e-3), flops / 1e-3)
        of = {row.check: row for row in rows}
        assert [row.predicted for row in rows[:3]] == [20, pytest.approx(10), 10]
        bytes_, ms = 4 * training("acmix_resnet_pico").trainable, 2 + 4 * training("acmix_resnet_pico").trainable / 1e6
        assert bytes_ < BUCKET and of["DDP"].predicted == pytest.approx(11 + ms, rel=1e-3)
        assert of["DDP"].deviation == pytest.approx((11 + ms) / 15 - 1, rel=1e-2)
        assert of["one utilisation"].what == "acmix_resnet_pico: 10 % of the peak"

    @pytest.mark.slow
    def test_two_processes(self, tmp_path: Path) -> None:
        rows = scaling_check(tmp_path / "s.csv", ("acmix_resnet_pico",), rounds=2)
        _, read = read_checks(tmp_path / "s.csv")
        kinds = {"all-reduce", "doubled batch", "one utilisation", "two silent processes", "DDP", "memory"}
        assert read == rows and {row.check for row in rows} == {*kinds, "DDP, nothing hidden"}
        assert all(row.measured > 0 and row.predicted > 0 for row in rows)


class TestCommand:
    def test_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        recipe = str(ROOT / "recipes/fashion_mnist/acmix_resnet_pico.yaml")
        out = said(capsys, recipe, "--gpus", "1", "8", "1024", "--precision", "bf16-mixed").splitlines()
        assert out[0].startswith(f"{recipe}: acmix_resnet_pico, 65") and "10 % of 312 TFLOP/s, assumed" in out[1]
        cells = [re.split("  +", line) for line in out[2:6]]
        assert [row[:2] for row in cells] == [
            ["GPUs", "images a step"],
            ["1", "128"],
            ["8", "1,024"],
            ["1,024", "131,072"],
        ]
        assert all(len(row) == len(cells[0]) for row in cells)
        assert any("beyond the 8,192 published for sgd" in line for line in out)

    def test_measured_rate(self, capsys: pytest.CaptureFixture[str]) -> None:
        out = said(capsys, "acmix_resnet_pico", "--gpus", "1", "--images-per-second", "640", "--batch", "64")
        row = re.split("  +", out.splitlines()[3])
        assert row[4] == "100" and row[7] == "640" and "640 images/s, measured" in out

    def test_does_not_fit(self, capsys: pytest.CaptureFixture[str]) -> None:
        out = said(
            capsys, "acmix_resnet_pico", "--gpus", "1", "--batch", "200000", "--gpu", "v100", "--precision", "32-true"
        )
        batch = int(re.search(r"do not fit the 32 GB of V100 .*: try --batch (\d+)", out)[1])  # type: ignore[index]
        fits = said(
            capsys, "acmix_resnet_pico", "--gpus", "1", "--batch", str(batch), "--gpu", "v100", "--precision", "32-true"
        )
        assert "do not fit" not in fits and re.split("  +", fits.splitlines()[3])[3] == "32.0"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["nothing.yaml"], "plan: nothing.yaml does not exist; expected a recipe"),
            (["acmix_resnet5"], "unknown model 'acmix_resnet5'"),
            (["acmix_resnet_pico", "--gpu", "tpu"], "GPU 'tpu' is unknown; expected one of v100, a100, h100, h200"),
            (["acmix_resnet_pico", "--batch", "0"], "a batch of 0 images a device was given; expected at least 1"),
            (["acmix_resnet_pico", "--gpus", "0"], "0 GPUs were given; expected at least 1"),
            (
                ["acmix_resnet_pico", "--gpus", "12"],
                "12 GPUs were given in nodes of 8; expected up to 8, or a multiple",
            ),
            (["acmix_resnet_pico", "--gpus", "8", "--nodes-of", "0"], "8 GPUs in nodes of 0 were given"),
            (["acmix_resnet_pico", "--gpu", "v100"], "does not compute in bfloat16, but in float32, float16; choose"),
            (["acmix_resnet_pico", "--utilisation", "2"], "a utilisation of 2 was given; expected a share"),
            (["acmix_resnet_pico", "--images-per-second", "0"], "0 images a second were given; expected more than 0"),
            (["acmix_resnet_pico", "--network", "0"], "a network of 0 Gbit/s a node was given; expected more than 0"),
            (["acmix_resnet_pico", "--gpus", "8", "--global-batch", "4"], "4 images a step are too few for 8 GPUs"),
        ],
    )
    def test_errors(self, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        error = said(capsys, *arguments, code=1)
        assert message in error and error.count("\n") == 1

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "trainer: {devices: 8}",
                "expected a recipe, with a network as model.model; for an overlay: --overlay FILE",
            ),
            ("- 1", "expected a recipe with model.model, got list"),
            ("a: [", "not YAML"),
            ("model: {model: acmix_resnet_pico, optimizer: lamb}", "optimizer 'lamb': expected one of sgd, adamw"),
            ("{model: {model: acmix_resnet_pico}, trainer: {precision: 64-true}}", "precision '64-true': expected one"),
        ],
    )
    def test_bad_recipes(self, text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "r.yaml").write_text(text)
        assert message in said(capsys, str(tmp_path / "r.yaml"), code=1)

    @pytest.mark.slow
    def test_commands_of_the_page(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(ROOT)
        (block,) = re.findall(r"^```bash\n(.*?)^```$", Path("docs/scaling.md").read_text(), re.DOTALL | re.MULTILINE)
        for command in block.splitlines():
            words = shlex.split(command)
            assert words[:2] == ["acmix-zoo", "plan"] and "images/s" in said(capsys, *words[2:])

    def test_needs_no_lightning(self) -> None:
        code = "import sys, acmix_zoo.cli_plan; print('lightning' in sys.modules, 'datasets' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
        assert done.stdout.strip() == "False False"
