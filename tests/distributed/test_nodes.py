"""Failing machines, signals to one of several processes, SLURM, and full disks: `make test-distributed`."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.processes import (
    MESH,
    Node,
    Process,
    can_make_networks,
    command,
    differences,
    fill,
    fit,
    run,
    small_disk,
    torchrun,
    two_nodes,
)
from support.training import NanInSecondProcess, callback_option

from acmix_zoo.training.checkpoints import is_checkpoint
from acmix_zoo.weights import check_folder

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]
Figure = Callable[[str, str], None]
TWO_NODES = {
    "trainer__strategy": "ddp", "trainer__devices": 1, "trainer__num_nodes": 2, "data__batch_size": 8,
    "model__ema_decay": 0.9, "run__save_every": 2, "trainer__max_epochs": 4, "trainer__limit_train_batches": 15,
}  # fmt: skip


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Node]]:
    """Two machines, simulated by network namespaces."""
    if not can_make_networks():
        pytest.skip("network namespaces need root and iproute2")
    with two_nodes() as created:
        yield created


def start_agents(nodes: list[Node], folder: Path, on: tuple[int, ...] = (0, 1), restarts: int = 3) -> list[Process]:
    """Start a torchrun agent on each node, for the run in `folder`."""
    host = f"--rdzv-endpoint={nodes[0].address}:29517"
    options = ("--nnodes=2", f"--max-restarts={restarts}", "--rdzv-backend=c10d", host)
    started = []
    for i in on:
        # Namespaces share the host name, from which an agent would recognise that it is the host.
        rendezvous = (f"--rdzv-conf=is_host={1 - i}", f"--local-addr={nodes[i].address}", f"--rdzv-id={folder.name}")
        arguments = torchrun(fit(folder, **TWO_NODES), 1, *options, *rendezvous, "--monitor-interval=0.5")
        log = folder.parent / f"{folder.name}-{i}-{time.time_ns()}.log"
        # By default, torch 2.14 announces the address of the shared store in the first round only, so that no agent
        # could replace a lost one. With this variable every round announces it.
        environment = {"GLOO_SOCKET_IFNAME": nodes[i].interface, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        started.append(Process([*nodes[i].prefix, *arguments], log, environment))
    return started


@pytest.fixture(scope="module")
def uninterrupted(nodes: list[Node], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run on both machines that nothing interrupted."""
    folder = tmp_path_factory.mktemp("nodes") / "uninterrupted"
    for agent in start_agents(nodes, folder):
        agent.end()
    return folder


def test_a_run_continues_when_a_failed_node_returns(
    nodes: list[Node], uninterrupted: Path, tmp_path: Path, figure: Figure
) -> None:
    """The node is killed within an epoch. torchrun restarts both nodes from the last checkpoint."""
    folder = tmp_path / "failed"
    first, second = start_agents(nodes, folder)
    first.wait_for("epoch 1/4")
    nodes[1].kill()
    second.popen.wait()
    assert is_checkpoint(folder / "checkpoints/last.ckpt")
    # torchrun notices a lost agent after 15 s. Before that, its replacement would count as a third agent.
    time.sleep(20)
    (replacement,) = start_agents(nodes, folder, on=(1,))
    printed = first.end()
    replacement.end()
    assert "Resuming from epoch" in printed
    assert differences(uninterrupted / "checkpoints/last.ckpt", folder / "checkpoints/last.ckpt") == []
    figure("one of two nodes killed, started again (torchrun, two network namespaces)", "0 tensors differ at the end")


def test_a_run_stops_when_a_node_is_lost(
    nodes: list[Node], uninterrupted: Path, tmp_path: Path, figure: Figure
) -> None:
    """Without restarts, the job fails and keeps its checkpoint. Starting it again resumes the run."""
    folder = tmp_path / "stopped"
    first, second = start_agents(nodes, folder, restarts=0)
    first.wait_for("epoch 1/4")
    nodes[1].kill()
    start = time.monotonic()
    second.popen.wait()
    assert first.popen.wait(120) != 0
    seconds = time.monotonic() - start
    step = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert step >= 15
    for agent in start_agents(nodes, folder, restarts=0):
        agent.end()
    assert differences(uninterrupted / "checkpoints/last.ckpt", folder / "checkpoints/last.ckpt") == []
    figure(
        "one of two nodes killed for good",
        f"the other stops in {seconds:.0f} s, the checkpoint of step {step} is intact; resumed: 0 tensors differ",
    )


def test_processes_survive_a_killed_torchrun(tmp_path: Path, figure: Figure) -> None:
    """They keep training. A second start is refused, so that no two runs write the same folder."""
    folder = tmp_path / "run"
    arguments = torchrun(fit(folder, **{**TWO_PROCESSES, "trainer__max_epochs": 16}), 2)
    first = Process(arguments, tmp_path / "first.log")
    first.wait_for("images per step")
    os.kill(first.popen.pid, signal.SIGKILL)
    first.popen.wait()
    printed = run([*arguments, "--trainer.max_epochs=17"], tmp_path / "second.log", code=1)
    assert "max_epochs: 16\n" in (folder / "config.yaml").read_text()  # not that of the second command
    assert f"acmix-zoo: error: another run is writing to {folder} (process " in printed
    until = time.monotonic() + 120
    while "Saved best weights" not in first.output:
        assert time.monotonic() < until, first.output
        time.sleep(0.5)
    assert check_folder(folder / "weights") == []
    figure("torchrun itself killed", "its processes finish the run; until then, a second start fails")


# ---- signals


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an uninterrupted run on two processes."""
    folder = tmp_path_factory.mktemp("two_processes")
    run(command(fit(folder / "run", **TWO_PROCESSES)), folder / "log")
    return folder / "run"


TWO_PROCESSES = {**TWO_NODES, "trainer__devices": 2, "trainer__num_nodes": 1, "run__save_every": None}


def test_sigterm_to_one_of_two_processes_stops_both(two_processes: Path, tmp_path: Path, figure: Figure) -> None:
    folder = tmp_path / "run"
    process = Process(command(fit(folder, **TWO_PROCESSES)), tmp_path / "log")
    process.wait_for("epoch 1/4")
    os.kill(process.popen.pid, signal.SIGTERM)  # but not to its children
    process.end(128 + signal.SIGTERM)
    assert "SIGTERM: finishing the step" in process.output
    step = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert step >= 15
    run(command(fit(folder, **TWO_PROCESSES)), tmp_path / "again.log")
    assert differences(two_processes / "checkpoints/last.ckpt", folder / "checkpoints/last.ckpt") == []
    figure("SIGTERM to one process of two", f"both saved step {step} and stopped; resumed: 0 tensors differ")


SRUN = """#!{python}
# Does what srun does on one node: start one process per task, and set its rank in the environment.
import os, subprocess, sys
arguments = sys.argv[1:]
while arguments[0].startswith("--"):
    arguments.pop(0)
ranks = [{{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}} for i in range(int(os.environ["SLURM_NTASKS"]))]
tasks = [subprocess.Popen(arguments, env={{**os.environ, **rank}}) for rank in ranks]
open(os.environ["FAKE_SLURM"] + "/tasks", "w").write(" ".join(str(p.pid) for p in tasks))
sys.exit(max(abs(p.wait()) for p in tasks))
"""
SCONTROL = """#!/bin/sh
echo "$@" >> "$FAKE_SLURM/scontrol"
"""


def test_slurm_requeues_and_resumes(two_processes: Path, tmp_path: Path, figure: Figure) -> None:
    """Scripts replace srun and scontrol. The warning signal is sent to every task, as SLURM does for job steps."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name, text in (("srun", SRUN.format(python=sys.executable)), ("scontrol", SCONTROL)):
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(0o755)
    environment = {
        "PATH": f"{bin_}:{os.environ['PATH']}", "FAKE_SLURM": str(tmp_path), "SLURM_JOB_ID": "4711",
        "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0",
        "SLURM_JOB_NAME": "acmix", "SLURM_NODELIST": "127.0.0.1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29519",
    }  # fmt: skip
    folder = tmp_path / "run"
    arguments = ["srun", "--kill-on-bad-exit=0", *command(fit(folder, **TWO_PROCESSES))]
    first = Process(arguments, tmp_path / "first.log", environment)
    first.wait_for("epoch 1/4")
    for pid in (tmp_path / "tasks").read_text().split():
        os.kill(int(pid), signal.SIGUSR1)
    first.end(128 + signal.SIGUSR1)
    assert (tmp_path / "scontrol").read_text().split() == ["requeue", "4711"]  # requeued once, by one task
    assert "Requeued SLURM job 4711" in first.output
    second = Process(arguments, tmp_path / "second.log", environment)  # the requeued job
    second.end()
    assert "Resuming from epoch" in second.output
    assert differences(two_processes / "checkpoints/last.ckpt", folder / "checkpoints/last.ckpt") == []
    figure("SLURM's SIGUSR1 (simulated srun and scontrol)", "saved, requeued once, resumed: 0 tensors differ")


# ---- errors in one of two processes


def test_a_loss_of_nan_in_one_process_stops_both(two_processes: Path, tmp_path: Path, figure: Figure) -> None:
    """They stop before the step, and the process with that loss saves its batch. The same command resumes the run."""
    folder = tmp_path / "run"
    settings = {**TWO_PROCESSES, "run__save_every": 6}
    arguments = command(fit(folder, **settings, trainer__callbacks=callback_option(NanInSecondProcess)))
    printed = run(arguments, tmp_path / "log", {"PYTHONPATH": str(Path(__file__).parents[1])}, code=1)
    last = folder / "checkpoints/last.ckpt"
    errors = [line for line in printed.splitlines() if line.startswith("acmix-zoo: error: the loss is")]
    assert any(f"nan at epoch 2, step 20; the batch is in {folder}" in line for line in errors)
    assert all("This step did not update the weights" in line for line in errors)
    assert all(f"The last state is in {last}" in line for line in errors)
    (kept,) = folder.glob("not_finite_*")
    assert kept.name == "not_finite_step20_rank1.pt"
    batch = torch.load(kept, weights_only=True)
    assert [bool(image.isnan().all()) for image in batch["images"]] == [False] * 3 + [True] + [False] * 4
    assert len(batch["names"]) == 8
    step = torch.load(last, weights_only=True)["global_step"]
    run(command(fit(folder, **settings)), tmp_path / "again.log")
    assert differences(two_processes / "checkpoints/last.ckpt", last) == []
    figure(
        "a loss of NaN in one process of two, at step 20",
        f"both stop, the batch is saved, step {step} is kept; resumed without the NaN: 0 tensors differ",
    )


# ---- full disks


# "logger": None keeps the default logger, TensorBoard, whose log also has to survive a full disk.
FULL_DISK = {"trainer__max_epochs": 3, "trainer__logger": None, "trainer__log_every_n_steps": 1}


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, figure: Figure) -> None:
    """The run reports that the disk is full, keeps its last checkpoint, and resumes once there is space."""
    options = {**FULL_DISK, "model__ema_decay": 0.9}
    with small_disk(tmp_path / "small", 40) as disk:
        run(command(fit(tmp_path / "uninterrupted", **options)), tmp_path / "uninterrupted.log")
        process = Process(command(fit(disk / "run", **options)), tmp_path / "log")
        process.wait_for("epoch 1/3")
        fill(disk / "filler")
        printed = process.end(1)
        assert "could not save" in printed and "Free some disk space" in printed
        assert "run the same command again to resume" in printed
        assert "The TensorBoard log ends here" in printed and "epoch 3/3" in printed
        last = disk / "run/checkpoints/last.ckpt"
        step = torch.load(last, weights_only=True)["global_step"]
        (disk / "filler").unlink()
        run(command(fit(disk / "run", **options)), tmp_path / "again.log")
        assert differences(tmp_path / "uninterrupted/checkpoints/last.ckpt", last) == []
        figure(
            "a full disk (tmpfs of 40 MB)",
            f"error reported, step {step} kept; resumed with free space: 0 tensors differ",
        )


def test_a_full_disk_keeps_the_last_sharded_checkpoint(tmp_path: Path, figure: Figure) -> None:
    """Every process writes a part of the checkpoint, and all of them notice if one could not be written."""
    options = {**FULL_DISK, **MESH, "data__batch_size": 8, "trainer__max_epochs": 4, "trainer__logger": "false"}
    with small_disk(tmp_path / "small", 40) as disk:
        run(torchrun(fit(tmp_path / "uninterrupted", **options), 2), tmp_path / "uninterrupted.log")
        process = Process(torchrun(fit(disk / "run", **options), 2), tmp_path / "log")
        process.wait_for("epoch 1/4")
        last = disk / "run/checkpoints/last.ckpt"
        fill(disk / "filler")
        parts = [file for file in last.iterdir() if file.name != "meta.pt"]
        pages = sum(-(-file.stat().st_size // 4096) for file in parts)
        os.truncate(disk / "filler", (disk / "filler").stat().st_size - 4096 * pages)  # space for these files only
        process.wait_for("epoch 2/4")
        assert "could not save" in process.output and "inline_container" in process.output
        fill(disk / "filler")
        printed = process.end(1)
        assert printed.count("could not save") == 3 and "epoch 4/4" in printed
        assert "run the same command again to resume" in printed
        assert is_checkpoint(last)
        (disk / "filler").unlink()
        assert "Resuming from epoch" in run(torchrun(fit(disk / "run", **options), 2), tmp_path / "again.log")
        one, two = ((f / "weights/model.safetensors").read_bytes() for f in (tmp_path / "uninterrupted", disk / "run"))
        assert one == two
        figure("a full disk, FSDP2 on 2 processes", "error reported; resumed with free space: bit-identical weights")
