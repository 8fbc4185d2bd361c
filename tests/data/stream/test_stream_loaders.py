"""Streams under Lightning's trainer: resuming, exact evaluation, two processes, the Hub."""

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from support.hub_server import Hub, Repo
from support.image_data import QUIET, Recorder, assert_resuming_repeats_the_batches
from support.streams import write_shards

from acmix_zoo.data import ImageDataModule

SIZES = (7, 6, 12, 5, 9)


def make_stream_module(source: Path | str, **kwargs: Any) -> ImageDataModule:
    options = {"image_size": 8, "batch_size": 4, "streaming": True, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    return ImageDataModule(str(source), **{**options, **kwargs})


@pytest.fixture(params=["parquet", "webdataset"])
def source(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    write_shards(tmp_path / "set", request.param, SIZES)
    write_shards(tmp_path / "set", request.param, (8, 5), split="validation")
    return tmp_path / "set"


# epochs of 9 steps
@pytest.mark.parametrize(
    ("stop_at", "workers"),
    [(16, 2), *(pytest.param(*p, marks=pytest.mark.slow) for p in ((3, 0), (9, 0), (16, 0), (9, 2), (22, 2)))],
)
def test_a_resumed_run_gets_the_batches_of_an_uninterrupted_one(
    source: Path, tmp_path: Path, stop_at: int, workers: int
) -> None:
    options = {"augment": "light", "random_erasing": 0.5, "mixup": 0.2, "cutmix": 1.0, "num_workers": workers}
    assert_resuming_repeats_the_batches(lambda: make_stream_module(source, **options), tmp_path, stop_at, steps=27)


def test_reloading_the_data_continues_the_stream(source: Path, tmp_path: Path) -> None:
    """With reload_dataloaders_every_n_epochs, each epoch used to restart the stream."""
    seen = []
    for every in (0, 1):
        model = Recorder()
        trainer = L.Trainer(default_root_dir=tmp_path, max_epochs=3, reload_dataloaders_every_n_epochs=every, **QUIET)
        trainer.fit(model, make_stream_module(source, epoch_images=12))
        seen.append(model.seen)
    assert seen[0] == seen[1] and len(set(map(str, seen[0]))) == len(seen[0])


@pytest.mark.parametrize(("stop_at", "workers"), [(9, 0), (16, 0), pytest.param(16, 2, marks=pytest.mark.slow)])
def test_a_run_that_reloads_its_data_can_be_resumed(source: Path, tmp_path: Path, stop_at: int, workers: int) -> None:
    assert_resuming_repeats_the_batches(
        lambda: make_stream_module(source, num_workers=workers),
        tmp_path,
        stop_at,
        steps=27,
        reload_dataloaders_every_n_epochs=1,
    )


def test_a_failed_run_leaves_no_workers(source: Path, tmp_path: Path) -> None:
    data = make_stream_module(source, num_workers=2)
    with pytest.raises(SystemExit):
        L.Trainer(default_root_dir=tmp_path, max_epochs=1, **QUIET).fit(Recorder(stop_at=2), data)
    assert multiprocessing.active_children() == []


def test_evaluation_and_record(source: Path, tmp_path: Path) -> None:
    data, model = make_stream_module(source, num_workers=2), Recorder()
    L.Trainer(default_root_dir=tmp_path, **QUIET).validate(model, data, verbose=False)
    assert sorted(model.tested) == sorted([n % 3 for n in range(13)])
    described = data.describe()
    assert described["source"] == "local folder"
    assert described["splits"] == {"train": 39, "val": 13, "test": 0} and len(described["fingerprint"]) == 16
    with pytest.raises(ValueError, match="has no test split"):
        data.test_dataloader()


def test_the_length_of_an_epoch_can_be_set(source: Path) -> None:
    data = make_stream_module(source, epoch_images=17, augment="none")
    loader = data.train_dataloader()
    assert len(loader) == 4 and len(list(loader)) == 4
    assert data.describe_batch(3)[0].startswith("set/train, ") and len(data.describe_batch(3)) == 4


def test_unsupported_options_are_rejected(tmp_path: Path) -> None:
    write_shards(tmp_path, "webdataset", (5,))
    with pytest.raises(ValueError, match=r"no validation split.*set data.val_fraction to 0"):
        make_stream_module(tmp_path)
    with pytest.raises(ValueError, match="repeats=3 is not supported for a stream"):
        make_stream_module(tmp_path, val_fraction=0, repeats=3)
    with pytest.raises(ValueError, match=r"validation_as_test is not supported for a stream"):
        make_stream_module(tmp_path, val_fraction=0, validation_as_test=True)
    data = make_stream_module(tmp_path, val_fraction=0)
    with pytest.raises(ValueError, match=r"are streamed, not indexed. Set streaming to false"):
        _ = data.splits
    with pytest.raises(ValueError, match=r"number of images of each class is not known.* Set model.class_weights to n"):
        data.class_counts()
    data.load_state_dict({"epoch": 1, "batch": 0})
    with pytest.raises(ValueError, match="trained without streaming"):
        data.train_dataloader()


# ---- two processes


SCRIPT = """
import json, os, signal, sys
import lightning as L, torch
from torch import nn
from acmix_zoo.data import ImageDataModule
from lightning.pytorch.callbacks import ModelCheckpoint

source, folder, name, die, workers = sys.argv[1:]

class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(3))
        self.net(torch.zeros(2, 3, 8, 8))  # buffers, which processes exchange in every evaluation step too
        self.seen, self.tested = [], []
    def training_step(self, batch, index):
        x, y = batch
        self.seen.append(float(x.double().sum()))
        if self.global_step == int(die):
            os.kill(os.getpid(), signal.SIGKILL)
        return nn.functional.cross_entropy(self.net(x), y)
    def validation_step(self, batch, index):
        x, y = batch
        self.net(x)
        self.tested += (x[:, 0, 0, 0] * 255).round().int()[y >= 0].tolist()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)

torch.manual_seed(0)
data = ImageDataModule(source, image_size=8, batch_size=3, streaming=True, mean=(0, 0, 0), std=(1, 1, 1),
                       num_workers=int(workers))
model = Model()
last = os.path.join(folder, "last.ckpt")
every = ModelCheckpoint(folder, save_last=True, every_n_train_steps=1, save_top_k=1, save_on_train_epoch_end=False)
trainer = L.Trainer(max_epochs=3, callbacks=[every], accelerator="cpu", devices=2, strategy="ddp", logger=False,
                    enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0)
trainer.fit(model, data, ckpt_path=last if os.path.exists(last) else None, weights_only=True)
weights = [float(p.double().sum()) for p in model.parameters()]
json.dump([model.seen, model.tested, weights], open(os.path.join(folder, f"{name}{trainer.global_rank}.json"), "w"))
"""


@pytest.mark.distributed
@pytest.mark.timeout(900)  # three starts of two processes, on a machine that others may use
@pytest.mark.parametrize("workers", [0, 2])
def test_two_killed_processes_resume_with_the_same_batches(
    tmp_path: Path, workers: int, figure: Callable[[str, str], None]
) -> None:
    write_shards(tmp_path / "set", "webdataset", SIZES)
    write_shards(tmp_path / "set", "webdataset", (8, 5, 1), split="validation")
    (tmp_path / "script.py").write_text(SCRIPT)

    def run(folder: str, name: str, die: int = -1) -> int:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += [str(tmp_path / "script.py"), str(tmp_path / "set"), str(tmp_path / folder), name, str(die)]
        done = subprocess.run([*command, str(workers)], capture_output=True, text=True, timeout=280)
        if die < 0:
            assert done.returncode == 0, done.stderr[-3000:]
        return done.returncode

    def read(folder: str, name: str) -> list[Any]:
        return [json.loads((tmp_path / folder / f"{name}{rank}.json").read_text()) for rank in range(2)]

    run("uninterrupted", "all")
    uninterrupted = read("uninterrupted", "all")
    assert [len(seen) for seen, _, _ in uninterrupted] == [18, 18]  # 39 images, 2 × 3 per step, three epochs
    assert len({total for seen, _, _ in uninterrupted for total in seen}) > 30, "the processes train on the same images"
    tested = sorted(n for _, tested, _ in uninterrupted for n in tested)
    assert tested == sorted(list(range(14)) * 3), "of 14 images in three validations"
    assert run("cut", "dead", die=8) != 0
    run("cut", "rest")
    for (seen, _, weights), (rest, _, again) in zip(uninterrupted, read("cut", "rest"), strict=True):
        assert rest == seen[18 - len(rest) :] and 10 <= len(rest) <= 11
        assert weights == again
    figure(
        f"a stream of tar shards, 2 processes × {workers} workers, killed",
        "validation: every image once; after the resume the same batches and weights",
    )


# ---- the Hub


READ = """
import json, sys
from acmix_zoo.data import ImageDataModule
data = ImageDataModule(sys.argv[1], image_size=8, batch_size=4, streaming=True, mean=(0, 0, 0), std=(1, 1, 1),
                       val_fraction=0, augment="none", num_workers=int(sys.argv[3]), **json.loads(sys.argv[2]))
x = [int(v) for images, _ in data.train_dataloader() for v in (images[:, 0, 0, 0] * 255).round()]
print(json.dumps([x, data.class_names, data.describe()]))
"""


def read_hub(hub: Hub, name: str, tmp_path: Path, workers: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    # in a separate process, because the address of the Hub is read at import
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_read"}
    command = [sys.executable, "-c", READ, name, json.dumps(options), str(workers)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=env)


CARD = b"""---
dataset_info:
  splits:
  - {name: train, num_bytes: 1000, num_examples: 12}
---
"""


@pytest.mark.slow
def test_parquet_files_on_the_hub_are_streamed(tmp_path: Path) -> None:
    """The number of training images is the one that the card of the data set states."""
    files = shard_files(tmp_path / "set", "parquet")
    with Hub() as hub:
        repo = hub.repos["org/set"] = Repo(private=False)
        repo.commit("main", files)
        done = read_hub(hub, "org/set", tmp_path)
        assert "org/set does not state how many training images it has. Set data.epoch_images" in done.stderr
        sha = repo.commit("main", files | {"README.md": CARD})
        done = read_hub(hub, "org/set", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    seen, names, described = json.loads(done.stdout.splitlines()[-1])
    assert set(seen) == set(range(12)) and names == ["cat", "dog", "emu"]
    assert described["fingerprint"] == sha[:16] and described["splits"]["train"] == 12


@pytest.mark.slow
def test_a_web_data_set_on_the_hub_is_streamed_by_two_workers(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("ant\nbee\ncow\n")
    with Hub() as hub:
        repo = hub.repos["org/set"] = Repo(private=False)
        repo.commit("main", shard_files(tmp_path / "set", "webdataset") | {"README.md": CARD})
        done = read_hub(hub, "org/set", tmp_path)
        assert "ValueError: org/set: the column 'cls' has no class names. Set data.classes_file" in done.stderr
        names = str(tmp_path / "names.txt")
        done = read_hub(hub, "org/set", tmp_path, workers=2, epoch_images=24, classes_file=names)
    assert done.returncode == 0, done.stderr[-3000:]
    seen, names, described = json.loads(done.stdout.splitlines()[-1])
    assert len(seen) == 24 and names == ["ant", "bee", "cow"] and described["splits"]["train"] == 12


def shard_files(folder: Path, kind: str) -> dict[str, bytes]:
    """Write the shards of a data set, and return their contents by their names on the Hub."""
    write_shards(folder, kind, (8, 4))
    return {f"data/{file.name}": file.read_bytes() for file in folder.iterdir()}
