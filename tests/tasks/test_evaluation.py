"""The details of an evaluation: the confusion matrix, and the images that were classified wrongly."""

from __future__ import annotations

from pathlib import Path

import torch
from support.training import make_data, make_image_folder, make_task, make_trainer

from acmix_zoo.tasks.evaluation import Mistake, evaluate_classes


def test_mistakes_are_sorted_by_confidence() -> None:
    seen = torch.tensor([[0, 0, 0.9], [1, 0, 0.5], [2, 1, 0.75], [1, 1, 0.6]])
    found = evaluate_classes(seen, [3, 4, 8, 9], num_classes=3)
    assert found.confusion is not None and found.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert list(found.mistakes) == [Mistake(8, 2, 1, 0.75), Mistake(4, 1, 0, 0.5)]
    assert not evaluate_classes(seen, None, num_classes=3).mistakes  # the positions of a stream are not known
    assert evaluate_classes(seen, [3, 4, 8, 9], num_classes=10_000).confusion is None


def test_positions_name_the_images_even_if_one_cannot_be_read(tmp_path: Path) -> None:
    """Every network is wrong on a class that it does not know: all images of the last class are mistakes."""
    folder = make_image_folder(tmp_path / "images", per_class=6)
    make_image_folder(tmp_path / "images/val", per_class=3)
    (folder / "train").mkdir()
    for name in ("class0", "class1", "class2"):
        (folder / name).rename(folder / "train" / name)
    data, task = make_data(folder, batch_size=4), make_task()
    torch.nn.init.zeros_(task.model.get_classifier().weight)
    task.model.get_classifier().bias.data = torch.tensor([2.0, 1.0, 0.0])
    data.setup("validate")
    (folder / "val/class1/1.png").write_bytes(b"damaged after the check")
    make_trainer(enable_checkpointing=False).validate(task, data, verbose=False)
    found = task.evaluations["val"]
    assert found.confusion is not None and found.confusion.tolist() == [[3, 0, 0], [2, 0, 0], [3, 0, 0]]
    names = {Path(data.splits["val"].images.describe(mistake.position)).parts[-2:] for mistake in found.mistakes}
    assert names == {("class1", "0.png"), ("class1", "2.png"), *(("class2", f"{i}.png") for i in range(3))}
