"""Class folders as users have them: links, hidden files, other formats, Unicode, case and loose splits."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from support.image_data import link, write_files, write_image

from acmix_zoo.cli.data import data
from acmix_zoo.data import open_source
from acmix_zoo.data.sources.base import IndexedSource
from acmix_zoo.data.sources.image_sets import FileImages

FILES = ("cat/1.png", "cat/2.png", "dog/3.png")


BY_CLASS = {"cat": ["cat/1.png", "cat/2.png"], "dog": ["dog/3.png"]}


def paths_by_class(source: IndexedSource, split: str = "train") -> dict[str, list[str]]:
    """Return the paths of a split's images below the root, by class."""
    images = source.splits[split]
    assert isinstance(images, FileImages) and hasattr(source, "root")
    found: dict[str, list[str]] = {name: [] for name in source.class_names}
    for path, target in zip(images.paths, images.targets, strict=True):
        found[source.class_names[target]].append(os.path.relpath(path, source.root))
    return found


def remarks(root: Path) -> str:
    return "\n".join(open_source(root).remarks)


# ---- layout


def test_flat_folder(tmp_path: Path) -> None:
    root = write_files(tmp_path / "pets", "dog/1.png", "cat/1.jpg", "cat/more/2.png", ".git/x/3.png")
    (root / "cat" / "notes.txt").write_text("not an image")
    source = open_source(root)
    assert source.name == "pets" and source.class_names == ("cat", "dog")
    images = source.splits["train"]
    assert set(source.splits) == {"train"} and images.targets.tolist() == [0, 0, 1] and images.targets.dtype == np.int64
    assert images.image(0).size == (9, 8)
    before = source.fingerprint()
    write_image(root / "dog" / "2.png")
    assert open_source(root).fingerprint() != before == source.fingerprint()


def test_split_folders(tmp_path: Path) -> None:
    root = write_files(
        tmp_path, "train/a/1.png", "train/b/1.png", "valid/b/1.png", "test/a/1.png", "test/b/1.png", "test/b/2.png"
    )
    splits = open_source(root).splits
    assert {name: images.targets.tolist() for name, images in splits.items()} == {
        "train": [0, 1], "val": [1], "test": [0, 1, 1],
    }  # fmt: skip


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert open_source(write_files(tmp_path, "plane/1.png", "train/1.png")).class_names == ("plane", "train")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "contains no class folders. Expected"),
        (["1.png", "2.png"], "contains no class folders but 2 images"),
        (["cat/1.png"], "one class folder, 'cat'"),
        (["train/cat/1.png"], "one class folder, 'cat'"),
        (
            ["train/a/1.png", "train/b/1.png", "test/c/1.png"],
            "classes that the training split .*train does not have: c",
        ),
        (["val/a/1.png", "test/a/1.png"], "no train/"),
    ],
)
def test_unsuitable_folders_are_rejected(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(write_files(tmp_path, *names))


def test_two_links_to_one_folder_are_not_two_classes(tmp_path: Path) -> None:
    write_files(tmp_path, "photos/1.png", "set/a/1.png")
    for name in ("b", "c"):
        link(tmp_path / "set" / name, tmp_path / "photos")
    with pytest.raises(ValueError, match=r"contain no images: c \(the same folder as b\)"):
        open_source(tmp_path / "set")


def test_class_folders_of_folders_next_to_a_table_of_something_else(tmp_path: Path) -> None:
    write_files(tmp_path, "a/x/1.png", "a/y/2.png", "b/x/1.png")
    (tmp_path / "metadata.csv").write_text("camera,lens\nold,new\n")
    source = open_source(tmp_path)
    assert source.class_names == ("a", "b") and source.splits["train"].targets.tolist() == [0, 0, 1]


def test_a_class_folder_without_an_image_is_rejected(tmp_path: Path) -> None:
    write_files(tmp_path, "a/1.png", "b/1.png", "d/1.png")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "list.txt").write_text("nothing to see")
    with pytest.raises(ValueError, match=r"contain no images: c \(1 .txt file\)"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("one", "two"), [("val", "validation"), ("val", "valid"), ("dev", "val"), ("train", "Train"), ("test", "TEST")]
)
def test_two_names_of_a_split_are_rejected(tmp_path: Path, one: str, two: str) -> None:
    names = [f"{split}/{name}" for split in {"train", one, two} for name in FILES]
    with pytest.raises(ValueError, match=f"has both ({one} and {two}|{two} and {one}), which mean the same split"):
        open_source(write_files(tmp_path, *names))


def test_unlabelled_test_images_are_reported(tmp_path: Path) -> None:
    root = write_files(
        tmp_path, *(f"train/{name}" for name in FILES), "test/1.jpg", "test/2.jpg", "old/cat/1.png", "9.png"
    )
    source = open_source(root)
    assert set(source.splits) == {"train"}
    found = remarks(root)
    assert "test, which has 2 images but no class folders" in found and "--data.predict" in found
    assert "skipped folders next to the splits: old" in found and "skipped 1 image directly in" in found


@pytest.mark.parametrize("names", [(*FILES, "test/1.jpg"), (*FILES, "Validation/1.jpg"), ("train/1.jpg", "test/1.jpg")])
def test_a_split_folder_without_classes_is_not_a_class(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"no class folders in .*Move unlabelled images out"):
        open_source(write_files(tmp_path, *names))


def test_a_folder_around_the_classes_is_suggested(tmp_path: Path) -> None:
    root = write_files(tmp_path, *(f"archive/{name}" for name in FILES))
    with pytest.raises(ValueError, match=r"one class folder, 'archive'.*Did you mean .*/archive, which has"):
        open_source(root)


# ---- links


@pytest.mark.parametrize("target", ["..", ".", "../../loop", "../.."])
def test_a_link_to_a_parent_folder_is_not_followed(tmp_path: Path, target: str) -> None:
    root = write_files(tmp_path / "loop", *FILES)
    link(root / "cat/again", target)
    assert paths_by_class(open_source(root)) == BY_CLASS
    assert "skipped links " in remarks(root) and ": 1 (first: cat/again)" in remarks(root)


def test_a_link_to_a_parent_folder_is_not_a_class(tmp_path: Path) -> None:
    root = write_files(tmp_path / "loop", *FILES)
    link(root / "again", ".")
    assert paths_by_class(open_source(root)) == BY_CLASS
    assert "skipped links to a folder that contains them: 1 (first: again)" in remarks(root)


@pytest.mark.parametrize("target", ["../dog", "../dog/3.png", "1.png"])
def test_links_within_the_data_are_counted_once(tmp_path: Path, target: str) -> None:
    root = write_files(tmp_path / "pets", *FILES)
    link(root / f"cat/0{Path(target).suffix}", target)  # alphabetically before the real one
    assert paths_by_class(open_source(root)) == BY_CLASS
    assert "skipped links to images or folders that were already counted: 1" in remarks(root)


def test_links_out_of_the_folder_are_followed_once(tmp_path: Path) -> None:
    root = write_files(tmp_path / "pets", *FILES)
    write_files(tmp_path / "pool", "7.png", "deep/8.png")
    link(root / "dog/all", tmp_path / "pool")
    link(root / "dog/deep", tmp_path / "pool/deep")
    link(root / "dog/7.png", tmp_path / "pool/7.png")
    link(root / "emu", tmp_path / "birds")
    write_files(tmp_path / "birds", "9.png")
    link(tmp_path / "birds/self", tmp_path / "birds")
    link(root / "cat/a.png", "b.png")  # to each other
    link(root / "cat/b.png", "a.png")
    found = paths_by_class(open_source(root))
    assert found["dog"] == ["dog/3.png", "dog/7.png", "dog/all/deep/8.png"] and found["emu"] == ["emu/9.png"]
    assert found["cat"] == [
        *BY_CLASS["cat"],
        "cat/a.png",
        "cat/b.png",
    ]  # which the check before a run reports
    assert paths_by_class(open_source(root)) == found


def test_one_image_in_two_classes_is_rejected(tmp_path: Path) -> None:
    root = write_files(tmp_path / "pets", *FILES)
    write_files(tmp_path / "pool", "7.png")
    for name in ("cat", "dog"):
        link(root / name / "7.png", tmp_path / "pool/7.png")
    with pytest.raises(ValueError, match=r"cat/7\.png and .*dog/7\.png are links to the same image.*Remove one"):
        open_source(root)


def test_a_split_linked_to_another_is_reported_as_identical(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_files(tmp_path / "pets", *(f"train/{name}" for name in FILES))
    link(root / "test", "train")
    source = open_source(root)
    assert [len(images) for images in source.splits.values()] == [3, 3]
    assert data([str(root)])
    assert "Warning: 3 of the 3 test images are identical to images of train" in capsys.readouterr().out


def test_a_broken_link_has_a_fingerprint(tmp_path: Path) -> None:
    root = write_files(tmp_path / "pets", *FILES)
    link(root / "cat/gone.png", "nowhere.png")
    source = open_source(root)
    before = source.fingerprint()
    assert paths_by_class(source)["cat"] == ["cat/1.png", "cat/2.png", "cat/gone.png"]
    write_files(root / "cat", "nowhere.png")
    assert before != open_source(root).fingerprint()


# ---- skipped files


def test_hidden_and_system_files_are_skipped(tmp_path: Path) -> None:
    junk = ("__MACOSX/cat/1.png", "cat/._1.png", "cat/.DS_Store", "cat/@eaDir/1.png", ".git/cat/1.png", "cat/Thumbs.db")
    root = write_files(tmp_path / "pets", *FILES, *junk)
    source = open_source(root)
    assert source.class_names == ("cat", "dog") and paths_by_class(source) == BY_CLASS
    assert "skipped hidden files and folders: 5" in remarks(root)
    assert "skipped 1 other file: .db 1" in remarks(root)


def test_unsupported_images_are_counted_by_extension(tmp_path: Path) -> None:
    root = write_files(
        tmp_path / "pets", *FILES, "cat/4.HEIC", "dog/5.heic", "dog/6.NEF", "dog/7.svg", "dog/noext", "dog/a.txt"
    )
    found = remarks(root)
    assert "skipped 2 .heic files (first: cat/4.HEIC): to read them, `pip install pillow-heif`" in found
    assert "skipped 1 .nef file (first: dog/6.NEF): convert them to JPEG or PNG" in found
    assert "skipped 1 .svg file (first: dog/7.svg): convert" in found
    assert "skipped 1 file without an extension (first: dog/noext): if they are images, give" in found
    assert "skipped 1 other file: .txt 1" in found


def test_class_folders_of_heic_images_name_the_package_to_install(tmp_path: Path) -> None:
    root = write_files(tmp_path / "phone", "cat/1.heic", "cat/2.heic", "dog/3.heic")
    with pytest.raises(
        ValueError, match=r"cat \(2 \.heic files: to read them, `pip install pillow-heif`.*dog \(1 \.heic file:"
    ):
        open_source(root)
    with pytest.raises(ValueError, match=r"contains no class folders.*It has \.heic files: to read them, `pip install"):
        open_source(root / "cat")


def test_files_outside_of_the_classes_are_counted(tmp_path: Path) -> None:
    root = write_files(tmp_path / "pets", *FILES, "5.png", "6.jpg", "7.heic", ".hidden", "README", "classes.txt")
    assert remarks(root).splitlines() == [
        f"skipped 2 images directly in {root}, outside the class folders",
        "skipped 1 .heic file (first: 7.heic): to read them, `pip install pillow-heif`",
        "skipped hidden files and folders: 1 (first: .hidden)",
    ]
    split = write_files(
        tmp_path / "split", *(f"train/{name}" for name in FILES), "train/5.png", ".git/x", "train/.x", "6.png"
    )
    assert remarks(split).splitlines() == [
        f"skipped 1 image directly in {split}, outside the splits",
        f"skipped 1 image directly in {split}/train, outside the class folders",
        "skipped hidden files and folders: 2 (first: .git)",
    ]


# ---- names of classes


def test_accents_are_compared_in_composed_form(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert composed != decomposed
    root = write_files(
        tmp_path, f"train/{composed}/1.png", "train/dog/1.png", f"val/{decomposed}/1.png", "val/dog/1.png"
    )
    source = open_source(root)
    assert source.class_names == (composed, "dog") and source.splits["val"].targets.tolist() == [0, 1]
    write_files(root, f"train/{decomposed}/2.png")
    with pytest.raises(ValueError, match=r"two folders named 'café', .*caf\\xe9.*cafe\\u0301|.*cafe\\u0301.*caf\\xe9"):
        open_source(root)


@pytest.mark.parametrize(
    ("name", "reported"),
    [("Cat", "'Cat' (in training: 'cat')"), ("cat ", "'cat ' (in training: 'cat')"), ("c\u0430t", "c\u0430t")],
)
def test_similar_class_names_are_suggested(tmp_path: Path, name: str, reported: str) -> None:
    root = write_files(tmp_path, "train/cat/1.png", "train/dog/1.png", f"val/{name}/1.png")
    with pytest.raises(ValueError, match=r"val has classes that the training split .*train does not have: ") as error:
        open_source(root)
    assert reported in str(error.value)


def test_classes_that_differ_in_case_or_are_missing_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_files(tmp_path, "train/A/1.png", "train/a/1.png", "train/b/1.PNG", "val/b/1.png")
    assert open_source(root).class_names == ("A", "a", "b")  # they may be letters
    assert "'A' and 'a' differ only in case" in remarks(root)
    assert data([str(root)])
    assert "val has no image of the classes A, a" in capsys.readouterr().out


def test_a_class_name_that_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    root = write_files(tmp_path, *FILES)
    os.mkdir(os.fsencode(root) + b"/caf\xe9")
    with pytest.raises(ValueError, match=r"'caf\\udce9' in .* is not valid UTF-8\. Rename the folder"):
        open_source(root)
    os.rename(os.fsencode(root) + b"/caf\xe9", os.fsencode(root) + b"/cat/caf\xe9")
    os.rename(root / "cat/1.png", os.fsencode(root) + b"/cat/caf\xe9/1.png")
    assert len(open_source(root).fingerprint()) == 16  # only class names must be printable


def test_training_runs_are_neither_classes_nor_images(tmp_path: Path) -> None:
    """A run of `acmix-zoo train .` is written into runs/ of the images, with pictures of its own."""
    root = write_files(tmp_path / "photos", *FILES)
    before = open_source(root)
    for run in ("runs/photos", "mine", "cat/earlier", "of_a_program"):
        (root / run / "checkpoints").mkdir(parents=True)
        (root / run / ("checkpoints/last.ckpt" if run == "of_a_program" else "config.yaml")).touch()
        write_image(root / run / "curves.png")
    write_image(root / "runs/other/learning_rate.png")
    source = open_source(root)
    assert paths_by_class(source) == BY_CLASS and source.fingerprint() == before.fingerprint()  # type: ignore[attr-defined]
    assert source.remarks == ["skipped folders of training runs: 4 (first: cat/earlier)"]
    write_image(root / "runs/1.png")
    assert "runs" in open_source(root).class_names


def test_a_class_folder_with_nothing_but_a_run_has_no_images(tmp_path: Path) -> None:
    root = write_files(tmp_path / "photos", *FILES)
    (root / "bird/earlier/checkpoints").mkdir(parents=True)
    (root / "bird/earlier/config.yaml").touch()
    with pytest.raises(ValueError, match="bird") as error:
        open_source(root)
    assert "runs file" not in str(error.value)
