"""Several processes do what one does: `make test-distributed`."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.processes import MESH, PYTHON, Process, command, differences, fit, largest_difference, run, torchrun
from support.streams import write_shards

from acmix_zoo.data import export_folder
from acmix_zoo.weights import check_folder

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]
Figure = Callable[[str, str], None]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 steps of one process, batch 16."""
    folder = tmp_path_factory.mktemp("alone")
    run(command(fit(folder / "run")), folder / "log")
    return folder / "run"


def last(folder: Path) -> Path:
    return folder / "checkpoints/last.ckpt"


def scores(folder: Path) -> dict[str, float]:
    """Of the validation of the last epoch."""
    history = torch.load(last(folder), weights_only=True)["callbacks"]["RunFolder"]["history"][-1]
    return {key: value for key, value in history.items() if key.startswith("val/")}


def test_the_same_recipe_twice(alone: Path, tmp_path: Path, figure: Figure) -> None:
    run(command(fit(tmp_path / "again")), tmp_path / "log")
    assert differences(last(alone), last(tmp_path / "again")) == []
    figure("the same recipe and seed twice", "0 tensors differ")


def test_two_processes_take_the_steps_of_one(alone: Path, tmp_path: Path, figure: Figure) -> None:
    folder = tmp_path / "two"
    run(command(fit(folder, trainer__devices=2, trainer__strategy="ddp", data__batch_size=8)), tmp_path / "log")
    found = largest_difference(last(alone), last(folder))
    assert found < 1e-5
    assert json.loads((folder / "weights/config.json").read_text())["acmix_zoo"]["environment"]["devices"] == 2
    figure("DDP on 2 processes against 1, 20 steps of SGD", f"weights differ by at most {found:.1e}")


def test_two_processes_take_the_steps_of_one_with_adam(tmp_path: Path, figure: Figure) -> None:
    """Adam divides by the root of a square: where a gradient is nearly zero, rounding is not nearly nothing."""
    adam = {"model__optimizer": "adamw", "model__lr": 1e-3, "data__augment": "rand-m9-mstd0.5-inc1"}
    run(command(fit(tmp_path / "one", **adam)), tmp_path / "log")
    adam |= {"trainer__devices": 2, "trainer__strategy": "ddp", "data__batch_size": 8}
    run(command(fit(tmp_path / "two", **adam)), tmp_path / "log")
    found = largest_difference(last(tmp_path / "one"), last(tmp_path / "two"))
    assert found < 2e-4
    figure("the same with AdamW and RandAugment", f"weights differ by at most {found:.1e}")


@pytest.mark.gpu
def test_synchronised_batch_norm(tmp_path: Path, figure: Figure) -> None:
    """Batch norms that see the images of all processes make two of them one, also for a network that has them."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    norms = {"model__model": "acmix_resnet_pico", "model__model_kwargs": "{}", "trainer__accelerator": "gpu"}
    run(command(fit(tmp_path / "one", **norms, trainer__devices=1)), tmp_path / "log")
    two = {**norms, "trainer__devices": 2, "trainer__strategy": "ddp", "trainer__sync_batchnorm": "true"}
    run(command(fit(tmp_path / "two", **two, data__batch_size=8)), tmp_path / "log")
    found = largest_difference(last(tmp_path / "one"), last(tmp_path / "two"))
    assert found < 1e-3
    figure("SyncBatchNorm on 2 GPUs against 1", f"weights differ by at most {found:.1e}")


def test_accumulation_equals_the_large_batch(alone: Path, tmp_path: Path, figure: Figure) -> None:
    few = {"data__batch_size": 4, "trainer__accumulate_grad_batches": 4, "trainer__limit_train_batches": 40}
    run(command(fit(tmp_path / "run", **few)), tmp_path / "log")
    found = largest_difference(last(alone), last(tmp_path / "run"))
    assert found < 1e-5
    figure("4 accumulated batches of 4 against 16", f"weights differ by at most {found:.1e}")


def test_gradient_checkpointing_changes_nothing(alone: Path, tmp_path: Path, figure: Figure) -> None:
    run(command(fit(tmp_path / "run", model__grad_checkpointing="true")), tmp_path / "log")
    found = largest_difference(last(alone), last(tmp_path / "run"))
    assert found < 1e-6
    figure("gradient checkpointing", f"weights differ by at most {found:.1e}")


def test_bf16(alone: Path, tmp_path: Path, figure: Figure) -> None:
    run(command(fit(tmp_path / "run", trainer__precision="bf16-mixed")), tmp_path / "log")
    found, plain = scores(tmp_path / "run")["val/loss"], scores(alone)["val/loss"]
    assert found == pytest.approx(plain, abs=0.05) and found != plain
    figure("bf16-mixed", f"validation loss {found:.6f} after 20 steps, float32 {plain:.6f}")


def test_compile(alone: Path, tmp_path: Path, figure: Figure) -> None:
    run(command(fit(tmp_path / "run", model__compile="true")), tmp_path / "log")
    found = largest_difference(last(alone), last(tmp_path / "run"))
    assert found < 1e-4
    figure("torch.compile", f"weights differ by at most {found:.1e}")


def test_speed_is_said(tmp_path: Path, figure: Figure) -> None:
    said = run(command(fit(tmp_path / "run", speed__loader_seconds=1, trainer__max_epochs=1)), tmp_path / "log")
    line = next(line for line in said.splitlines() if line.startswith("Training at "))
    assert "waiting for data" in line and "data loading alone reaches" in line and "MFU" in line
    figure("throughput, measured apart", line)


def test_one_damaged_image(tmp_path: Path, figure: Figure) -> None:
    """Damaged in its middle, where a look at its ends before the run does not see it; read by two workers, thrice."""
    folder = export_folder("digits", tmp_path / "digits", per_class={"train": 40, "val": 8})
    victim = sorted(folder.glob("train/7/*.png"))[3]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0xFF
    victim.write_bytes(content)
    changes = {"data__source": folder, "data__num_workers": 2, "trainer__limit_train_batches": None}
    said = run(command(fit(tmp_path / "run", **changes, trainer__max_epochs=3)), tmp_path / "log")
    warned = [line for line in said.splitlines() if "skipped: image" in line]
    assert len(warned) == 1 and str(victim) in warned[0]
    figure("one damaged image in 400, three epochs, two workers", "one warning, with its path; the run ends well")


@pytest.mark.parametrize("processes", [2, 3])
def test_evaluation_is_exact_to_the_bit(processes: int, alone: Path, tmp_path: Path, figure: Figure) -> None:
    """180 validation images in batches of 16: twelve batches, which neither 2 nor 3 processes see equally many of."""
    again = fit(tmp_path / "unused", data__batch_size=7, run__folder=alone, ckpt_path=alone / "checkpoints/best.ckpt")
    again[0] = "validate"
    again += ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path / 'csv'}"]
    run(command([*again, "--trainer.logger.version=1"]), tmp_path / "one.log")
    shared = [*again, "--trainer.logger.version=2", f"--trainer.devices={processes}"]
    said = run(torchrun(shared, processes), tmp_path / "many.log")
    assert said.count("val: top-1 ") == 1
    one, many = (logged(tmp_path / f"csv/lightning_logs/version_{version}/metrics.csv") for version in (1, 2))
    assert one == many and set(one) == {"val/loss", "val/top1", "val/top5"}
    figure(f"evaluation on {processes} processes against 1", f"the same digits: {json.dumps(one)}")


def logged(path: Path) -> dict[str, str]:
    """Return the metrics that Lightning's logger wrote, without rounding."""
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    return {name: value for name, value in row.items() if name.startswith("val/")}


def test_a_stream_on_two_processes_from_start_to_weights(tmp_path: Path, figure: Figure) -> None:
    """Tar shards, streamed by the command line: killed and gone on with; its evaluation on two processes is one's."""
    write_shards(tmp_path / "set", "webdataset", (60, 44, 56, 40, 40, 60))
    write_shards(tmp_path / "set", "webdataset", (14, 9, 8), split="validation")
    streaming = {
        "data__source": tmp_path / "set", "data__streaming": "true", "data__num_workers": 1, "data__batch_size": 8,
        "trainer__devices": 2, "trainer__strategy": "ddp", "trainer__max_epochs": 3, "run__save_every": 3,
    }  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(command(fit(whole, **streaming)), tmp_path / "log")
    process = Process(command(fit(cut, **streaming)), tmp_path / "cut.log")
    process.wait_for("epoch 1/3")
    process.kill()
    assert "Resuming from epoch" in run(command(fit(cut, **streaming)), tmp_path / "log")
    assert differences(last(whole), last(cut)) == []
    assert check_folder(cut / "weights") == []
    words = fit(whole, **{**streaming, "trainer__devices": 1}, ckpt_path=last(whole))
    words += ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path}", "--trainer.logger.version=1"]
    run(command(["validate", *words[1:]]), tmp_path / "log")
    alone = logged(tmp_path / "lightning_logs/version_1/metrics.csv")
    assert {key: float(value) for key, value in alone.items()} == pytest.approx(scores(whole), rel=1e-6)
    figure("tar shards streamed on 2 processes, killed, resumed", "0 tensors differ; evaluation as on 1 process")


def test_a_network_spread_over_processes(alone: Path, tmp_path: Path, figure: Figure) -> None:
    """FSDP2 through Lightning: the steps are the same, and a sharded checkpoint can be resumed and exported."""
    folder = tmp_path / "mesh"
    words = fit(folder, **MESH, data__batch_size=8)
    run(torchrun(words, 2), tmp_path / "log")
    sharded = last(folder)
    assert sorted(path.name for path in sharded.iterdir()) == [".metadata", "__0_0.distcp", "__1_0.distcp", "meta.pt"]
    assert check_folder(folder / "weights") == []
    exported = {}
    for name, source in (("one", last(alone)), ("parts", sharded)):
        run(command(["export", str(source), str(tmp_path / name)]), tmp_path / "log")
        assert check_folder(tmp_path / name) == []
        exported[name] = {path.name for path in (tmp_path / name).rglob("*") if path.is_file()}
    assert exported["one"] == exported["parts"]
    found = largest_weight_difference(tmp_path / "one", tmp_path / "parts")
    assert found < 1e-5
    figure("fully_shard on 2 processes (ModelParallelStrategy)", f"exported weights differ by at most {found:.1e}")


FAMILIES = """
import copy, torch, acmix_zoo
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from acmix_zoo.tasks.sharded import shard

torch.set_num_threads(1)
distributed.init_process_group("gloo")
rank, mesh = distributed.get_rank(), init_device_mesh("cpu", (2,))
for name in ("acmix_resnet_pico", "acmix_swin_pico", "acmix_san_pico", "acmix_pvt_pico"):
    torch.manual_seed(0)
    alone = acmix_zoo.create_model(name).eval()  # batch norms of two processes would see other images
    spread = copy.deepcopy(alone)
    shard(spread, mesh)
    optimizers = [torch.optim.SGD(network.parameters(), 0.1, momentum=0.9) for network in (alone, spread)]
    for _ in range(5):
        images, classes = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
        for network, optimizer, part in zip((alone, spread), optimizers, (slice(None), slice(rank, None, 2))):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images[part]), classes[part]).backward()
            optimizer.step()
    whole = {key: p.full_tensor() for key, p in spread.state_dict().items() if hasattr(p, "full_tensor")}
    most = max(float((whole[key] - p).abs().max()) for key, p in alone.named_parameters())
    if rank == 0:
        print("found", name, most, flush=True)
distributed.destroy_process_group()
"""


def test_every_family_can_be_spread(tmp_path: Path, figure: Figure) -> None:
    """torch's fully_shard itself, on two processes: the steps of one process with all the images."""
    (tmp_path / "families.py").write_text(FAMILIES)
    words = [PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(tmp_path / "families.py")]
    said = run(words, tmp_path / "log")
    found = {line.split()[1]: float(line.split()[2]) for line in said.splitlines() if line.startswith("found ")}
    assert len(found) == 4 and max(found.values()) < 1e-5
    figure("fully_shard, five steps of every family's network", f"weights differ by at most {max(found.values()):.1e}")


def test_a_network_spread_over_processes_goes_on(tmp_path: Path, figure: Figure) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(torchrun(fit(whole, **MESH, data__batch_size=8), 2), tmp_path / "log")
    stopped = fit(cut, **MESH, data__batch_size=8, run__save_every=4)
    process = Process(torchrun(stopped, 2), tmp_path / "cut.log")
    process.wait_for("epoch 1/2")
    process.kill()
    assert "Resuming from epoch" in run(torchrun(stopped, 2), tmp_path / "log")
    found = largest_weight_difference(whole / "weights", cut / "weights")
    assert found == 0
    figure("fully_shard on 2 processes, killed and resumed", f"weights differ by at most {found:.0e}")


def largest_weight_difference(a: Path, b: Path) -> float:
    from safetensors.torch import load_file

    one, two = (load_file(folder / "model.safetensors") for folder in (a, b))
    assert one.keys() == two.keys()
    return max(float((one[key] - two[key]).abs().max()) for key in one)
