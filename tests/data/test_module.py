"""`ImageDataModule` under Lightning's trainer: batches, mixing, unreadable images, prediction."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from support.image_data import QUIET, Recorder, make_data_module, write_class_folders
from torch import Tensor

from acmix_zoo.data import ImageDataModule, UnreadableImage
from acmix_zoo.data.augment import Pixels
from acmix_zoo.data.splits import UnusableImages


def test_everything_the_model_needs_is_known_before_setup(fashion_mnist: str) -> None:
    data = ImageDataModule(fashion_mnist, image_size=32, mean=(0.3, 0.3, 0.3), std=(0.4, 0.4, 0.4))
    assert (data.num_classes, data.class_names[9], data.input_size) == (10, "Ankle boot", (3, 32, 32))
    assert data.pixels == Pixels(data.input_size[1], (0.3,) * 3, (0.4,) * 3, "bicubic", 1.0)
    assert ImageDataModule("digits").pixels.crop_pct == 0.875
    described = data.describe()
    assert described.pop("source") in ("Debian package dataset-fashion-mnist", "files in ACMIX_DATA")
    assert described.pop("fingerprint") == ImageDataModule(fashion_mnist, image_size=32).describe()["fingerprint"]
    assert described == {
        "name": "fashion_mnist", "license": "MIT", "splits": {"train": 54_000, "val": 6_000, "test": 10_000},
        "val_split": {"val_fraction": 0.1, "seed": 0},
    }  # fmt: skip
    data.setup("fit")
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == (64, 3, 32, 32) and x.dtype == torch.float32 and y.shape == (64,) and y.dtype == torch.int64
    assert sum(len(y) for _, y in data.test_dataloader()) == 10_000


def test_training_without_validation(tmp_path: Path) -> None:
    data = make_data_module(write_class_folders(tmp_path), val_fraction=0)
    model = Recorder()
    L.Trainer(max_epochs=1, default_root_dir=tmp_path / "run", **QUIET).fit(model, data)
    assert len(model.seen) == 3 and model.tested == []


def test_batch_size_is_limited_by_the_number_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Recorder()
    data = make_data_module(write_class_folders(tmp_path), batch_size=64)
    L.Trainer(max_epochs=2, default_root_dir=tmp_path / "run", **QUIET).fit(model, data)
    assert [len(classes) for _, _, classes in model.seen] == [8, 8]  # 8 of 12 images; the other 4 validate
    assert sorted(model.tested) == [0] * 4 + [1] * 4
    assert data.batch_size == 8  # the learning rates are scaled by it
    assert "batch size 64 is larger than the 8 training images; using 8 instead" in capsys.readouterr().out


def test_a_run_first_prints_a_summary_of_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_class_folders(tmp_path / "data", 12)
    write_class_folders(root, 3, classes="c")
    (root / "a/photo.heic").write_bytes(b"")
    make_data_module(root).setup("fit")
    out = capsys.readouterr().out
    assert "data: data, 3 classes; images: train 20, val 7" in out
    assert "val was split off from train" in out and "  train: 2 to 9 images per class, median 9\n" in out
    assert "imbalanced: 9 of 'a', 2 of 'c'" in out
    assert "skipped 1 .heic file (first: a/photo.heic): to read them, `pip install pillow-heif`" in out
    assert "pixel values" not in out  # they are as usual


def test_missing_test_split_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no test split. Add a test/ folder"):
        make_data_module(write_class_folders(tmp_path)).test_dataloader()


# ---- on the device


class DtypeRecorder(Recorder):
    """Records the types of its batches and the ids of the worker processes."""

    def on_train_start(self) -> None:
        self.dtypes: list[torch.dtype] = []
        self.workers: set[int] = set()

    def on_train_epoch_start(self) -> None:
        loader: Any = self.trainer.train_dataloader
        if loader.num_workers:
            self.workers |= {process.pid for process in loader._iterator._workers}

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        self.dtypes.append(batch[0].dtype)
        return super().training_step(batch, index)


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true"])
def test_images_are_moved_as_uint8_and_converted_to_the_precision(tmp_path: Path, precision: Any) -> None:
    source = write_class_folders(tmp_path / "data", 8)
    moved = []
    data = make_data_module(source, augment="light", random_erasing=0.5, mixup=0.2)
    move = data.transfer_batch_to_device

    def record_dtype(batch: Any, *rest: Any) -> Any:
        moved.append(batch[0].dtype)
        return move(batch, *rest)

    data.transfer_batch_to_device = record_dtype  # type: ignore[method-assign]
    model = DtypeRecorder()
    L.Trainer(max_epochs=1, default_root_dir=tmp_path, precision=precision, **QUIET).fit(model, data)
    wanted = {"32": torch.float32, "64": torch.float64, "bf": torch.bfloat16}[precision[:2]]
    assert set(moved) == {torch.uint8} and set(model.dtypes) == {wanted}
    images, _ = next(iter(data.train_dataloader()))  # outside of a trainer's run
    assert images.dtype == torch.float32


def test_fit_keeps_its_workers(tmp_path: Path) -> None:
    alone, model = Recorder(), DtypeRecorder()
    for recorder, workers in ((alone, 0), (model, 2)):
        data = make_data_module(
            write_class_folders(tmp_path / str(workers), 8), augment="light", mixup=0.2, num_workers=workers
        )
        L.Trainer(max_epochs=3, default_root_dir=tmp_path, **QUIET).fit(recorder, data)
    assert len(model.workers) == 2 and model.seen == alone.seen and model.tested == alone.tested


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_only_training_batches_are_mixed(tmp_path: Path, kind: str) -> None:
    model = Recorder()
    data = make_data_module(write_class_folders(tmp_path, classes="abc"), val_fraction=0.34, **{kind: 1.0})
    L.Trainer(max_epochs=1, default_root_dir=tmp_path / "run", **QUIET).fit(model, data)
    mixed = [torch.tensor(classes).view(4, 3) for _, _, classes in model.seen]
    assert len(mixed) == 3 and all(torch.allclose(y.sum(1), torch.ones(4)) for y in mixed)
    assert any(((y > 0) & (y < 1)).any() for y in mixed)
    assert all(isinstance(target, int) for target in model.tested) and len(model.tested) == 6


# ---- unreadable images


def test_unreadable_files_are_named_before_the_first_step(tmp_path: Path) -> None:
    source = write_class_folders(tmp_path)
    (source / "a" / "3.png").write_bytes(b"")
    (source / "b" / "text.jpg").write_text("hello")
    data = make_data_module(source, val_fraction=0)
    with pytest.raises(
        ValueError, match=r"2 of 13 train images cannot be used. Repair or remove them:\n.*3\.png.*\n.*text"
    ):
        data.setup("fit")
    for split in ("train", "val", "test"):
        write_class_folders(tmp_path / "split", split=split)
        (tmp_path / "split" / split / "a/2.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"(?s)1 of 12 train images.*1 of 12 val images.*1 of 12 test images"):
        make_data_module(tmp_path / "split").setup("fit")


def test_damage_in_the_middle_of_a_test_image_is_found_before_the_run(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_class_folders(tmp_path, 3, split=split)
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for split in ("val", "test"):
        path = tmp_path / split / "a/0.png"
        Image.fromarray(noise).save(path)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
    with pytest.raises(UnusableImages, match=r"^1 of 6 test images cannot be used"):
        make_data_module(tmp_path).setup("fit")  # the val image will be skipped when it is read
    make_data_module(tmp_path).setup("test")  # does not look for damage, because the test decodes all images anyway
    data = make_data_module(tmp_path)
    data.trainer = SimpleNamespace(world_size=2, is_global_zero=True)  # type: ignore[assignment]
    with pytest.raises(UnusableImages, match="1 of 6 test images"):  # in all processes, so that none waits for another
        data.setup("test")


def test_a_file_that_becomes_unreadable_is_skipped_except_in_the_test(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_class_folders(tmp_path / "data", 4, split=split)
    data = make_data_module(tmp_path / "data")
    data.setup("fit")
    data.setup("test")
    for split in ("train", "val", "test"):
        (tmp_path / "data" / split / "b" / "0.png").write_bytes(b"gone")
    model = Recorder()
    trainer = L.Trainer(max_epochs=1, default_root_dir=tmp_path / "run", **QUIET)
    with pytest.warns(UserWarning, match="skipped: image"):
        trainer.fit(model, data)
    assert sum(len(classes) for _, _, classes in model.seen) == 7 and len(model.tested) == 7
    with pytest.raises(UnusableImages, match="1 of 8 test images"):  # a score over fewer images is another score
        trainer.test(model, data, verbose=False)
    with pytest.raises(UnreadableImage, match="run the command again"):  # if the check before the run did not find it
        list(data.test_dataloader())


def test_an_unreadable_image_alone_in_its_batch_is_replaced(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_class_folders(tmp_path / "data", 2, split=split)
    data = make_data_module(tmp_path / "data", batch_size=1)
    data.setup("fit")
    for split in ("train", "val"):
        (tmp_path / "data" / split / "b/0.png").unlink()
    model = Recorder()
    with pytest.warns(UserWarning, match="skipped: image"):
        L.Trainer(max_epochs=1, default_root_dir=tmp_path / "run", **QUIET).fit(model, data)
    classes = [label for _, _, (label,) in model.seen]
    assert classes.count(0) == 2 and classes.count(1) == 2  # the next image took its place
    assert model.tested == [0, 0, -1, 1]


# ---- prediction


def test_prediction_gives_indices_of_the_paths(tmp_path: Path) -> None:
    (tmp_path / "new" / "deep").mkdir(parents=True)
    for name in ("x.png", "deep/y.png", "z.jpg"):
        Image.new("RGB", (30, 20)).save(tmp_path / "new" / name)
    (tmp_path / "new" / "readme.txt").write_text("not an image")
    data = make_data_module("digits", predict=str(tmp_path / "new"), batch_size=2)
    predictions = L.Trainer(default_root_dir=tmp_path / "run", **QUIET).predict(Recorder(), data)
    assert predictions is not None and torch.cat(predictions).tolist() == [0, 1, 2]  # type: ignore[arg-type]
    assert [Path(path).name for path in data.predict_paths] == ["y.png", "x.png", "z.jpg"]


def test_nothing_to_predict_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing to predict.*--data\.predict PATH"):
        make_data_module("digits").setup("predict")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        make_data_module("digits", predict=str(tmp_path / "no")).setup("predict")
    with pytest.raises(ValueError, match="contains no images"):
        make_data_module("digits", predict=str(tmp_path)).setup("predict")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match=r"1 files? cannot be predicted.*text\.png"):
        make_data_module("digits", predict=str(tmp_path)).setup("predict")


# ---- several processes


TWO_PROCESSES = """
import sys, torch, lightning as L
sys.path.insert(0, sys.argv[1])
from support.image_data import QUIET, Recorder, make_data_module

class Count(Recorder):
    def on_test_epoch_end(self):
        seen = self.all_gather(torch.bincount(torch.tensor(self.tested), minlength=3)).sum(0)
        assert seen.tolist() == [7, 7, 7], seen
    def on_train_epoch_end(self):
        sums = self.all_gather(torch.tensor([total for _, total, _ in self.seen], dtype=torch.double))
        assert sums.shape == (2, 2) and sums.unique().numel() == 4, sums

if __name__ == "__main__":
    trainer = L.Trainer(max_epochs=1, strategy="ddp_spawn", devices=2, **QUIET)
    trainer.fit(Count(), data := make_data_module(sys.argv[2]))
    trainer.test(Count(), data, verbose=False)
"""


@pytest.mark.slow
def test_two_processes_train_on_different_images_and_count_exactly(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "data", 8, "abc", "train")
    write_class_folders(tmp_path / "data", 7, "abc", "test")
    (tmp_path / "run.py").write_text(TWO_PROCESSES)
    command = [sys.executable, "run.py", str(Path(__file__).parents[1]), str(tmp_path / "data")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
