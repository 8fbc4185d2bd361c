"""`Shards`: which files belong to which split."""

from pathlib import Path

import pytest
from support.image_data import write_files
from support.streams import write_shards, write_tar

from acmix_zoo.data import open_source
from acmix_zoo.data.sources.shards import Shards
from acmix_zoo.data.sources.stream_source import StreamSource


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
@pytest.mark.parametrize(
    ("one", "two"), [("val", "validation"), ("validation", "Val"), ("data", "train"), (".", "val"), (".", ".")]
)
def test_a_split_in_two_folders_or_under_two_names_is_rejected(tmp_path: Path, kind: str, one: str, two: str) -> None:
    root = tmp_path / "set"
    write_shards(root / "train", kind, (2,), split="part")
    assert Shards(root).files.keys() == {"train"}
    write_shards(root / one, kind, (2,), split="train" if one == "data" else "val")
    write_shards(root / two, kind, (3,), split="train" if two == "train" else "valid" if two == "." else "val")
    for open_ in (open_source, StreamSource):
        with pytest.raises(ValueError, match=r"set has both .* and .*, which belong to the same split, (val|train)"):
            open_(root)


def test_the_number_of_images_is_taken_from_info_json(tmp_path: Path) -> None:
    write_shards(tmp_path, "webdataset", (6, 2))
    names = '["set1k-train-0000.tar", "set1k-train-0001.tar"]'
    (tmp_path / "_info.json").write_text(
        f'{{"splits": {{"train": {{"filenames": {names}, "shard_lengths": [6, 99]}}}}}}'
    )
    assert StreamSource(tmp_path).splits["train"].size == 105


def test_folders_can_be_named_like_splits(tmp_path: Path) -> None:
    write_tar(tmp_path / "train/00000.tar", range(6))
    write_tar(tmp_path / "validation/00000.tar", range(4))
    assert {name: split.size for name, split in StreamSource(tmp_path).splits.items()} == {"train": 6, "val": 4}
    assert StreamSource(tmp_path / "validation/00000.tar").splits["train"].size == 4  # a single file is training data


@pytest.mark.parametrize("name", ["extra.tar", "table.parquet", "train/extra.tar"])
def test_class_folders_take_precedence_over_shards(tmp_path: Path, name: str) -> None:
    root = write_files(tmp_path, "train/cat/1.png", "train/dog/2.png", name)
    source = open_source(root)
    assert source.class_names == ("cat", "dog") and len(source.splits["train"]) == 2
    assert f"skipped {Path(name).name}, because" in "\n".join(source.remarks)
    with pytest.raises(ValueError, match="cannot be streamed"):
        StreamSource(root)


def test_a_single_folder_of_images_does_not_hide_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, "webdataset", (3,))
    write_files(tmp_path, "previews/1.png")
    assert Shards(tmp_path).files.keys() == {"train"}


def test_a_class_list_names_each_class_once(tmp_path: Path) -> None:
    """The lines are the numbers of the classes, so that none can be left out."""
    write_shards(tmp_path, "webdataset", (3,))
    (tmp_path / "classes.txt").write_text("ant\nbee\nant\n")
    with pytest.raises(ValueError, match=r"classes\.txt names ant more than once\. Expected each class once"):
        open_source(tmp_path)
