"""A resumed run of an `ImageDataModule` gets the same batches, and different data is refused."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from support.image_data import (
    QUIET,
    Recorder,
    assert_resuming_repeats_the_batches,
    make_data_module,
    write_class_folders,
)

from acmix_zoo.data.compatibility import compare_batches


# within and between epochs of 6 steps
@pytest.mark.parametrize(
    ("stop_at", "workers"), [(9, 0), (12, 1), *(pytest.param(*p, marks=pytest.mark.slow) for p in ((12, 0), (14, 1)))]
)
def test_a_resumed_run_gets_the_batches_of_an_uninterrupted_one(tmp_path: Path, stop_at: int, workers: int) -> None:
    source = write_class_folders(tmp_path / "data", 16)
    options = {"augment": "light", "random_erasing": 0.5, "mixup": 0.2, "cutmix": 1.0, "num_workers": workers}
    assert_resuming_repeats_the_batches(lambda: make_data_module(source, **options), tmp_path, stop_at, steps=18)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_can_be_resumed_at_the_end_of_an_epoch(tmp_path: Path, workers: int) -> None:
    source = write_class_folders(tmp_path / "data", 16)

    def run(epochs: int, resume: Path | None = None) -> list[Any]:
        model, data = Recorder(), make_data_module(source, augment="light", mixup=0.2, num_workers=workers)
        trainer = L.Trainer(max_epochs=epochs, callbacks=[ModelCheckpoint(tmp_path, filename=f"{epochs}")], **QUIET)
        trainer.fit(model, data, ckpt_path=resume, weights_only=True)
        return model.seen

    uninterrupted = run(4)
    assert run(2) == uninterrupted[:12]
    assert run(4, tmp_path / "2.ckpt") == uninterrupted[12:]


def test_other_batches_or_images_are_rejected_or_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_class_folders(tmp_path / "data", 16)

    def run(resume: Path | None = None, accumulate: int = 1, **kwargs: Any) -> None:
        every = ModelCheckpoint(tmp_path, filename="at", every_n_train_steps=1)
        trainer = L.Trainer(
            max_epochs=1, limit_train_batches=3, callbacks=[every], accumulate_grad_batches=accumulate, **QUIET
        )
        trainer.fit(Recorder(), make_data_module(source, **kwargs), ckpt_path=resume, weights_only=True)

    run()
    for change in ({"batch_size": 6}, {"accumulate": 2}):
        with pytest.raises(ValueError, match=r"--data.batch_size 4 --trainer.accumulate_grad_batches 1, or choose"):
            run(tmp_path / "at.ckpt", **change)
    moved = source.rename(tmp_path / "elsewhere")
    capsys.readouterr()
    L.Trainer(max_epochs=1, limit_train_batches=3, default_root_dir=tmp_path / "moved", **QUIET).fit(
        Recorder(), make_data_module(moved), ckpt_path=tmp_path / "at.ckpt", weights_only=True
    )
    assert "files have changed" not in capsys.readouterr().out  # the same images in another folder
    moved.rename(source)
    image = source / "a" / "3.png"
    image.write_bytes(image.read_bytes() + b"0")
    run(tmp_path / "at.ckpt")
    printed = capsys.readouterr().out
    assert "data: data, 2 classes; images: train 24, val 8" in printed
    assert (
        "Warning: image files have changed since the checkpoint" in printed and "which was trained on data (" in printed
    )
    image.unlink()
    with pytest.raises(
        ValueError,
        match=r"trained on data \(24 train, 8 val, 0 test images, fingerprint .*To resume, use the same images",
    ):
        run(tmp_path / "at.ckpt")


def test_the_same_global_batch_on_more_processes_is_explained() -> None:
    current = {"processes": 2, "batch_size": 2, "accumulate_grad_batches": 1}
    message = compare_batches({"processes": 1, "batch_size": 4, "accumulate_grad_batches": 1}, current)
    assert message is not None and "schedule stay the same" in message and "bit-identical" in message
    assert compare_batches(current, dict(current)) is None
    with pytest.raises(ValueError, match="a number of processes that divides 4 images"):
        compare_batches(current, {**current, "processes": 3})
