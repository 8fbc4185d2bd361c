"""`open_source`: what a name or path means, and the errors for one that means nothing."""

from pathlib import Path

import pytest
from support.image_data import write_files, write_image

from acmix_zoo.data import ImageDataModule, open_source
from acmix_zoo.data.sources.split_names import match_splits
from acmix_zoo.data.sources.stream_source import StreamSource
from acmix_zoo.training.record import run_cfg


@pytest.mark.parametrize("source", ["/nowhere/at/all", "./nowhere", "nowhere/", "a/b/c", "C:\\pictures"])
def test_a_missing_folder_is_reported(source: str) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"does not exist.* Expected one of fashion_mnist, digits; .* the id of a Hub data set",
    ):
        open_source(source)


def test_a_file_of_an_unknown_kind_is_rejected(tmp_path: Path) -> None:
    write_image(tmp_path / "one.png")
    with pytest.raises(ValueError, match=r"is a file of an unknown kind. Expected .*; a folder of class folders"):
        open_source(tmp_path / "one.png")
    with pytest.raises(FileNotFoundError, match="the name of the data set is empty"):
        open_source("")


@pytest.mark.parametrize(
    ("source", "near"), [("phtos", "photos"), ("photos/trian", "photos/train"), ("fashion_mnst", "fashion_mnist")]
)
def test_a_misspelt_path_is_not_looked_for_on_the_hub(
    tmp_path: Path, source: str, near: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, "photos/train/cat/1.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("the Hub was asked"))
    for open_ in (open_source, lambda text: StreamSource(text)):
        with pytest.raises(FileNotFoundError, match=f"data set '{source}' does not exist.*Did you mean {near}"):
            open_(source)


def test_a_shipped_name_takes_precedence_over_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path / "digits", "dog/1.png", "cat/1.jpg")
    monkeypatch.chdir(tmp_path)
    source = open_source("digits")
    assert source.class_names == tuple("0123456789")
    (remark,) = source.remarks
    assert f"not those in {tmp_path / 'digits'}. For those, use ./digits" in remark
    assert open_source("./digits").class_names == ("cat", "dog") and not open_source("./digits").remarks


@pytest.mark.parametrize("name", ["fashion_mnist", "Fashion-MNIST", "digits"])
def test_a_folder_named_like_a_shipped_data_set_gets_another_name(tmp_path: Path, name: str) -> None:
    """The record of a run must not say that its images are the shipped ones."""
    root = write_files(tmp_path / name, "dog/1.png", "cat/1.jpg", "cat/2.png", "dog/2.png")
    described = ImageDataModule(str(root), image_size=8).describe()
    assert (described["name"], described["source"]) == (f"{name}_folder", "local folder")
    tag = run_cfg({}, {"dataset": described})["tag"]
    assert tag == f"{name}_folder".replace("-", "_")


def test_two_names_of_a_split_are_rejected() -> None:
    with pytest.raises(ValueError, match="set has both val and validation, which mean the same split"):
        match_splits(["train", "val", "validation"], "set")
    assert match_splits(["Training", "extra", "test"], "set") == {"train": "Training", "test": "test"}
    assert match_splits(["train", "dev"], "set") == {"train": "train", "val": "dev"}
