"""`StreamSource`: what is known about shards before they are read."""

from pathlib import Path

import pytest
from support.streams import SHARD_KINDS, SHARD_SIZES, make_stream, write_parquet, write_shards, write_tar

from acmix_zoo.data import open_source
from acmix_zoo.data.sources.stream_source import StreamSource
from acmix_zoo.data.stream.reader import Reader


@pytest.mark.parametrize("kind", SHARD_KINDS)
def test_sizes_classes_and_fingerprint_are_known_before_reading(tmp_path: Path, kind: str) -> None:
    write_shards(tmp_path, kind, SHARD_SIZES)
    write_shards(tmp_path, kind, (5,), split="validation")
    source = StreamSource(tmp_path)
    assert {name: split.size for name, split in source.splits.items()} == {"train": 32, "val": 5}
    names = {"parquet": ("cat", "dog", "emu"), "webdataset": ("0", "1", "2")}
    assert source.class_names == names[kind] and source.name == tmp_path.name
    before = source.fingerprint()
    assert StreamSource(tmp_path).fingerprint() == before
    write_shards(tmp_path, kind, (6,), split="validation")
    assert StreamSource(tmp_path).fingerprint() != before


@pytest.mark.parametrize("kind", SHARD_KINDS)
def test_a_stream_has_the_images_of_the_table(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    split = make_stream(tmp_path / "set", kind)
    table = open_source(tmp_path / "set").splits["train"]
    streamed = list(Reader(split, 0, 1, shuffle=0).once())
    assert [example.label for example in streamed] == table.targets.tolist()
    assert [example.image().getpixel((0, 0)) for example in streamed] == [(n, n, n) for n in range(32)]
    assert table.image(31).getpixel((0, 0)) == (31, 31, 31)


def test_class_names_of_integers_come_from_a_file(tmp_path: Path) -> None:
    write_shards(tmp_path / "set", "webdataset", (6,))
    (tmp_path / "set" / "classes.txt").write_text("ant\nbee\ncow\ndoe\n")
    assert StreamSource(tmp_path / "set").class_names == ("ant", "bee", "cow", "doe")
    (tmp_path / "own.txt").write_text("x\ny\nz\n")
    source = StreamSource(tmp_path / "set", classes_file=str(tmp_path / "own.txt"))
    assert source.class_names == ("x", "y", "z")
    assert [e.label for e in Reader(source.splits["train"], 0, 1).once()] == [0, 1, 2, 0, 1, 2]
    (tmp_path / "own.txt").write_text("x\ny\n")
    source = StreamSource(tmp_path / "set", classes_file=str(tmp_path / "own.txt"))
    with pytest.raises(ValueError, match=r"image 2 \(0002.png\) has the unknown class 2. Expected one of 2 classes"):
        list(Reader(source.splits["train"], 0, 1, shuffle=0).once())


@pytest.mark.parametrize("kind", SHARD_KINDS)
def test_a_split_without_labels_is_ignored(tmp_path: Path, kind: str) -> None:
    write_shards(tmp_path, kind, (6,))
    if kind == "parquet":
        write_parquet(tmp_path / "test-00000-of-00001.parquet", range(4), label=-1)
    else:
        write_tar(tmp_path / "set1k-test-0000.tar", range(4), classes=False)
    assert list(StreamSource(tmp_path).splits) == ["train"]


def test_unsuitable_sources_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "pets/cat").mkdir(parents=True)
    for source in (tmp_path / "pets", "fashion_mnist"):
        with pytest.raises(ValueError, match="cannot be streamed, because it is neither a table nor tar files"):
            StreamSource(source)
    write_tar(tmp_path / "bare/train-0.tar", range(3), classes=False)
    with pytest.raises(ValueError, match="no column is clearly the class column"):
        StreamSource(tmp_path / "bare")
    write_tar(tmp_path / "val/set-val-0.tar", range(3))
    with pytest.raises(ValueError, match="has no split named train, only val"):
        StreamSource(tmp_path / "val")
