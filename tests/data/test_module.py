"""`ImageDataModule` under Lightning's trainer: splits, mixing, resume, bad input, prediction."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor, nn

from acmix_zoo.data import ImageDataModule, UnreadableImage
from acmix_zoo.data.compatibility import compare_batches
from acmix_zoo.data.options import limit_batch_size
from acmix_zoo.data.splits import UnusableImages, stratified_split

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


class Recorder(L.LightningModule):
    """Trains one number and writes down what it is given."""

    def __init__(self, stop_at: int = -1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, float, list[float]]] = []  # (epoch, sum of the pixels, classes)
        self.tested: list[int] = []
        self.stop_at = stop_at

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        if len(self.seen) == self.stop_at:
            raise KeyboardInterrupt
        x, y = batch
        self.seen.append((self.current_epoch, float(x.double().sum()), y.flatten().tolist()))
        return (self.weight - x.mean()) ** 2

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.tested += batch[1].tolist()

    test_step = validation_step

    def predict_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return batch[1]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def folder(root: Path, count: int = 6, classes: str = "ab", split: str = "") -> Path:
    for label, name in enumerate(classes):
        (root / split / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (20, 16), 100 * label + number).save(root / split / name / f"{number}.png")
    return root


def small(source: Path | str, **kwargs: Any) -> ImageDataModule:
    return ImageDataModule(str(source), **{"image_size": 16, "batch_size": 4, "val_fraction": 0.25} | kwargs)


def test_everything_the_model_needs_is_known_before_setup(fashion_mnist: str) -> None:
    data = ImageDataModule(fashion_mnist, image_size=32, mean=(0.3, 0.3, 0.3), std=(0.4, 0.4, 0.4))
    assert (data.num_classes, data.class_names[9], data.input_size) == (10, "Ankle boot", (3, 32, 32))
    assert (data.mean, data.std, data.interpolation, data.crop_pct) == ((0.3,) * 3, (0.4,) * 3, "bicubic", 1.0)
    assert ImageDataModule("digits").crop_pct == 0.875
    described = data.describe()
    assert described.pop("source") in ("Debian package dataset-fashion-mnist", "files in ACMIX_DATA")
    assert described.pop("fingerprint") == ImageDataModule(fashion_mnist, image_size=32).describe()["fingerprint"]
    assert described == {
        "name": "fashion_mnist", "license": "MIT", "splits": {"train": 54_000, "val": 6_000, "test": 10_000},
    }  # fmt: skip
    data.setup("fit")
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == (64, 3, 32, 32) and x.dtype == torch.float32 and y.shape == (64,) and y.dtype == torch.int64
    assert sum(len(y) for _, y in data.test_dataloader()) == 10_000


def test_validation_is_stratified_and_seeded() -> None:
    targets = np.repeat([0, 1, 2, 3], [100, 10, 2, 1])
    train, val = stratified_split(targets, 0.1, seed=0)
    assert np.bincount(targets[val], minlength=4).tolist() == [10, 1, 1, 0]
    assert sorted([*train, *val]) == list(range(113))
    assert np.array_equal(val, stratified_split(targets, 0.1, seed=0)[1])
    assert not np.array_equal(val, stratified_split(targets, 0.1, seed=1)[1])


def test_own_splits_are_kept(tmp_path: Path) -> None:
    for split, count in (("train", 5), ("validation", 3), ("test", 2)):
        folder(tmp_path, count, split=split)
    assert small(tmp_path).describe()["splits"] == {"train": 10, "val": 6, "test": 4}


def test_no_validation(tmp_path: Path) -> None:
    data = small(folder(tmp_path), val_fraction=0)
    model = Recorder()
    L.Trainer(max_epochs=1, default_root_dir=tmp_path / "run", **QUIET).fit(model, data)
    assert len(model.seen) == 3 and model.tested == []


def test_few_images_still_make_a_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Recorder()
    data = small(folder(tmp_path), batch_size=64)
    L.Trainer(max_epochs=2, default_root_dir=tmp_path / "run", **QUIET).fit(model, data)
    assert [len(classes) for _, _, classes in model.seen] == [8, 8]  # 12 images, 4 of which validate
    assert sorted(model.tested) == [0] * 4 + [1] * 4
    assert data.batch_size == 8  # which the learning rates are scaled by
    assert "batch size 64 is larger than the 8 training images; using 8 instead" in capsys.readouterr().out


def test_batches_that_are_too_large() -> None:
    assert limit_batch_size(8, 8, 1, 1) == (8, "") and limit_batch_size(2, 8, 2, 2) == (2, "")
    size, remark = limit_batch_size(8, 9, 2, 1)
    assert size == 4 and "larger than the 9 training images on 2 processes; using 4" in remark
    size, remark = limit_batch_size(4, 8, 1, 4)
    assert (
        size == 4 and "a step of 4 × 4" in remark.replace("an optimiser ", "a ") and "accumulate_grad_batches" in remark
    )
    assert limit_batch_size(4, 1, 2, 1)[0] == 1


def test_a_run_first_prints_a_summary_of_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "data", 12)
    folder(root, 3, classes="c")
    (root / "a/photo.heic").write_bytes(b"")
    small(root).setup("fit")
    out = capsys.readouterr().out
    assert "data: data, 3 classes; images: train 20, val 7" in out
    assert "val was split off from train" in out and re.search(r"\n  c +2 +1\n", out)
    assert "imbalanced: 9 of 'a', 2 of 'c'" in out
    assert "skipped 1 .heic file (first: a/photo.heic): to read them, `pip install pillow-heif`" in out
    assert "pixel values: 8 bits, 0 to 255" in out


def test_damage_in_the_middle_of_a_test_image_is_found_before_the_run(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        folder(tmp_path, 3, split=split)
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for split in ("val", "test"):
        path = tmp_path / split / "a/0.png"
        Image.fromarray(noise).save(path)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
    with pytest.raises(UnusableImages, match=r"^1 of 6 test images cannot be used"):
        small(tmp_path).setup("fit")  # val's is left out when it comes up
    small(tmp_path).setup("test")  # which is about to decode all of them
    data = small(tmp_path)
    data.trainer = SimpleNamespace(world_size=2, is_global_zero=True)  # type: ignore[assignment]
    with pytest.raises(UnusableImages, match="1 of 6 test images"):  # in all processes, which else would wait for one
        data.setup("test")


# ---- resume


@pytest.mark.parametrize(("stop_at", "workers"), [(9, 0), (12, 0), (12, 1), (14, 1)])  # in and between epochs of 6
def test_an_interrupted_run_sees_the_batches_it_would_have_seen(tmp_path: Path, stop_at: int, workers: int) -> None:
    source = folder(tmp_path / "data", 16)

    def run(name: str, model: Recorder, resume: Path | None = None) -> list[Any]:
        data = small(source, augment="light", random_erasing=0.5, mixup=0.2, cutmix=1.0, num_workers=workers)
        every = ModelCheckpoint(tmp_path / name, save_last=True, every_n_train_steps=1, save_top_k=1)
        trainer = L.Trainer(max_epochs=3, callbacks=[every], **QUIET)
        try:
            trainer.fit(model, data, ckpt_path=resume, weights_only=True)
        except SystemExit:
            assert model.stop_at >= 0
        return model.seen

    whole = run("whole", Recorder())
    assert len(whole) == 18 and len({total for _, total, _ in whole}) == 18
    first = run("first", Recorder(stop_at))
    assert first == whole[:stop_at]
    assert run("second", Recorder(), tmp_path / "first" / "last.ckpt") == whole[stop_at:]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_goes_on_from_the_end_of_an_epoch(tmp_path: Path, workers: int) -> None:
    source = folder(tmp_path / "data", 16)

    def run(epochs: int, resume: Path | None = None) -> list[Any]:
        model, data = Recorder(), small(source, augment="light", mixup=0.2, num_workers=workers)
        trainer = L.Trainer(max_epochs=epochs, callbacks=[ModelCheckpoint(tmp_path, filename=f"{epochs}")], **QUIET)
        trainer.fit(model, data, ckpt_path=resume, weights_only=True)
        return model.seen

    whole = run(4)
    assert run(2) == whole[:12]
    assert run(4, tmp_path / "2.ckpt") == whole[12:]


def test_other_sizes_are_refused_or_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path / "data", 16)

    def run(resume: Path | None = None, accumulate: int = 1, **kwargs: Any) -> None:
        every = ModelCheckpoint(tmp_path, filename="at", every_n_train_steps=1)
        trainer = L.Trainer(
            max_epochs=1, limit_train_batches=3, callbacks=[every], accumulate_grad_batches=accumulate, **QUIET
        )
        trainer.fit(Recorder(), small(source, **kwargs), ckpt_path=resume, weights_only=True)

    run()
    for change in ({"batch_size": 6}, {"accumulate": 2}):
        with pytest.raises(ValueError, match=r"--data.batch_size 4 --trainer.accumulate_grad_batches 1, or choose"):
            run(tmp_path / "at.ckpt", **change)
    moved = source.rename(tmp_path / "elsewhere")
    capsys.readouterr()
    L.Trainer(max_epochs=1, limit_train_batches=3, **QUIET).fit(
        Recorder(), small(moved), ckpt_path=tmp_path / "at.ckpt", weights_only=True
    )
    assert "files have changed" not in capsys.readouterr().out  # the same images under another name
    moved.rename(source)
    image = source / "a" / "3.png"
    image.write_bytes(image.read_bytes() + b"0")
    run(tmp_path / "at.ckpt")
    said = capsys.readouterr().out
    assert "data: data, 2 classes; images: train 24, val 8" in said
    assert "image files have changed since the checkpoint, which was trained on data (" in said
    image.unlink()
    with pytest.raises(
        ValueError,
        match=r"trained on data \(24 train, 8 val, 0 test images, fingerprint .*To resume, give the same images",
    ):
        run(tmp_path / "at.ckpt")
    ours = {"processes": 2, "batch_size": 2, "accumulate_grad_batches": 1}
    said = compare_batches({"processes": 1, "batch_size": 4, "accumulate_grad_batches": 1}, ours)
    assert said is not None and "schedule stay the same" in said and "bit-identical" in said
    assert compare_batches(ours, dict(ours)) is None
    with pytest.raises(ValueError, match="a number of processes that divides 4 images"):
        compare_batches(ours, {**ours, "processes": 3})


# ---- several processes

TWO_PROCESSES = """
import sys, torch, lightning as L
sys.path.insert(0, sys.argv[1])
from test_module import QUIET, Recorder, small

class Count(Recorder):
    def on_test_epoch_end(self):
        seen = self.all_gather(torch.bincount(torch.tensor(self.tested), minlength=3)).sum(0)
        assert seen.tolist() == [7, 7, 7], seen
    def on_train_epoch_end(self):
        sums = self.all_gather(torch.tensor([total for _, total, _ in self.seen], dtype=torch.double))
        assert sums.shape == (2, 2) and sums.unique().numel() == 4, sums

if __name__ == "__main__":
    trainer = L.Trainer(max_epochs=1, strategy="ddp_spawn", devices=2, **QUIET)
    trainer.fit(Count(), data := small(sys.argv[2]))
    trainer.test(Count(), data, verbose=False)
"""


@pytest.mark.slow
def test_two_processes_train_apart_and_count_exactly(tmp_path: Path) -> None:
    folder(tmp_path / "data", 8, "abc", "train")
    folder(tmp_path / "data", 7, "abc", "test")
    (tmp_path / "run.py").write_text(TWO_PROCESSES)
    command = [sys.executable, "run.py", str(Path(__file__).parent), str(tmp_path / "data")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- on the device


class Wide(Recorder):
    """Records what the trainer passes to it, and what the loader passed to the trainer."""

    def on_train_start(self) -> None:
        self.loaded: list[torch.dtype] = []
        self.given: list[torch.dtype] = []
        self.workers: set[int] = set()

    def on_train_epoch_start(self) -> None:
        loader: Any = self.trainer.train_dataloader
        if loader.num_workers:
            self.workers |= {process.pid for process in loader._iterator._workers}

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        self.given.append(batch[0].dtype)
        return super().training_step(batch, index)


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true"])
def test_images_travel_as_bytes_and_arrive_as_the_precision_wants_them(tmp_path: Path, precision: Any) -> None:
    source = folder(tmp_path / "data", 8)
    travelled = []
    data = small(source, augment="light", random_erasing=0.5, mixup=0.2)
    move = data.transfer_batch_to_device
    data.transfer_batch_to_device = lambda batch, *rest: travelled.append(batch[0].dtype) or move(batch, *rest)  # type: ignore[method-assign,func-returns-value]
    model = Wide()
    L.Trainer(max_epochs=1, default_root_dir=tmp_path, precision=precision, **QUIET).fit(model, data)
    wanted = {"32": torch.float32, "64": torch.float64, "bf": torch.bfloat16}[precision[:2]]
    assert set(travelled) == {torch.uint8} and set(model.given) == {wanted}
    images, _ = next(iter(data.train_dataloader()))  # outside of a trainer's run
    assert images.dtype == torch.float32


def test_a_fit_keeps_its_workers(tmp_path: Path) -> None:
    alone, model = Recorder(), Wide()
    for recorder, workers in ((alone, 0), (model, 2)):
        data = small(folder(tmp_path / str(workers), 8), augment="light", mixup=0.2, num_workers=workers)
        L.Trainer(max_epochs=3, default_root_dir=tmp_path, **QUIET).fit(recorder, data)
    assert len(model.workers) == 2 and model.seen == alone.seen and model.tested == alone.tested


# ---- mixing


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_training_batches_are_mixed_and_others_are_not(tmp_path: Path, kind: str) -> None:
    model = Recorder()
    data = small(folder(tmp_path, classes="abc"), val_fraction=0.34, **{kind: 1.0})
    L.Trainer(max_epochs=1, default_root_dir=tmp_path / "run", **QUIET).fit(model, data)
    mixed = [torch.tensor(classes).view(4, 3) for _, _, classes in model.seen]
    assert len(mixed) == 3 and all(torch.allclose(y.sum(1), torch.ones(4)) for y in mixed)
    assert any(((y > 0) & (y < 1)).any() for y in mixed)
    assert all(isinstance(target, int) for target in model.tested) and len(model.tested) == 6


# ---- bad input


def test_unreadable_files_are_named_before_the_first_step(tmp_path: Path) -> None:
    source = folder(tmp_path)
    (source / "a" / "3.png").write_bytes(b"")
    (source / "b" / "text.jpg").write_text("hello")
    data = small(source, val_fraction=0)
    with pytest.raises(
        ValueError, match=r"2 of 13 train images cannot be used. Repair or remove them:\n.*3\.png.*\n.*text"
    ):
        data.setup("fit")
    for split in ("train", "val", "test"):
        folder(tmp_path / "split", split=split)
        (tmp_path / "split" / split / "a/2.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"(?s)1 of 12 train images.*1 of 12 val images.*1 of 12 test images"):
        small(tmp_path / "split").setup("fit")


def test_a_file_that_breaks_during_a_run_does_not_end_it(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        folder(tmp_path / "data", 4, split=split)
    data = small(tmp_path / "data")
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
    with pytest.raises(UnreadableImage, match="run the command again"):  # where that look did not see it
        list(data.test_dataloader())


def test_an_image_that_breaks_alone_in_its_batch_does_not_end_the_run(tmp_path: Path) -> None:
    for split in ("train", "val"):
        folder(tmp_path / "data", 2, split=split)
    data = small(tmp_path / "data", batch_size=1)
    data.setup("fit")
    for split in ("train", "val"):
        (tmp_path / "data" / split / "b/0.png").unlink()
    model = Recorder()
    with pytest.warns(UserWarning, match="skipped: image"):
        L.Trainer(max_epochs=1, default_root_dir=tmp_path / "run", **QUIET).fit(model, data)
    classes = [label for _, _, (label,) in model.seen]
    assert classes.count(0) == 2 and classes.count(1) == 2  # the one after it was taken in its place
    assert model.tested == [0, 0, -1, 1]


def test_classes_with_one_image(tmp_path: Path) -> None:
    source = folder(tmp_path, 1)
    with pytest.raises(ValueError, match=r"no class has two images, .* set data.val_fraction to 0"):
        small(source).setup("fit")
    assert small(source, val_fraction=0).describe()["splits"] == {"train": 2, "val": 0, "test": 0}
    Image.new("L", (4, 4)).save(source / "b" / "more.png")
    assert small(source).describe()["splits"] == {"train": 2, "val": 1, "test": 0}


def test_no_test_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no test split. Add a test/ folder"):
        small(folder(tmp_path)).test_dataloader()


@pytest.mark.parametrize(
    "wrong",
    [
        {"val_fraction": 1.0},
        {"image_size": 0},
        {"batch_size": 0},
        {"mean": (0.5,)},
        {"std": (1.0, 0.0, 1.0)},
        {"interpolation": "cubic"},
    ],
)
def test_values_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ImageDataModule("digits", **wrong)


@pytest.mark.parametrize("augment", ["lihgt", "strong"])
def test_unknown_augmentation(augment: str) -> None:
    with pytest.raises(ValueError, match=f"augment='{augment}' is unknown. Use none, light, imagenet or"):
        ImageDataModule("digits", augment=augment)


# ---- prediction


def test_prediction(tmp_path: Path) -> None:
    (tmp_path / "new" / "deep").mkdir(parents=True)
    for name in ("x.png", "deep/y.png", "z.jpg"):
        Image.new("RGB", (30, 20)).save(tmp_path / "new" / name)
    (tmp_path / "new" / "readme.txt").write_text("not a picture")
    data = small("digits", predict=str(tmp_path / "new"), batch_size=2)
    told = L.Trainer(default_root_dir=tmp_path / "run", **QUIET).predict(Recorder(), data)
    assert told is not None and torch.cat(told).tolist() == [0, 1, 2]  # type: ignore[arg-type]
    assert [Path(path).name for path in data.predict_paths] == ["y.png", "x.png", "z.jpg"]


def test_nothing_to_predict(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing to predict.*--data\.predict PATH"):
        small("digits").setup("predict")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        small("digits", predict=str(tmp_path / "no")).setup("predict")
    with pytest.raises(ValueError, match="contains no images"):
        small("digits", predict=str(tmp_path)).setup("predict")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match=r"1 files? cannot be predicted.*text\.png"):
        small("digits", predict=str(tmp_path)).setup("predict")


# ---- what importing costs


def test_reading_a_picture_imports_neither_lightning_nor_datasets() -> None:
    code = "import sys, acmix_zoo.data as d; d.load_image; assert not {'lightning', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
