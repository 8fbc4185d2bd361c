"""Where images come from: class folders, tables, shipped names; and what is said when they are not as expected."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.streams import shards, write_tar

from acmix_zoo.data import BadImage, ImageDataModule, export_folder, open_source
from acmix_zoo.data.sources import shipped
from acmix_zoo.data.sources.base import ArrayImages, match_splits
from acmix_zoo.data.sources.folder import FolderSource
from acmix_zoo.data.sources.paths import checked_path
from acmix_zoo.data.sources.shards import Shards
from acmix_zoo.data.stream.reader import Reader
from acmix_zoo.data.stream.stream_source import StreamSource
from acmix_zoo.training.record import run_cfg


def picture(path: Path, value: int = 128) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 8), (value, 0, 0)).save(path)


def tree(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        picture(root / name, number)
    return root


# ---- folders


def test_flat_folder(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", "dog/1.png", "cat/1.jpg", "cat/more/2.png", ".git/x/3.png")
    (root / "cat" / "notes.txt").write_text("not a picture")
    source = open_source(root)
    assert source.name == "pets" and source.class_names == ("cat", "dog")
    images = source.splits()["train"]
    assert (
        set(source.splits()) == {"train"} and images.targets.tolist() == [0, 0, 1] and images.targets.dtype == np.int64
    )
    assert images.image(0).size == (10, 8)
    before = source.fingerprint()
    picture(root / "dog" / "2.png")
    assert open_source(root).fingerprint() != before == source.fingerprint()


@pytest.mark.parametrize("name", ["fashion_mnist", "Fashion-MNIST", "digits"])
def test_a_folder_with_the_name_of_a_shipped_data_set(tmp_path: Path, name: str) -> None:
    """The record of a run must not say that its images are the shipped ones."""
    root = tree(tmp_path / name, "dog/1.png", "cat/1.jpg", "cat/2.png", "dog/2.png")
    described = ImageDataModule(str(root), image_size=8).describe()
    assert (described["name"], described["source"]) == (f"{name}_folder", "local folder")
    tag = run_cfg({}, {"dataset": described})["tag"]
    assert tag == f"{name}_folder".replace("-", "_")


def test_a_shipped_name_that_is_also_a_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "digits", "dog/1.png", "cat/1.jpg")
    monkeypatch.chdir(tmp_path)
    source = open_source("digits")
    assert source.class_names == tuple("0123456789")
    (remark,) = source.remarks
    assert f"not those in {tmp_path / 'digits'}; to use those, give ./digits" in remark
    assert open_source("./digits").class_names == ("cat", "dog") and not open_source("./digits").remarks


def test_split_folders(tmp_path: Path) -> None:
    root = tree(
        tmp_path, "train/a/1.png", "train/b/1.png", "valid/b/1.png", "test/a/1.png", "test/b/1.png", "test/b/2.png"
    )
    splits = open_source(root).splits()
    assert {name: images.targets.tolist() for name, images in splits.items()} == {
        "train": [0, 1], "val": [1], "test": [0, 1, 1],
    }  # fmt: skip


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert open_source(tree(tmp_path, "plane/1.png", "train/1.png")).class_names == ("plane", "train")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "nothing usable"),
        (["1.png", "2.png"], "2 images and no folder"),
        (["cat/1.png"], "one class, 'cat'"),
        (["train/cat/1.png"], "one class, 'cat'"),
        (["train/a/1.png", "train/b/1.png", "test/c/1.png"], "classes that .*train does not: c"),
        (["val/a/1.png", "test/a/1.png"], "no train/"),
    ],
)
def test_folders_that_will_not_do(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(tree(tmp_path, *names))


def test_class_folder_without_a_picture(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.png", "b/1.png", "d/1.png")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "list.txt").write_text("nothing to see")
    with pytest.raises(ValueError, match=r"without an image: c \(1 .txt file\)"):
        open_source(tmp_path)


@pytest.mark.parametrize("source", ["/nowhere/at/all", "./nowhere", "nowhere/", "a/b/c", "", "C:\\pictures"])
def test_missing_folder(source: str) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist; expected a folder, a data set id of the Hub"):
        open_source(source)


def test_a_file_is_not_a_source(tmp_path: Path) -> None:
    picture(tmp_path / "one.png")
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        open_source(tmp_path / "one.png")


# ---- tables


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def write_table(file: Path, labels: list[object], feature: object = None, **extra: list[object]) -> None:
    import datasets

    pictures = [Image.new("RGBA", (6, 5), (number, 0, 0, 255)) for number in range(len(labels))]
    features = {"image": datasets.Image(), "label": feature or datasets.ClassLabel(names=["cat", "dog", "emu"])}
    features |= {name: datasets.ClassLabel(names=["x", "y"]) for name in extra}
    columns = {"image": pictures, "label": labels, **extra}
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(file)


def test_parquet_folder(cache: Path) -> None:
    write_table(cache / "set/data/train-00000-of-00001.parquet", [0, 2, 1])
    write_table(cache / "set/data/test-00000-of-00001.parquet", [1, 1])
    source = open_source(cache / "set")
    assert source.name == "set" and source.class_names == ("cat", "dog", "emu")
    splits = source.splits()
    assert splits["train"].targets.tolist() == [0, 2, 1] and splits["test"].targets.tolist() == [1, 1]
    assert splits["train"].image(2).mode == "RGB" and splits["train"].image(2).getpixel((0, 0)) == (2, 0, 0)
    assert len(source.fingerprint()) == 16


def test_parquet_file_with_class_names_as_text(cache: Path) -> None:
    import datasets

    write_table(cache / "one.parquet", ["owl", "ant", "owl"], datasets.Value("string"))
    source = open_source(cache / "one.parquet")
    assert source.class_names == ("ant", "owl") and source.splits()["train"].targets.tolist() == [1, 0, 1]


def test_the_class_column_can_be_named(cache: Path) -> None:
    write_table(cache / "two.parquet", [0, 1], coarse=[1, 0])
    assert open_source(cache / "two.parquet").class_names == ("cat", "dog", "emu")
    assert open_source(cache / "two.parquet", "coarse").class_names == ("x", "y")
    with pytest.raises(ValueError, match="no column 'colour'; there are image, label, coarse"):
        open_source(cache / "two.parquet", "colour")


def test_tables_that_will_not_do(cache: Path) -> None:
    import datasets

    write_table(cache / "one.parquet", ["owl", "owl"], datasets.Value("string"))
    with pytest.raises(ValueError, match="1 class; expected two or more"):
        open_source(cache / "one.parquet")
    datasets.Dataset.from_dict({"text": ["a"], "label": [0]}).to_parquet(cache / "text.parquet")
    with pytest.raises(ValueError, match="one column of images, found none among text, label"):
        open_source(cache / "text.parquet")


def test_imagefolder_with_metadata(cache: Path) -> None:
    root = tree(cache / "set", "train/1.png", "train/2.png")
    rows = [{"file_name": f"{n}.png", "label": name} for n, name in ((1, "red"), (2, "black"))]
    (root / "train/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source(root)
    images = source.splits()["train"]
    assert source.class_names == ("black", "red") and sorted(images.targets.tolist()) == [0, 1]
    assert images.image(0).size == (10, 8)


def test_tar_files_of_webdataset(cache: Path) -> None:
    shards(cache / "set", "webdataset", (4, 2))
    shards(cache / "set", "webdataset", (3,), split="validation")  # the split is a word of the name
    write_tar(cache / "set/set1k-test-0000.tar", range(2), classes=False)  # published without its classes
    source = open_source(cache / "set")
    assert source.class_names == ("0", "1", "2")
    splits = source.splits()
    assert {name: images.targets.tolist() for name, images in splits.items()} == {
        "train": [0, 1, 2, 0, 1, 2], "val": [0, 1, 2],
    }  # fmt: skip
    assert splits["train"].image(5).getpixel((0, 0)) == (5, 5, 5)
    (cache / "set/classes.txt").write_text("ant\nbee\ncow\n")
    assert open_source(cache / "set").class_names == ("ant", "bee", "cow")
    assert open_source(cache / "set/set1k-train-0001.tar").splits()["train"].targets.tolist() == [1, 2]


def path_table(file: Path, *paths: str | None) -> Path:
    """A table that references its images by path, as written by `datasets` without embedded bytes."""
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
def test_a_table_names_only_images_of_its_own_folder(cache: Path, path: str, streaming: bool) -> None:
    tree(cache, "other/1.png", "set/1.png")
    path_table(cache / "set/train.parquet", "1.png", path)
    with pytest.raises(ValueError, match=r"references the image .*, which is not below .*set.*"):
        if streaming:
            split = StreamSource(cache / "set").splits["train"]
            _ = [example.image() for example in Reader(split, 0, 1, shuffle=0).once()]
        else:
            open_source(cache / "set").splits()


def test_a_table_may_name_images_beside_it(cache: Path) -> None:
    tree(cache, "set/1.png", "set/deep/2.png", "pool/3.png")
    (cache / "set/link.png").symlink_to(cache / "pool/3.png")  # a link is the owner's
    (cache / "way").symlink_to(cache / "set")
    path_table(cache / "set/train.parquet", "1.png", "deep/2.png", "link.png", str(cache / "set/1.png"), None)
    for root in (cache / "set", cache / "way", cache / "set/train.parquet"):
        images = open_source(root).splits()["train"]
        assert [images.image(n).getpixel((0, 0))[0] for n in range(4)] == [0, 1, 2, 0]  # type: ignore[index]
        with pytest.raises(BadImage, match=r"\[4\] cannot be read: its cell in the table is empty"):
            images.image(4)
        split = StreamSource(root).splits["train"]
        examples = list(Reader(split, 0, 1, shuffle=0).once())
        assert [example.image().getpixel((0, 0))[0] for example in examples[:4]] == [0, 1, 2, 0]  # type: ignore[index]


def test_images_of_the_hub_stay_with_their_data_set() -> None:
    roots = ("hf://datasets/org/set",)
    for good in ("hf://datasets/org/set@1234/a/1.png", "zip://a/1.png::hf://datasets/org/set@1234/all.zip"):
        assert checked_path(good, roots) == good
    for bad in (
        *("hf://datasets/org/set2@1/1.png", "hf://datasets/org/set@1/../../x", "/etc/hostname", "1.png"),
        *("https://x.org/1.png", "simplecache::hf://datasets/org/set@1/1.png", "file:///hf://datasets/org/set@1/x"),
    ):
        with pytest.raises(ValueError, match="which is not below hf://datasets/org/set"):
            checked_path(bad, roots)


def test_two_spellings_of_a_split_in_a_table() -> None:
    with pytest.raises(ValueError, match="set has both val and validation, which mean the same split"):
        match_splits(["train", "val", "validation"], "set")
    assert match_splits(["Training", "extra", "test"], "set") == {"train": "Training", "test": "test"}


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
@pytest.mark.parametrize(
    ("one", "two"), [("val", "validation"), ("validation", "Val"), ("data", "train"), (".", "val"), (".", ".")]
)
def test_two_places_of_a_split_in_shards_are_refused(tmp_path: Path, kind: str, one: str, two: str) -> None:
    """As with class folders, files of two splits of the same meaning are not merged silently."""
    root = tmp_path / "set"
    shards(root / "train", kind, (2,), split="part")
    assert Shards(root).files.keys() == {"train"}
    shards(root / one, kind, (2,), split="train" if one == "data" else "val")
    shards(root / two, kind, (3,), split="train" if two == "train" else "valid" if two == "." else "val")
    for open_ in (open_source, StreamSource):
        with pytest.raises(ValueError, match=r"set has both .* and .*, which belong to the same split, (val|train)"):
            open_(root)


def test_two_spellings_of_a_split_in_an_imagefolder_are_refused(cache: Path) -> None:
    root = tree(cache / "set", *(f"{split}/{n}.png" for split in ("train", "val", "validation") for n in (1, 2)))
    for split in ("train", "val", "validation"):
        rows = [{"file_name": f"{n}.png", "label": name} for n, name in ((1, "red"), (2, "black"))]
        (root / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"has both (val|validation) and \w+, which mean the same split"):
        open_source(root)


@pytest.mark.parametrize(
    ("source", "near"), [("phtos", "photos"), ("photos/trian", "photos/train"), ("fashion_mnst", "fashion_mnist")]
)
def test_a_misspelt_source_is_not_looked_for_on_the_hub(
    tmp_path: Path, source: str, near: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path, "photos/train/cat/1.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("acmix_zoo.data.sources.table.load_tables", lambda *_, **__: pytest.fail("the Hub was asked"))
    for open_ in (open_source, lambda text: StreamSource(text)):
        with pytest.raises(FileNotFoundError, match=f"source '{source}' does not exist.*Did you mean {near}"):
            open_(source)


def test_unknown_id_says_what_was_tried(cache: Path) -> None:
    # in a process of its own: HF_HUB_OFFLINE is read at import
    code = "from acmix_zoo.data import open_source; open_source('nobody/nothing-of-this-name')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache)}
    )
    place = Path.cwd() / "nobody/nothing-of-this-name"
    assert f"source 'nobody/nothing-of-this-name' is neither a folder here ({place}), nor" in done.stderr
    assert "HF_HUB_OFFLINE is set" in done.stderr


# ---- shipped


def test_fashion_mnist(fashion_mnist: str) -> None:
    source = open_source(fashion_mnist)
    train, test = (source.splits()[split] for split in ("train", "test"))
    assert (len(train), len(test), source.license) == (60_000, 10_000, "MIT")
    assert np.bincount(train.targets).tolist() == [6000] * 10
    assert isinstance(train, ArrayImages) and train.array.shape == (60_000, 1, 32, 32)
    assert train.array[:, :, :2].max() == 0 and train.array[:100, :, 2:30].max() == 255


def test_fashion_mnist_missing_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "FASHION_FOLDERS", (str(tmp_path / "not"),))
    monkeypatch.delenv("ACMIX_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        open_source("fashion_mnist")


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


def test_fashion_mnist_from_a_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACMIX_DATA", str(tmp_path))
    monkeypatch.setattr(shipped, "FASHION_FOLDERS", ())
    for part, count in (("train", 20), ("t10k", 10)):
        images = np.arange(count * 784, dtype=np.uint8).reshape(count, 28, 28)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        labels = idx(np.arange(count, dtype=np.uint8) % 10)
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    splits = open_source("fashion_mnist").splits()
    assert (len(splits["train"]), len(splits["test"])) == (20, 10)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images)[:-5])
    shipped._read_idx.cache_clear()
    with pytest.raises(ValueError, match=r"announces \(10, 28, 28\) bytes and holds 7835; install it again"):
        open_source("fashion_mnist").splits()


def test_digits() -> None:
    source = open_source("digits")
    images = source.splits()["train"]
    assert len(images) == 1797 and source.class_names == tuple("0123456789")
    assert isinstance(images, ArrayImages) and images.array.shape == (1797, 1, 8, 8) and images.array.max() == 255


# ---- export


def test_export_folder(tmp_path: Path) -> None:
    root = export_folder("digits", tmp_path / "digits", per_class={"train": 3, "test": 5}, seed=1)
    source = FolderSource(root)
    assert {split: len(images) for split, images in source.splits().items()} == {"train": 30, "test": 50}
    assert source.class_names == tuple("0123456789")
    names = [path.name for path in root.glob("*/*/*.png")]  # the name is the index in the source
    assert len(set(names)) == 80, "a picture is in both splits"
    original = open_source("digits").splits()["train"]
    for path in list(root.glob("*/*/*.png"))[::7]:
        assert int(path.parent.name) == original.targets[int(path.stem)]
        assert np.array_equal(np.asarray(Image.open(path)), original.array[int(path.stem), 0])  # type: ignore[attr-defined]
    again = export_folder("digits", tmp_path / "again", per_class={"train": 3, "test": 5}, seed=1)
    assert sorted(path.name for path in again.glob("*/*/*.png")) == sorted(names)
    with pytest.raises(FileExistsError, match="remove it"):
        export_folder("digits", root, per_class={"train": 1})


def test_export_asks_for_no_more_than_there_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"class '0' has 178 pictures in train, not 1005"):
        export_folder("digits", tmp_path / "digits", per_class={"train": 5, "test": 1000})
    assert list(tmp_path.iterdir()) == [], "nothing half-written is left"


def test_export_makes_file_names_of_class_names(tmp_path: Path, fashion_mnist: str) -> None:
    root = export_folder(fashion_mnist, tmp_path / "f", per_class={"test": 1, "train": 1})
    assert (root / "train" / "T-shirt-top").is_dir() and len(list(root.glob("test/*/*.png"))) == 10
