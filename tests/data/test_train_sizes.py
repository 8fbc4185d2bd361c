"""Progressive resizing: smaller training images in some epochs."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from support.image_data import QUIET, Recorder, make_data_module, write_class_folders
from torch import Tensor

from acmix_zoo.data.train_sizes import TrainSizes


class ShapeRecorder(Recorder):
    """Records the side length of its images by epoch: training batches and validation batches."""

    def __init__(self) -> None:
        super().__init__()
        self.sides: dict[str, list[tuple[int, int]]] = {"train": [], "val": []}

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        self.sides["train"].append((self.current_epoch, batch[0].shape[-1]))
        return super().training_step(batch, index)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.sides["val"].append((self.current_epoch, batch[0].shape[-1]))


def test_a_size_holds_from_its_epoch_until_the_next_entry() -> None:
    sizes = TrainSizes({5: 48, 1: 32}, 64)
    assert [sizes.size_in_epoch(epoch) for epoch in (0, 1, 4, 5, 99)] == [64, 32, 32, 48, 48]
    assert TrainSizes(None, 64).size_in_epoch(3) == 64


def test_images_are_shrunk_with_an_antialiased_filter() -> None:
    sizes = TrainSizes({0: 8, 1: 16}, 16)
    stripes = torch.tensor([0.0, 1.0]).repeat(8).expand(2, 3, 16, 16)  # columns of 0 and 1
    shrunk = sizes.shrink(stripes, epoch=0)
    assert shrunk.shape == (2, 3, 8, 8)
    assert (shrunk[..., 1:-1] - 0.5).abs().max() < 0.15  # without antialiasing the stripes would alias
    assert sizes.shrink(stripes, epoch=1) is stripes


@pytest.mark.parametrize("entry", [{-1: 8}, {0: 17}, {2: 0}])
def test_impossible_entries_are_rejected(entry: dict[int, int]) -> None:
    with pytest.raises(ValueError, match=r"train_sizes has the entry .* size from 1 to image_size, which is 16"):
        TrainSizes(entry, 16)


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_training_follows_the_sizes_and_validation_keeps_the_full_size(tmp_path: Path, mixup: float) -> None:
    data = make_data_module(write_class_folders(tmp_path), train_sizes={0: 8, 2: 12}, mixup=mixup)
    model = ShapeRecorder()
    quiet: dict[str, Any] = {**QUIET, "limit_train_batches": 1, "enable_checkpointing": False}
    L.Trainer(max_epochs=3, default_root_dir=tmp_path / "run", **quiet).fit(model, data)
    assert model.sides["train"] == [(0, 8), (1, 8), (2, 12)]
    assert {side for _, side in model.sides["val"]} == {16}
