"""Two machines, one of which fails; signals to one process of several; SLURM: `make test-distributed`."""

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
TWO = {
    "trainer__strategy": "ddp", "trainer__devices": 1, "trainer__num_nodes": 2, "data__batch_size": 8,
    "model__ema_decay": 0.9, "run__save_every": 2, "trainer__max_epochs": 4, "trainer__limit_train_batches": 15,
}  # fmt: skip


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Node]]:
    if not can_make_networks():
        pytest.skip("network namespaces need root and iproute2")
    with two_nodes() as made:
        yield made


def agents(nodes: list[Node], folder: Path, which: tuple[int, ...] = (0, 1), restarts: int = 3) -> list[Process]:
    """A torchrun agent on each node, for the run in `folder`."""
    host = f"--rdzv-endpoint={nodes[0].address}:29517"
    options = ("--nnodes=2", f"--max-restarts={restarts}", "--rdzv-backend=c10d", host)
    started = []
    for i in which:
        # a namespace has no name of its own, by which an agent would know that it is the host
        own = (f"--rdzv-conf=is_host={1 - i}", f"--local-addr={nodes[i].address}", f"--rdzv-id={folder.name}")
        words = torchrun(fit(folder, **TWO), 1, *options, *own, "--monitor-interval=0.5")
        log = folder.parent / f"{folder.name}-{i}-{time.time_ns()}.log"
        # torch 2.14's agents share a store whose address is announced in the first round only, so nobody could come
        # in place of a lost one; this has each round announce it
        settings = {"GLOO_SOCKET_IFNAME": nodes[i].interface, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        started.append(Process([*nodes[i].prefix, *words], log, settings))
    return started


@pytest.fixture(scope="module")
def undisturbed(nodes: list[Node], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nodes") / "whole"
    for agent in agents(nodes, folder):
        agent.end()
    return folder


def test_a_node_fails_and_comes_back(nodes: list[Node], undisturbed: Path, tmp_path: Path, figure: Figure) -> None:
    """Killed, as by a power cut, in the middle of an epoch; torchrun starts both again from the last checkpoint."""
    folder = tmp_path / "failed"
    first, second = agents(nodes, folder)
    first.wait_for("epoch 1/4")
    nodes[1].kill()
    second.popen.wait()
    assert is_checkpoint(folder / "checkpoints/last.ckpt")
    # torchrun takes a silent agent for a living one for 15 s; another one in its place, earlier, is counted beside it
    time.sleep(20)
    (again,) = agents(nodes, folder, which=(1,))
    said = first.end()
    again.end()
    assert "Resuming from epoch" in said
    assert differences(undisturbed / "checkpoints/last.ckpt", folder / "checkpoints/last.ckpt") == []
    figure("one of two nodes killed, started again (torchrun, two network namespaces)", "0 tensors differ at the end")


def test_a_node_fails_for_good(nodes: list[Node], undisturbed: Path, tmp_path: Path, figure: Figure) -> None:
    """Without restarts, the job stops with an error and loses nothing. Starting it again resumes."""
    folder = tmp_path / "stopped"
    first, second = agents(nodes, folder, restarts=0)
    first.wait_for("epoch 1/4")
    nodes[1].kill()
    start = time.monotonic()
    second.popen.wait()
    assert first.popen.wait(120) != 0
    seconds = time.monotonic() - start
    step = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert step >= 15
    for agent in agents(nodes, folder, restarts=0):
        agent.end()
    assert differences(undisturbed / "checkpoints/last.ckpt", folder / "checkpoints/last.ckpt") == []
    figure(
        "one of two nodes killed for good",
        f"the other stops in {seconds:.0f} s, checkpoint of step {step} whole; started again: 0 tensors differ",
    )


def test_torchrun_itself_is_killed(tmp_path: Path, figure: Figure) -> None:
    """Its processes survive it and keep training. A second start is refused, so nothing is written twice."""
    folder = tmp_path / "run"
    words = torchrun(fit(folder, **{**PAIR, "trainer__max_epochs": 16}), 2)
    first = Process(words, tmp_path / "first.log")
    first.wait_for("images per step")
    os.kill(first.popen.pid, signal.SIGKILL)
    first.popen.wait()
    said = run([*words, "--model.lr=0.1"], tmp_path / "second.log", code=1)
    assert "lr: 0.05\n" in (folder / "config.yaml").read_text()  # not the second one's
    assert f"acmix-zoo: error: {folder} is being written by another run (process " in said
    until = time.monotonic() + 120
    while "Saved best weights" not in first.said:
        assert time.monotonic() < until, first.said
        time.sleep(0.5)
    assert check_folder(folder / "weights") == []
    figure("torchrun itself killed", "its processes go on to the end; a second start meanwhile is refused")


# ---- signals


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of two processes."""
    folder = tmp_path_factory.mktemp("pair")
    run(command(fit(folder / "run", **PAIR)), folder / "log")
    return folder / "run"


PAIR = {**TWO, "trainer__devices": 2, "trainer__num_nodes": 1, "run__save_every": None}


def test_sigterm_to_one_process_of_two(pair: Path, tmp_path: Path, figure: Figure) -> None:
    folder = tmp_path / "run"
    process = Process(command(fit(folder, **PAIR)), tmp_path / "log")
    process.wait_for("epoch 1/4")
    time.sleep(0.3)
    os.kill(process.popen.pid, signal.SIGTERM)  # not its children
    process.end(128 + signal.SIGTERM)
    assert "SIGTERM: finishing the step" in process.said
    step = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert step > 15
    run(command(fit(folder, **PAIR)), tmp_path / "again.log")
    assert differences(pair / "checkpoints/last.ckpt", folder / "checkpoints/last.ckpt") == []
    figure("SIGTERM to one process of two", f"both saved step {step} and stopped; resumed: 0 tensors differ")


SRUN = """#!{python}
# What srun does for a job of one node: a process a task, told its place by the environment.
import os, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
places = [{{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}} for i in range(int(os.environ["SLURM_NTASKS"]))]
made = [subprocess.Popen(words, env={{**os.environ, **place}}) for place in places]
open(os.environ["STAND_IN"] + "/tasks", "w").write(" ".join(str(p.pid) for p in made))
sys.exit(max(abs(p.wait()) for p in made))
"""
SCONTROL = """#!/bin/sh
echo "$@" >> "$STAND_IN/scontrol"
"""


def test_slurm_requeues_and_resumes(pair: Path, tmp_path: Path, figure: Figure) -> None:
    """With a stand-in for srun and scontrol: the warning signal goes to every task, as SLURM sends it to job steps."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name, text in (("srun", SRUN.format(python=sys.executable)), ("scontrol", SCONTROL)):
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(0o755)
    environment = {
        "PATH": f"{bin_}:{os.environ['PATH']}", "STAND_IN": str(tmp_path), "SLURM_JOB_ID": "4711", "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "acmix",
        "SLURM_NODELIST": "127.0.0.1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29519",
    }  # fmt: skip
    folder = tmp_path / "run"
    words = ["srun", "--kill-on-bad-exit=0", *command(fit(folder, **PAIR))]
    first = Process(words, tmp_path / "first.log", environment)
    first.wait_for("epoch 1/4")
    for pid in (tmp_path / "tasks").read_text().split():
        os.kill(int(pid), signal.SIGUSR1)
    first.end(128 + signal.SIGUSR1)
    assert (tmp_path / "scontrol").read_text().split() == ["requeue", "4711"]  # once, by one task
    assert "Requeued SLURM job 4711" in first.said
    second = Process(words, tmp_path / "second.log", environment)  # as SLURM starts it again
    second.end()
    assert "Resuming from epoch" in second.said
    assert differences(pair / "checkpoints/last.ckpt", folder / "checkpoints/last.ckpt") == []
    figure("SLURM's SIGUSR1 (stand-in srun and scontrol)", "saved, requeued once, resumed: 0 tensors differ")


# ---- what goes wrong in one process of two


def test_a_loss_that_is_no_number_in_one_process(pair: Path, tmp_path: Path, figure: Figure) -> None:
    """Both stop before the step, and the process with that loss saves its batch. The same command then resumes."""
    folder = tmp_path / "run"
    settings = {**PAIR, "run__save_every": 6}
    words = command(fit(folder, **settings, trainer__callbacks=callback_option(NanInSecondProcess)))
    said = run(words, tmp_path / "log", {"PYTHONPATH": str(Path(__file__).parents[1])}, code=1)
    last = folder / "checkpoints/last.ckpt"
    errors = [line for line in said.splitlines() if line.startswith("acmix-zoo: error: the loss is")]
    assert any(f"nan at epoch 2, step 20; the batch is in {folder}" in line for line in errors)
    assert all("The weights were not changed by it" in line for line in errors)
    assert all(f"The last state is in {last}" in line for line in errors)
    (kept,) = folder.glob("not_finite_*")
    assert kept.name == "not_finite_step20_rank1.pt"
    batch = torch.load(kept, weights_only=True)
    assert [bool(image.isnan().all()) for image in batch["images"]] == [False] * 3 + [True] + [False] * 4
    assert len(batch["names"]) == 8
    step = torch.load(last, weights_only=True)["global_step"]
    run(command(fit(folder, **settings)), tmp_path / "again.log")
    assert differences(pair / "checkpoints/last.ckpt", last) == []
    figure(
        "a loss of NaN in one process of two, at step 20",
        f"both stop, one batch kept, step {step} saved; without the cause: 0 tensors differ at the end",
    )


# ---- a disk that is full


FULL = {"trainer__max_epochs": 3, "trainer__logger": None, "trainer__log_every_n_steps": 1}  # TensorBoard's, too


def test_full_disk(tmp_path: Path, figure: Figure) -> None:
    """A file system of 40 MB fills up. The run reports it, loses nothing saved, and resumes when there is room."""
    alone = {**FULL, "model__ema_decay": 0.9}
    with small_disk(tmp_path / "small", 40) as place:
        run(command(fit(tmp_path / "whole", **alone)), tmp_path / "whole.log")
        process = Process(command(fit(place / "run", **alone)), tmp_path / "log")
        process.wait_for("epoch 1/3")
        fill(place / "filler")
        said = process.end(1)
        assert "could not save" in said and "Free some disk space" in said and "--ckpt_path last" in said
        assert "The TensorBoard log ends here" in said and "epoch 3/3" in said
        last = place / "run/checkpoints/last.ckpt"
        step = torch.load(last, weights_only=True)["global_step"]
        (place / "filler").unlink()
        run(command(fit(place / "run", **alone)), tmp_path / "again.log")
        assert differences(tmp_path / "whole/checkpoints/last.ckpt", last) == []
        figure("a full disk (tmpfs of 40 MB)", f"said so, kept step {step}; with room again: 0 tensors differ")


def test_full_disk_of_a_network_spread_over_processes(tmp_path: Path, figure: Figure) -> None:
    """Each process writes its own part, the first one something beside; all learn of what could not be written."""
    spread = {**FULL, **MESH, "data__batch_size": 8, "trainer__max_epochs": 4, "trainer__logger": "false"}
    with small_disk(tmp_path / "small", 40) as place:
        run(torchrun(fit(tmp_path / "whole", **spread), 2), tmp_path / "whole.log")
        process = Process(torchrun(fit(place / "run", **spread), 2), tmp_path / "log")
        process.wait_for("epoch 1/4")
        last = place / "run/checkpoints/last.ckpt"
        fill(place / "filler")
        parts = [file for file in last.iterdir() if file.name != "meta.pt"]
        pages = sum(-(-file.stat().st_size // 4096) for file in parts)
        os.truncate(place / "filler", (place / "filler").stat().st_size - 4096 * pages)  # room for these alone
        process.wait_for("epoch 2/4")
        assert "could not save" in process.said and "inline_container" in process.said
        fill(place / "filler")
        said = process.end(1)
        assert said.count("could not save") == 3 and "--ckpt_path last" in said and "epoch 4/4" in said
        assert is_checkpoint(last)
        (place / "filler").unlink()
        assert "Resuming from epoch" in run(torchrun(fit(place / "run", **spread), 2), tmp_path / "again.log")
        one, two = ((f / "weights/model.safetensors").read_bytes() for f in (tmp_path / "whole", place / "run"))
        assert one == two
        figure("a full disk, FSDP2 on 2 processes", "said so; with room again: the same weights, to the bit")
