"""Training and evaluating on several processes gives the results of one process: `make test-distributed`."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.box_data import write_coco
from support.image_data import write_digits
from support.processes import MESH, PLAIN, PYTHON, Process, command, differences, fit, largest_difference, run, torchrun
from support.streams import write_shards
from support.tasks import DETECTION, SEGMENTATION, write_masked_images

from acmix_zoo.models.task_kinds import TASK_KINDS
from acmix_zoo.weights import check_folder

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]
Figure = Callable[[str, str], None]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of 20 steps on one process with a batch size of 16."""
    folder = tmp_path_factory.mktemp("single")
    run(command(fit(folder / "run")), folder / "log")
    return folder / "run"


def last(folder: Path) -> Path:
    """Return the last checkpoint of a run."""
    return folder / "checkpoints/last.ckpt"


def val_metrics(checkpoint: Path) -> dict[str, float]:
    """Return the validation metrics of the epoch in which a checkpoint was saved."""
    history = torch.load(checkpoint, weights_only=True)["callbacks"]["RunFolder"]["history"][-1]
    return {key: value for key, value in history.items() if key.startswith("val/")}


def test_a_repeated_run_gives_the_same_weights(single: Path, tmp_path: Path, figure: Figure) -> None:
    run(command(fit(tmp_path / "again")), tmp_path / "log")
    assert differences(last(single), last(tmp_path / "again")) == []
    figure("the same recipe and seed twice", "0 tensors differ")


def test_two_processes_train_like_one(single: Path, tmp_path: Path, figure: Figure) -> None:
    folder = tmp_path / "two"
    run(command(fit(folder, trainer__devices=2, trainer__strategy="ddp", data__batch_size=8)), tmp_path / "log")
    found = largest_difference(last(single), last(folder))
    assert found < 1e-5
    assert json.loads((folder / "weights/config.json").read_text())["acmix_zoo"]["environment"]["devices"] == 2
    figure("DDP on 2 processes against 1, 20 steps of SGD", f"weights differ by at most {found:.1e}")


def test_two_processes_train_like_one_with_adam(tmp_path: Path, figure: Figure) -> None:
    """The tolerance is larger, because Adam amplifies the rounding of gradients that are almost zero."""
    adam = {"model__optimizer": "adamw", "model__lr": 1e-3, "data__augment": "rand-m9-mstd0.5-inc1"}
    run(command(fit(tmp_path / "one", **adam)), tmp_path / "log")
    adam |= {"trainer__devices": 2, "trainer__strategy": "ddp", "data__batch_size": 8}
    run(command(fit(tmp_path / "two", **adam)), tmp_path / "log")
    found = largest_difference(last(tmp_path / "one"), last(tmp_path / "two"))
    assert found < 2e-4
    figure("the same with AdamW and RandAugment", f"weights differ by at most {found:.1e}")


@pytest.mark.gpu
def test_two_processes_with_synchronised_batch_norm_train_like_one(tmp_path: Path, figure: Figure) -> None:
    """With batch norms that see the images of all processes, this also holds for a network that has batch norms."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    norms = {"model__model": "acmix_resnet_pico", "model__model_kwargs": "{}", "trainer__accelerator": "gpu"}
    run(command(fit(tmp_path / "one", **norms, trainer__devices=1)), tmp_path / "log")
    two = {**norms, "trainer__devices": 2, "trainer__strategy": "ddp", "trainer__sync_batchnorm": "true"}
    run(command(fit(tmp_path / "two", **two, data__batch_size=8)), tmp_path / "log")
    found = largest_difference(last(tmp_path / "one"), last(tmp_path / "two"))
    assert found < 1e-3
    figure("SyncBatchNorm on 2 GPUs against 1", f"weights differ by at most {found:.1e}")


def test_accumulated_batches_equal_one_large_batch(single: Path, tmp_path: Path, figure: Figure) -> None:
    few = {"data__batch_size": 4, "trainer__accumulate_grad_batches": 4, "trainer__limit_train_batches": 40}
    run(command(fit(tmp_path / "run", **few)), tmp_path / "log")
    found = largest_difference(last(single), last(tmp_path / "run"))
    assert found < 1e-5
    figure("4 accumulated batches of 4 against 16", f"weights differ by at most {found:.1e}")


def test_gradient_checkpointing_changes_nothing(single: Path, tmp_path: Path, figure: Figure) -> None:
    run(command(fit(tmp_path / "run", model__grad_checkpointing="true")), tmp_path / "log")
    found = largest_difference(last(single), last(tmp_path / "run"))
    assert found < 1e-6
    figure("gradient checkpointing", f"weights differ by at most {found:.1e}")


def test_bf16_training_stays_close_to_float32(single: Path, tmp_path: Path, figure: Figure) -> None:
    run(command(fit(tmp_path / "run", trainer__precision="bf16-mixed")), tmp_path / "log")
    found, plain = (val_metrics(last(folder))["val/loss"] for folder in (tmp_path / "run", single))
    assert found == pytest.approx(plain, abs=0.05) and found != plain
    figure("bf16-mixed", f"validation loss {found:.6f} after 20 steps, float32 {plain:.6f}")


def test_a_compiled_network_trains_like_the_original(single: Path, tmp_path: Path, figure: Figure) -> None:
    run(command(fit(tmp_path / "run", model__compile="true")), tmp_path / "log")
    found = largest_difference(last(single), last(tmp_path / "run"))
    assert found < 1e-4
    figure("torch.compile", f"weights differ by at most {found:.1e}")


def test_throughput_is_reported(tmp_path: Path, figure: Figure) -> None:
    options = {"run__verbose": "true", "speed__loader_seconds": 1, "trainer__max_epochs": 1}
    printed = run(command(fit(tmp_path / "run", **options)), tmp_path / "log")
    line = next(line for line in printed.splitlines() if line.startswith("Training at "))
    assert "waiting for data" in line and "data loading alone reaches" in line and "MFU" in line
    figure("throughput report", line)


def test_a_damaged_image_gives_one_warning(tmp_path: Path, figure: Figure) -> None:
    """The check before the run does not find the damage. Two workers read the image in three epochs."""
    folder = write_digits(tmp_path / "digits", train=40, val=8)
    damaged = sorted(folder.glob("train/7/*.png"))[3]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged.write_bytes(content)
    changes = {"data__source": folder, "data__num_workers": 2, "trainer__limit_train_batches": None}
    printed = run(command(fit(tmp_path / "run", **changes, trainer__max_epochs=3)), tmp_path / "log")
    warnings = [line for line in printed.splitlines() if "skipped: image" in line]
    assert len(warnings) == 1 and str(damaged) in warnings[0]
    figure("one damaged image in 400, three epochs, two workers", "one warning with its path; the run succeeds")


@pytest.mark.parametrize(
    ("task", "processes"), [("classification", 2), ("classification", 3), ("segmentation", 2), ("detection", 2)]
)
def test_evaluation_gives_bit_identical_metrics(
    task: str, processes: int, single: Path, tmp_path: Path, figure: Figure
) -> None:
    """The number of validation images is not a multiple of processes × batch size."""
    base, batch_size, metrics = PLAIN, 7, {"val/loss", "val/top1", "val/top5"}
    if task == "segmentation":
        pytest.importorskip("segmentation_models_pytorch")
        base, batch_size = {**SEGMENTATION, "data.source": write_masked_images(tmp_path / "shapes", (12, 7, 2))}, 2
        single, metrics = tmp_path / "single", {"val/loss", "val/miou", "val/pixel_accuracy"}
        run(command(fit(single, base, trainer__max_epochs=1)), tmp_path / "single.log")
    if task == "detection":
        base, batch_size = {**DETECTION, "data.source": write_coco(tmp_path / "cells", train=64, val=7)}, 2
        single, metrics = tmp_path / "single", {"val/map", "val/map50", "val/map75", "val/map_small"}
        run(torchrun(fit(single, base, trainer__devices=2), 2), tmp_path / "single.log")
    best = single / "checkpoints/best.ckpt"
    evaluate = fit(tmp_path / "not_used", base, data__batch_size=batch_size, run__folder=single, ckpt_path=best)
    evaluate[0] = "validate"
    evaluate += ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path / 'csv'}"]
    run(command([*evaluate, "--trainer.logger.version=1"]), tmp_path / "one.log")
    distributed = [*evaluate, "--trainer.logger.version=2", f"--trainer.devices={processes}"]
    printed = run(torchrun(distributed, processes), tmp_path / "many.log")
    assert printed.count(f"val: {TASK_KINDS[task].main_label} ") == 1
    one, many = (logged_metrics(tmp_path / f"csv/lightning_logs/version_{version}/metrics.csv") for version in (1, 2))
    assert one == many and set(one) == metrics
    if task == "detection":  # trained on two processes, whose metrics were those of all images, each counted once
        assert {key: float(value) for key, value in one.items()} == pytest.approx(val_metrics(best), abs=1e-6)
        assert 0.05 < float(one["val/map"]) < 0.95
    name = "" if task == "classification" else f"{task}: "
    figure(f"{name}evaluation on {processes} processes against 1", f"identical metrics: {json.dumps(one)}")


def logged_metrics(path: Path) -> dict[str, str]:
    """Return the metrics that Lightning's logger wrote, without rounding."""
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    return {name: value for name, value in row.items() if name.startswith("val/")}


def test_a_streamed_run_on_two_processes_is_killed_and_resumed(tmp_path: Path, figure: Figure) -> None:
    """The resumed run equals an uninterrupted one, and one process computes the same validation metrics as two."""
    write_shards(tmp_path / "set", "webdataset", (60, 44, 56, 40, 40, 60))
    write_shards(tmp_path / "set", "webdataset", (14, 9, 8), split="validation")
    streaming = {
        "data__source": tmp_path / "set", "data__streaming": "true", "data__num_workers": 1, "data__batch_size": 8,
        "trainer__devices": 2, "trainer__strategy": "ddp", "trainer__max_epochs": 3, "run__save_every": 3,
    }  # fmt: skip
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    run(command(fit(uninterrupted, **streaming)), tmp_path / "log")
    process = Process(command(fit(killed, **streaming)), tmp_path / "killed.log")
    process.wait_for("epoch 1/3")
    process.kill()
    assert "Resuming from epoch" in run(command(fit(killed, **streaming)), tmp_path / "log")
    assert differences(last(uninterrupted), last(killed)) == []
    assert check_folder(killed / "weights") == []
    arguments = fit(uninterrupted, **{**streaming, "trainer__devices": 1}, ckpt_path=last(uninterrupted))
    arguments += ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path}", "--trainer.logger.version=1"]
    run(command(["validate", *arguments[1:]]), tmp_path / "log")
    on_one_process = logged_metrics(tmp_path / "lightning_logs/version_1/metrics.csv")
    assert {key: float(value) for key, value in on_one_process.items()} == pytest.approx(
        val_metrics(last(uninterrupted)), rel=1e-6
    )
    figure("tar shards streamed on 2 processes, killed, resumed", "0 tensors differ; same metrics as on 1 process")


def test_a_sharded_network_trains_like_the_original(single: Path, tmp_path: Path, figure: Figure) -> None:
    """The network is sharded by FSDP2 through Lightning. A sharded checkpoint can be exported."""
    folder = tmp_path / "mesh"
    arguments = fit(folder, **MESH, data__batch_size=8)
    run(torchrun(arguments, 2), tmp_path / "log")
    sharded = last(folder)
    assert sorted(path.name for path in sharded.iterdir()) == [".metadata", "__0_0.distcp", "__1_0.distcp", "meta.pt"]
    assert check_folder(folder / "weights") == []
    exported = {}
    for name, source in (("single", last(single)), ("sharded", sharded)):
        run(command(["export", str(source), str(tmp_path / name)]), tmp_path / "log")
        assert check_folder(tmp_path / name) == []
        exported[name] = {path.name for path in (tmp_path / name).rglob("*") if path.is_file()}
    assert exported["single"] == exported["sharded"]
    found = largest_weight_difference(tmp_path / "single", tmp_path / "sharded")
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
    original = acmix_zoo.create_model(name).eval()  # batch norms would see different images on each process
    sharded = copy.deepcopy(original)
    shard(sharded, mesh)
    optimizers = [torch.optim.SGD(network.parameters(), 0.1, momentum=0.9) for network in (original, sharded)]
    for _ in range(5):
        images, classes = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
        for network, optimizer, part in zip((original, sharded), optimizers, (slice(None), slice(rank, None, 2))):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images[part]), classes[part]).backward()
            optimizer.step()
    gathered = {key: p.full_tensor() for key, p in sharded.state_dict().items() if hasattr(p, "full_tensor")}
    largest = max(float((gathered[key] - p).abs().max()) for key, p in original.named_parameters())
    if rank == 0:
        print("found", name, largest, flush=True)
distributed.destroy_process_group()
"""


def test_every_family_can_be_sharded(tmp_path: Path, figure: Figure) -> None:
    """fully_shard on two processes, without Lightning, takes the same steps as one process with all images."""
    (tmp_path / "families.py").write_text(FAMILIES)
    torchrun_twice = [PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    printed = run([*torchrun_twice, str(tmp_path / "families.py")], tmp_path / "log")
    found = {line.split()[1]: float(line.split()[2]) for line in printed.splitlines() if line.startswith("found ")}
    assert len(found) == 4 and max(found.values()) < 1e-5
    figure(
        "fully_shard, five steps of a network of every family", f"weights differ by at most {max(found.values()):.1e}"
    )


def test_a_sharded_run_is_killed_and_resumed(tmp_path: Path, figure: Figure) -> None:
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    run(torchrun(fit(uninterrupted, **MESH, data__batch_size=8), 2), tmp_path / "log")
    arguments = fit(killed, **MESH, data__batch_size=8, run__save_every=4)
    process = Process(torchrun(arguments, 2), tmp_path / "killed.log")
    process.wait_for("epoch 1/2")
    process.kill()
    assert "Resuming from epoch" in run(torchrun(arguments, 2), tmp_path / "log")
    found = largest_weight_difference(uninterrupted / "weights", killed / "weights")
    assert found == 0
    figure("fully_shard on 2 processes, killed and resumed", f"weights differ by at most {found:.0e}")


def largest_weight_difference(a: Path, b: Path) -> float:
    from safetensors.torch import load_file

    one, two = (load_file(folder / "model.safetensors") for folder in (a, b))
    assert one.keys() == two.keys()
    return max(float((one[key] - two[key]).abs().max()) for key in one)
