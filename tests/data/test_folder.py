"""Realistic class folders: links, hidden files, other formats, Unicode, case, duplicate and loose splits."""

import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from acmix_zoo.cli.data import data
from acmix_zoo.data import open_source
from acmix_zoo.data.sources.base import IndexedSource
from acmix_zoo.data.sources.image_sets import FileImages


def tree(root: Path, *names: str) -> Path:
    """Create a folder of files: images of different colours, and text files for names without an image extension."""
    for number, name in enumerate(names):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix.lower() in (".png", ".jpg"):
            Image.new("RGB", (9, 8), (number, 0, 0)).save(file)
        else:
            file.write_text("text")
    return root


def link(path: Path, target: str | Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def listed(source: IndexedSource, split: str = "train") -> dict[str, list[str]]:
    """The paths of a split's images below the root, by class."""
    images = source.splits[split]
    assert isinstance(images, FileImages) and hasattr(source, "root")
    found: dict[str, list[str]] = {name: [] for name in source.class_names}
    for path, target in zip(images.paths, images.targets, strict=True):
        found[source.class_names[target]].append(os.path.relpath(path, source.root))
    return found


def remarks(root: Path) -> str:
    return "\n".join(open_source(root).remarks)


TWO = ("cat/1.png", "cat/2.png", "dog/3.png")
PLAIN = {"cat": ["cat/1.png", "cat/2.png"], "dog": ["dog/3.png"]}


# ---- links


@pytest.mark.parametrize("target", ["..", ".", "../../loop", "../.."])
def test_a_link_back_up_is_not_followed(tmp_path: Path, target: str) -> None:
    root = tree(tmp_path / "loop", *TWO)
    link(root / "cat/again", target)
    assert listed(open_source(root)) == PLAIN
    assert "skipped links " in remarks(root) and ": 1 (first: cat/again)" in remarks(root)


def test_a_link_back_up_beside_the_classes_is_no_class(tmp_path: Path) -> None:
    root = tree(tmp_path / "loop", *TWO)
    link(root / "again", ".")
    assert listed(open_source(root)) == PLAIN
    assert "skipped links back up to a folder that contains them: 1 (first: again)" in remarks(root)


@pytest.mark.parametrize("target", ["../dog", "../dog/3.png", "1.png"])
def test_what_is_linked_within_the_data_counts_where_it_is(tmp_path: Path, target: str) -> None:
    root = tree(tmp_path / "pets", *TWO)
    link(root / f"cat/0{Path(target).suffix}", target)  # comes before the real one
    assert listed(open_source(root)) == PLAIN
    assert "skipped links to images or folders that were already counted: 1" in remarks(root)


def test_links_out_of_the_folder_are_followed_once(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", *TWO)
    tree(tmp_path / "pool", "7.png", "deep/8.png")
    link(root / "dog/all", tmp_path / "pool")
    link(root / "dog/deep", tmp_path / "pool/deep")
    link(root / "dog/7.png", tmp_path / "pool/7.png")
    link(root / "emu", tmp_path / "birds")
    tree(tmp_path / "birds", "9.png")
    link(tmp_path / "birds/self", tmp_path / "birds")
    link(root / "cat/a.png", "b.png")  # to each other
    link(root / "cat/b.png", "a.png")
    found = listed(open_source(root))
    assert found["dog"] == ["dog/3.png", "dog/7.png", "dog/all/deep/8.png"] and found["emu"] == ["emu/9.png"]
    assert found["cat"] == [*PLAIN["cat"], "cat/a.png", "cat/b.png"]  # unreadable, as the check before a run reports
    assert listed(open_source(root)) == found


def test_one_image_in_two_classes_is_refused(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", *TWO)
    tree(tmp_path / "pool", "7.png")
    for name in ("cat", "dog"):
        link(root / name / "7.png", tmp_path / "pool/7.png")
    with pytest.raises(ValueError, match=r"cat/7\.png and .*dog/7\.png are links to the same image.*remove one"):
        open_source(root)


def test_a_split_that_is_linked_to_another_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(tmp_path / "pets", *(f"train/{name}" for name in TWO))
    link(root / "test", "train")
    source = open_source(root)
    assert [len(images) for images in source.splits.values()] == [3, 3]
    assert data([str(root)])
    assert "Warning: 3 of the 3 test images are identical to images of train" in capsys.readouterr().out


def test_a_dangling_link_has_a_fingerprint(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", *TWO)
    link(root / "cat/gone.png", "nowhere.png")
    source = open_source(root)
    before = source.fingerprint()
    assert listed(source)["cat"] == ["cat/1.png", "cat/2.png", "cat/gone.png"]
    tree(root / "cat", "nowhere.png")
    assert before != open_source(root).fingerprint()


# ---- what is skipped


def test_hidden_and_system_files_are_skipped(tmp_path: Path) -> None:
    junk = ("__MACOSX/cat/1.png", "cat/._1.png", "cat/.DS_Store", "cat/@eaDir/1.png", ".git/cat/1.png", "cat/Thumbs.db")
    root = tree(tmp_path / "pets", *TWO, *junk)
    source = open_source(root)
    assert source.class_names == ("cat", "dog") and listed(source) == PLAIN
    assert "skipped hidden files and folders: 5" in remarks(root)
    assert "skipped 1 other file: .db 1" in remarks(root)


def test_images_that_cannot_be_read_are_counted_by_kind(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", *TWO, "cat/4.HEIC", "dog/5.heic", "dog/6.NEF", "dog/7.svg", "dog/noext", "dog/a.txt")
    said = remarks(root)
    assert "skipped 2 .heic files (first: cat/4.HEIC): to read them, `pip install pillow-heif`" in said
    assert "skipped 1 .nef file (first: dog/6.NEF): convert them to JPEG or PNG" in said
    assert "skipped 1 .svg file (first: dog/7.svg): convert" in said
    assert "skipped 1 file without an extension (first: dog/noext): if they are images, give" in said
    assert "skipped 1 other file: .txt 1" in said


def test_class_folders_of_heic_name_the_package(tmp_path: Path) -> None:
    root = tree(tmp_path / "phone", "cat/1.heic", "cat/2.heic", "dog/3.heic")
    with pytest.raises(
        ValueError, match=r"cat \(2 \.heic files: to read them, `pip install pillow-heif`.*dog \(1 \.heic file:"
    ):
        open_source(root)
    with pytest.raises(ValueError, match=r"nothing usable.*, and \.heic files: to read them, `pip install"):
        open_source(root / "cat")


def test_what_lies_outside_of_classes_is_counted(tmp_path: Path) -> None:
    root = tree(tmp_path / "pets", *TWO, "5.png", "6.jpg", "7.heic", ".hidden", "README", "classes.txt")
    assert remarks(root).splitlines() == [
        f"skipped 2 images directly in {root}, outside the class folders",
        "skipped 1 .heic file (first: 7.heic): to read them, `pip install pillow-heif`",
        "skipped hidden files and folders: 1 (first: .hidden)",
    ]
    split = tree(tmp_path / "split", *(f"train/{name}" for name in TWO), "train/5.png", ".git/x", "train/.x", "6.png")
    assert remarks(split).splitlines() == [
        f"skipped 1 image directly in {split}, outside the splits",
        f"skipped 1 image directly in {split}/train, outside the class folders",
        "skipped hidden files and folders: 2 (first: .git)",
    ]


# ---- splits


@pytest.mark.parametrize(
    ("one", "two"), [("val", "validation"), ("val", "valid"), ("train", "Train"), ("test", "TEST")]
)
def test_two_spellings_of_a_split_are_refused(tmp_path: Path, one: str, two: str) -> None:
    names = [f"{split}/{name}" for split in {"train", one, two} for name in TWO]
    with pytest.raises(ValueError, match=f"has both ({one} and {two}|{two} and {one}), which mean the same split"):
        open_source(tree(tmp_path, *names))


def test_unlabelled_test_images_are_named(tmp_path: Path) -> None:
    root = tree(tmp_path, *(f"train/{name}" for name in TWO), "test/1.jpg", "test/2.jpg", "old/cat/1.png", "9.png")
    source = open_source(root)
    assert set(source.splits) == {"train"}
    said = remarks(root)
    assert "test: its 2 images cannot be scored without class folders" in said and "--data.predict" in said
    assert "skipped folders next to the splits: old" in said and "skipped 1 image directly in" in said


@pytest.mark.parametrize("names", [(*TWO, "test/1.jpg"), (*TWO, "Validation/1.jpg"), ("train/1.jpg", "test/1.jpg")])
def test_a_loose_split_is_no_class(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"no class folders inside.*Move unlabelled images out"):
        open_source(tree(tmp_path, *names))


def test_a_folder_around_the_classes_is_named(tmp_path: Path) -> None:
    root = tree(tmp_path, *(f"archive/{name}" for name in TWO))
    with pytest.raises(ValueError, match=r"found one class, 'archive'.*Did you mean .*/archive, which has subfolders"):
        open_source(root)


# ---- names of classes


def test_accents_are_compared_in_one_form(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert composed != decomposed
    root = tree(tmp_path, f"train/{composed}/1.png", "train/dog/1.png", f"val/{decomposed}/1.png", "val/dog/1.png")
    source = open_source(root)
    assert source.class_names == (composed, "dog") and source.splits["val"].targets.tolist() == [0, 1]
    tree(root, f"train/{decomposed}/2.png")
    with pytest.raises(ValueError, match=r"two folders named 'café', .*caf\\xe9.*cafe\\u0301|.*cafe\\u0301.*caf\\xe9"):
        open_source(root)


@pytest.mark.parametrize(
    ("name", "reported"),
    [("Cat", "'Cat' (in training: 'cat')"), ("cat ", "'cat ' (in training: 'cat')"), ("c\u0430t", "c\u0430t")],
)
def test_names_that_nearly_agree_are_shown(tmp_path: Path, name: str, reported: str) -> None:
    root = tree(tmp_path, "train/cat/1.png", "train/dog/1.png", f"val/{name}/1.png")
    with pytest.raises(ValueError, match=r"val has classes that .*train does not: ") as error:
        open_source(root)
    assert reported in str(error.value)


def test_classes_that_differ_in_case_or_are_missing_are_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tree(tmp_path, "train/A/1.png", "train/a/1.png", "train/b/1.PNG", "val/b/1.png")
    assert open_source(root).class_names == ("A", "a", "b")  # letters, perhaps
    assert "'A' and 'a' differ only in case" in remarks(root)
    assert data([str(root)])
    assert "val has no image of the classes A, a" in capsys.readouterr().out


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    root = tree(tmp_path, *TWO)
    os.mkdir(os.fsencode(root) + b"/caf\xe9")
    with pytest.raises(ValueError, match=r"'caf\\udce9' in .* is not valid UTF-8; rename the folder"):
        open_source(root)
    os.rename(os.fsencode(root) + b"/caf\xe9", os.fsencode(root) + b"/cat/caf\xe9")
    os.rename(root / "cat/1.png", os.fsencode(root) + b"/cat/caf\xe9/1.png")
    assert len(open_source(root).fingerprint()) == 16  # only class names must be printable
