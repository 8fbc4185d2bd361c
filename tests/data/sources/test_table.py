"""Data sets of the `datasets` library: parquet and tar files, imagefolders with metadata, Hub ids."""

import json
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from support.hub_server import Hub, Repo
from support.image_data import write_files
from support.streams import write_shards, write_tar

from acmix_zoo.data import open_source
from acmix_zoo.data.splits import split_source


def write_table(file: Path, labels: list[object], feature: object = None, **extra: list[object]) -> None:
    import datasets

    images = [Image.new("RGBA", (6, 5), (number, 0, 0, 255)) for number in range(len(labels))]
    features = {"image": datasets.Image(), "label": feature or datasets.ClassLabel(names=["cat", "dog", "emu"])}
    features |= {name: datasets.ClassLabel(names=["x", "y"]) for name in extra}
    columns = {"image": images, "label": labels, **extra}
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(file)


def test_parquet_folder(cache: Path) -> None:
    write_table(cache / "set/data/train-00000-of-00001.parquet", [0, 2, 1])
    write_table(cache / "set/data/test-00000-of-00001.parquet", [1, 1])
    source = open_source(cache / "set")
    assert source.name == "set" and source.class_names == ("cat", "dog", "emu")
    splits = source.splits
    assert splits["train"].targets.tolist() == [0, 2, 1] and splits["test"].targets.tolist() == [1, 1]
    assert splits["train"].image(2).mode == "RGB" and splits["train"].image(2).getpixel((0, 0)) == (2, 0, 0)
    assert len(source.fingerprint()) == 16


def test_parquet_file_with_class_names_as_text(cache: Path) -> None:
    import datasets

    write_table(cache / "one.parquet", ["owl", "ant", "owl"], datasets.Value("string"))
    source = open_source(cache / "one.parquet")
    assert source.class_names == ("ant", "owl") and source.splits["train"].targets.tolist() == [1, 0, 1]


def test_the_class_column_can_be_named(cache: Path) -> None:
    write_table(cache / "two.parquet", [0, 1], coarse=[1, 0])
    assert open_source(cache / "two.parquet").class_names == ("cat", "dog", "emu")
    assert open_source(cache / "two.parquet", "coarse").class_names == ("x", "y")
    with pytest.raises(ValueError, match=r"the column 'colour' does not exist. Expected one of label, coarse"):
        open_source(cache / "two.parquet", "colour")
    with pytest.raises(ValueError, match=r"the column 'image' has no text or numbers. Expected one of label, coarse"):
        open_source(cache / "two.parquet", "image")


@pytest.mark.parametrize("kind", ["declared", "text"])
@pytest.mark.filterwarnings("error")
def test_images_without_a_class_are_left_out(cache: Path, kind: str) -> None:
    import datasets

    labels: list[object] = [0, 1, None, 2, 1] if kind == "declared" else ["ant", "bee", None, "cow", "bee"]
    write_table(cache / "set/train.parquet", labels, None if kind == "declared" else datasets.Value("string"))
    write_table(cache / "set/test.parquet", labels[:3], None if kind == "declared" else datasets.Value("string"))
    source = open_source(cache / "set")
    splits = split_source(source, val_fraction=0)
    assert splits["train"].indices.tolist() == [0, 1, 3, 4] and splits["train"].targets.tolist() == [0, 1, 2, 1]
    assert splits["test"].indices.tolist() == [0, 1]
    assert sorted(source.remarks) == [f"left out 1 image of {split} without a class" for split in ("test", "train")]


@pytest.mark.parametrize("kind", ["parquet", "metadata"])
def test_paths_with_brackets(cache: Path, kind: str) -> None:
    """`datasets` reads paths as patterns."""
    folder = cache / "photos [1]"
    if kind == "parquet":
        write_table(folder / "x[2].parquet", [0, 1, 2])
    else:
        write_files(folder, "a.png", "b.png")
        (folder / "metadata.csv").write_text("file_name,label\na.png,cat\nb.png,dog\n")
    source = open_source(folder)
    assert source.splits["train"].image(1).mode == "RGB" and source.class_names[:2] == ("cat", "dog")


def test_companion_files_of_macos_and_folders_are_no_shards(cache: Path) -> None:
    write_table(cache / "set/train.parquet", [0, 1, 2])
    (cache / "set/._train.parquet").write_bytes(b"Mac OS X")
    (cache / "set/test.parquet").mkdir()
    assert list(open_source(cache / "set").splits) == ["train"]


def test_unsuitable_tables_are_rejected(cache: Path) -> None:
    import datasets

    write_table(cache / "one.parquet", ["owl", "owl"], datasets.Value("string"))
    with pytest.raises(ValueError, match=r"1 class. Expected two or more"):
        open_source(cache / "one.parquet")
    datasets.Dataset.from_dict({"text": ["a"], "label": [0]}).to_parquet(cache / "text.parquet")
    with pytest.raises(ValueError, match="one column of images, found none among text, label"):
        open_source(cache / "text.parquet")


@pytest.mark.parametrize("labels", [[-1, -1], [1, -1]], ids=["no class at all", "some classes"])
def test_minus_one_stands_for_no_class(cache: Path, labels: list[object]) -> None:
    import datasets

    write_table(cache / "set/train.parquet", [0, 1, 1], datasets.Value("int64"))
    write_table(cache / "set/test.parquet", labels, datasets.Value("int64"))
    targets = {split: images.targets.tolist() for split, images in open_source(cache / "set").splits.items()}
    assert targets == {"train": [0, 1, 1]} | ({"test": [1, -1]} if 1 in labels else {})


def test_minus_one_may_be_a_class(cache: Path) -> None:
    import datasets

    for split in ("train", "test"):
        write_table(cache / f"set/{split}.parquet", [1, -1], datasets.Value("int64"))
    source = open_source(cache / "set")
    assert source.class_names == ("-1", "1") and source.splits["test"].targets.tolist() == [1, 0]


@pytest.mark.parametrize("kind", ["semicolons", "no file_name", "text in .cls", "damaged", "two types"])
def test_damaged_tables_are_explained(cache: Path, kind: str) -> None:
    """The errors of `datasets` and pyarrow say neither which data set it is nor what was expected."""
    import datasets

    root, expected = cache / "set", "Expected complete parquet files with the same columns, of the same types"
    if kind in ("semicolons", "no file_name"):
        write_files(root, "0.png", "1.png")
        header, between = ("file_name", ";") if kind == "semicolons" else ("image", ",")
        lines = [f"{header}{between}label", f"0.png{between}cat", f"1.png{between}dog"]
        (root / "metadata.csv").write_text("\n".join(lines) + "\n")
        expected = "Expected a metadata file with a column file_name, and commas between the columns of a CSV file"
    elif kind == "text in .cls":
        write_tar(root / "train-0.tar", [0, 1, 2], class_names=("cat", "dog", "emu"))
        expected = "Expected complete tar files in the format of WebDataset: images, and integers in files NAME.cls"
    elif kind == "damaged":
        root.mkdir()
        (root / "train.parquet").write_bytes(b"PAR1 and no table PAR1")
    else:
        write_table(root / "train-0.parquet", [0, 1], datasets.Value("int64"))
        write_table(root / "train-1.parquet", ["cat", "dog"], datasets.Value("string"))
    with pytest.raises(ValueError, match=f"^{root} cannot be read: .*{expected}"):
        open_source(root)


def test_splits_with_metadata_without_file_names_are_explained(cache: Path) -> None:
    """They are not taken for class folders."""
    root = write_files(cache / "set", *(f"{split}/{n}.png" for split in ("train", "test") for n in range(2)))
    for split in ("train", "test"):
        (root / split / "metadata.csv").write_text("file_name;label\n0.png;cat\n1.png;dog\n")
    with pytest.raises(ValueError, match="Expected a metadata file with a column file_name, and commas"):
        open_source(root)


def test_a_full_disk_is_not_taken_for_a_damaged_table(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    write_table(cache / "set/train.parquet", [0, 1, 2])

    def fail(*args: object, **kwargs: object) -> None:
        raise datasets.exceptions.DatasetGenerationError("An error occurred") from OSError(28, "No space left")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(OSError, match="No space left"):
        open_source(cache / "set")


def test_images_that_no_metadata_file_lists_are_counted(cache: Path) -> None:
    root = write_files(cache / "set", *(f"{n}.png" for n in range(4)))
    (root / "metadata.csv").write_text("file_name,label\n0.png,cat\n2.png,dog\n")
    assert open_source(root).remarks == ["left out 2 images that no metadata file of a split lists"]


@pytest.mark.parametrize(
    ("encoding", "message"), [("utf-8-sig", None), ("utf-16", r"metadata\.csv is not a UTF-8 text file")]
)
def test_the_encoding_of_metadata(cache: Path, encoding: str, message: str | None) -> None:
    root = write_files(cache / "set", "train/1.png", "train/2.png")
    (root / "train/metadata.csv").write_text("file_name,label\n1.png,red\n2.png,black\n", encoding=encoding)
    if message:
        with pytest.raises(ValueError, match=message):
            open_source(root)
    else:
        assert open_source(root).class_names == ("black", "red")


def test_classes_that_pandas_takes_for_missing_values_are_explained(cache: Path) -> None:
    root = write_files(cache / "set", *(f"{n}.png" for n in range(4)))
    labels = ["red", "black", "None", "NA"]
    (root / "metadata.csv").write_text("file_name,label\n" + "".join(f"{n}.png,{x}\n" for n, x in enumerate(labels)))
    source = open_source(root)
    assert source.class_names == ("black", "red") and len(split_source(source, val_fraction=0)["train"].indices) == 2
    assert source.remarks == [
        "left out 2 images of train without a class (in a CSV file, words such as NA, None and null stand for no class)"
    ]

    (root / "metadata.csv").write_text("file_name,label\n0.png,None\n1.png,NA\n")
    with pytest.raises(ValueError, match=r"'label' has no class for any image \(in a CSV file, words such as NA"):
        open_source(root)


@pytest.mark.parametrize(
    ("labels", "names", "targets"),
    [
        (["3", "7", "", "3"], ("3", "7"), [0, 1, -1, 0]),
        (["True", "False", "True", "True"], ("False", "True"), [1, 0, 1, 1]),
    ],
    ids=["integers", "truth values"],
)
def test_classes_that_pandas_converts(
    cache: Path, labels: list[str], names: tuple[str, ...], targets: list[int]
) -> None:
    """pandas reads integers as floats if one is missing."""
    root = write_files(cache / "set", *(f"{n}.png" for n in range(4)))
    (root / "metadata.csv").write_text("file_name,label\n" + "".join(f"{n}.png,{x}\n" for n, x in enumerate(labels)))
    source = open_source(root)
    assert source.class_names == names and source.splits["train"].targets.tolist() == targets


def test_metadata_files_with_different_types_are_explained(cache: Path) -> None:
    root = write_files(cache / "set", *(f"{split}/{n}.png" for split in ("train", "test") for n in range(2)))
    (root / "train/metadata.csv").write_text("file_name,label\n0.png,1\n1.png,cat\n")
    (root / "test/metadata.csv").write_text("file_name,label\n0.png,1\n1.png,1\n")
    with pytest.raises(
        ValueError, match=r"metadata files with columns of different types, .* Expected the same types in all\."
    ):
        open_source(root)


@pytest.mark.parametrize("kind", ["metadata", "parquet"])
def test_unusable_images_of_tables_are_found_before_a_run(cache: Path, kind: str) -> None:
    """A listed file may be missing, and the bytes in a cell may be damaged."""
    if kind == "metadata":
        root = write_files(cache / "set", *(f"{n}.png" for n in range(3)))
        (root / "metadata.csv").write_text("file_name,label\n" + "".join(f"{n}.png,{n % 2}\n" for n in range(3)))
        fingerprint = open_source(root).fingerprint()
        source = open_source(root)
        (root / "1.png").unlink()
        assert source.splits["train"].inspect([0, 1, 2]).unreadable == ["set/train[1]"]
        assert source.fingerprint() != fingerprint
    else:
        import datasets

        good = BytesIO()
        Image.new("RGB", (60, 50)).save(good, "PNG")
        rows = [
            {"image": {"bytes": good.getvalue()[:end], "path": None}, "label": n} for n, end in enumerate((None, 60))
        ]
        datasets.Dataset.from_list(rows).to_parquet(cache / "set.parquet")
        source = open_source(cache / "set.parquet")
    for thorough in (False, True):
        found = source.splits["train"].inspect(range(len(source.splits["train"])), thorough)
        (problem,) = found.problems
        assert "train[1]" in problem


def test_class_folders_with_metadata_without_classes(cache: Path) -> None:
    root = write_files(cache / "set", *(f"{name}/{n}.png" for name in ("cat", "dog") for n in range(2)))
    (root / "metadata.csv").write_text("file_name,camera\ncat/0.png,old\ndog/0.png,new\n")
    advice = r"\. To use the names of the folders as classes, rename or move metadata\.csv$"
    with pytest.raises(ValueError, match=f"label_column to one of: camera{advice}"):
        open_source(root)
    (root / "metadata.csv").write_text("file_name\ncat/0.png\ndog/0.png\n")
    with pytest.raises(ValueError, match=f"Add a column label with the classes{advice}"):
        open_source(root)


def test_an_id_on_the_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a data set has no folder on this machine."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    table = datasets.Dataset.from_dict({"image": [Image.new("RGB", (8, 8))] * 2, "label": [0, 1]}, features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"train": table})
    monkeypatch.chdir(cache)
    assert open_source("org/pets").class_names == ("cat", "dog")


def test_an_id_and_a_copy_of_its_files_have_the_same_fingerprint(
    cache: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the record of weights would not recognise the data that they were trained on."""
    import datasets

    copy = cache / "copy"
    write_table(copy / "data/train-00000-of-00001.parquet", [0, 2, 1])
    write_table(copy / "data/valid-00000-of-00001.parquet", [1, 1])
    hub.repos["org/pets"] = Repo(private=False)
    hub.repos["org/pets"].commit(
        "main", {path.relative_to(copy).as_posix(): path.read_bytes() for path in copy.rglob("*.parquet")}
    )
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(cache)
    online, local = open_source("org/pets"), open_source(copy)
    assert hub.count("resolve") > 0
    assert {name: split.targets.tolist() for name, split in online.splits.items()} == {
        "train": [0, 2, 1],
        "val": [1, 1],
    }
    assert online.fingerprint() == local.fingerprint()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("folder", [".", "train"])
def test_metadata_of_something_else_beside_class_folders_is_ignored(cache: Path, kind: str, folder: str) -> None:
    import datasets

    names = [f"{name}/{n}.png" for name in ("cat", "dog") for n in range(2)]
    root = write_files(cache / "set", *(str(Path(folder) / name) for name in names))
    rows = datasets.Dataset.from_list([{"id": n, "photographer": "me"} for n in range(4)])
    file = root / folder / f"metadata.{kind}"
    {"csv": rows.to_csv, "jsonl": rows.to_json, "parquet": rows.to_parquet}[kind](file)
    assert open_source(root).class_names == ("cat", "dog")
    rows = datasets.Dataset.from_list([{"file_name": name, "label": name[-5]} for name in names])
    {"csv": rows.to_csv, "jsonl": rows.to_json, "parquet": rows.to_parquet}[kind](file)
    assert open_source(root).class_names == ("0", "1")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_imagefolder_with_metadata(cache: Path, kind: str) -> None:
    import datasets

    root = write_files(cache / "set", "train/1.png", "train/2.png")
    rows = [{"file_name": f"{n}.png", "label": name} for n, name in ((1, "red"), (2, "black"))]
    if kind == "jsonl":
        (root / "train/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        datasets.Dataset.from_list(rows).to_parquet(root / "train/metadata.parquet")
    source = open_source(root)
    images = source.splits["train"]
    assert source.class_names == ("black", "red") and sorted(images.targets.tolist()) == [0, 1]
    assert images.image(0).size == (9, 8)


def test_two_names_of_a_split_in_an_imagefolder_are_rejected(cache: Path) -> None:
    root = write_files(cache / "set", *(f"{split}/{n}.png" for split in ("train", "val", "validation") for n in (1, 2)))
    for split in ("train", "val", "validation"):
        rows = [{"file_name": f"{n}.png", "label": name} for n, name in ((1, "red"), (2, "black"))]
        (root / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"has both (val|validation) and \w+, which mean the same split"):
        open_source(root)


def test_tar_files_of_webdataset(cache: Path) -> None:
    write_shards(cache / "set", "webdataset", (4, 2))
    write_shards(cache / "set", "webdataset", (3,), split="validation")
    write_tar(cache / "set/set1k-test-0000.tar", range(2), classes=False)  # published without labels
    source = open_source(cache / "set")
    assert source.class_names == ("0", "1", "2")
    splits = source.splits
    assert {name: images.targets.tolist() for name, images in splits.items()} == {
        "train": [0, 1, 2, 0, 1, 2], "val": [0, 1, 2],
    }  # fmt: skip
    assert splits["train"].image(5).getpixel((0, 0)) == (5, 5, 5)
    (cache / "set/classes.txt").write_text("ant\nbee\ncow\n")
    assert open_source(cache / "set").class_names == ("ant", "bee", "cow")
    assert open_source(cache / "set/set1k-train-0001.tar").splits["train"].targets.tolist() == [1, 2]


def test_an_unknown_id_is_reported_with_what_was_tried(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError) as error:
        open_source("nobody/nothing-of-this-name")
    path = Path.cwd() / "nobody/nothing-of-this-name"
    assert "could not load the source 'nobody/nothing-of-this-name'" in str(error.value)
    assert f"looked for {path}" in str(error.value) and "HF_HUB_OFFLINE is set" in str(error.value)
