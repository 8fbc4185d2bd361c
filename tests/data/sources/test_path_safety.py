"""A table may only reference images of its own data set."""

from pathlib import Path

import pytest
from support.image_data import write_files

from acmix_zoo.data import UnreadableImage, open_source
from acmix_zoo.data.sources.path_safety import checked_path
from acmix_zoo.data.sources.stream_source import StreamSource
from acmix_zoo.data.stream.reader import Reader


def write_path_table(file: Path, *paths: str | None) -> Path:
    """Write a table that references its images by path, as `datasets` does without embedded bytes."""
    import datasets
    import pyarrow as pa
    from pyarrow import parquet

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = [{"bytes": None, "path": path} for path in paths]
    table = pa.table({"image": rows, "label": [n % 2 for n in range(len(rows))]}, schema=features.arrow_schema)
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, file)
    return file


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "path", ["/etc/hostname", "../other/1.png", "http://127.0.0.1:1/1.png", "zip://a::file:///x.zip"]
)
def test_images_outside_of_the_data_set_are_rejected(cache: Path, path: str, streaming: bool) -> None:
    write_files(cache, "other/1.png", "set/1.png")
    write_path_table(cache / "set/train.parquet", "1.png", path)
    with pytest.raises(ValueError, match=r"references the image .*, which is not below .*set.*"):
        if streaming:
            split = StreamSource(cache / "set").splits["train"]
            _ = [example.image() for example in Reader(split, 0, 1, shuffle=0).once()]
        else:
            _ = open_source(cache / "set").splits


def test_images_next_to_the_table_are_read(cache: Path) -> None:
    write_files(cache, "set/1.png", "set/deep/2.png", "pool/3.png")
    (cache / "set/link.png").symlink_to(cache / "pool/3.png")  # links are allowed, because the owner created them
    (cache / "linked").symlink_to(cache / "set")
    write_path_table(cache / "set/train.parquet", "1.png", "deep/2.png", "link.png", str(cache / "set/1.png"), None)
    for root in (cache / "set", cache / "linked", cache / "set/train.parquet"):
        images = open_source(root).splits["train"]
        assert [images.image(n).getpixel((0, 0))[0] for n in range(4)] == [0, 1, 2, 0]  # type: ignore[index]
        with pytest.raises(UnreadableImage, match=r"\[4\] cannot be read: its cell in the table is empty"):
            images.image(4)
        split = StreamSource(root).splits["train"]
        examples = list(Reader(split, 0, 1, shuffle=0).once())
        assert [example.image().getpixel((0, 0))[0] for example in examples[:4]] == [0, 1, 2, 0]  # type: ignore[index]


def test_images_of_another_hub_data_set_are_rejected() -> None:
    roots = ("hf://datasets/org/set",)
    for good in ("hf://datasets/org/set@1234/a/1.png", "zip://a/1.png::hf://datasets/org/set@1234/all.zip"):
        assert checked_path(good, roots) == good
    for bad in (
        *("hf://datasets/org/set2@1/1.png", "hf://datasets/org/set@1/../../x", "/etc/hostname", "1.png"),
        *("https://x.org/1.png", "simplecache::hf://datasets/org/set@1/1.png", "file:///hf://datasets/org/set@1/x"),
    ):
        with pytest.raises(ValueError, match="which is not below hf://datasets/org/set"):
            checked_path(bad, roots)
