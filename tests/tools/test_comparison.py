"""The comparison trains every network that its table lacks, on the first classes of Tiny-ImageNet, and resumes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("lightning")
pytest.importorskip("datasets")

import datasets

from acmix_zoo.layers import ACmix2d
from tools import append_rows, comparison, read_table
from tools.comparison import CASES, Case, epoch_columns, main, make_subset

WORDNET_IDS = ["n03", "n01", "n04", "n02", "n08", "n07", "n06", "n05"]  # as in the data set, not in order


@pytest.fixture(scope="module")
def tiny_imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of eight classes with the columns of Tiny-ImageNet: each class has grey images of its own level."""
    folder = tmp_path_factory.mktemp("tiny")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=WORDNET_IDS)})
    for split, count in (("train", 20), ("valid", 4)):
        labels = [i % 8 for i in range(8 * count)]
        images = []
        for label in labels:
            buffer = io.BytesIO()
            Image.fromarray(np.full((64, 64, 3), 30 * label, np.uint8)).save(buffer, "PNG")
            images.append({"bytes": buffer.getvalue(), "path": None})
        table = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        table.to_parquet(folder / f"{split}.parquet")
    return folder


def test_the_subset_has_the_first_classes_by_wordnet_id(
    tiny_imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "CLASSES", 2)
    folder = make_subset(str(tiny_imagenet), tmp_path / "images")
    subset = datasets.load_dataset(str(folder))
    assert subset["train"].features["label"].names == ["n01", "n02"]
    assert {name: len(split) for name, split in subset.items()} == {"train": 40, "validation": 8}
    for row in subset["validation"]:  # class n01 was number 1 and n02 was number 3
        assert row["image"].getpixel((0, 0))[0] == {0: 30, 1: 90}[row["label"]]
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert make_subset("not read again", folder) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_an_interrupted_subset_is_written_again(
    tiny_imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "CLASSES", 2)
    original = datasets.Dataset.to_parquet

    def write_half(self: datasets.Dataset, path: Path) -> None:
        if path.stem == "validation":
            path.write_bytes(b"PAR1")
            raise KeyboardInterrupt
        original(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(datasets.Dataset, "to_parquet", write_half)
        with pytest.raises(KeyboardInterrupt):
            make_subset(str(tiny_imagenet), tmp_path / "images")
    subset = datasets.load_dataset(str(make_subset(str(tiny_imagenet), tmp_path / "images")))
    assert {name: len(split) for name, split in subset.items()} == {"train": 40, "validation": 8}


def test_epochs_are_recorded_before_a_run_counts_as_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the two tables neither loses the epochs nor records them twice."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(comparison, "CASES", CASES[:1])
    epochs = [{"epoch": float(epoch), "train/loss": 1.0, "val/top1": 0.5} for epoch in (1, 2)]
    row = {**CASES[0]._asdict(), "seed": 0, "top1": 0.5}
    monkeypatch.setattr(comparison, "train", lambda *arguments: (row, epochs))
    monkeypatch.setattr(comparison, "make_subset", lambda source, folder: folder)

    def killed_before_the_main_table(path: Path, rows: list[dict[str, object]]) -> None:
        if path == comparison.TABLE:
            raise KeyboardInterrupt
        append_rows(path, rows)

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "append_rows", killed_before_the_main_table)
        with pytest.raises(KeyboardInterrupt):
            main("source", tmp_path, only=None, seeds=[0], is_list=False)
    main("source", tmp_path, only=None, seeds=[0], is_list=False)
    assert [each["epoch"] for each in read_table(comparison.EPOCHS_TABLE)] == ["1", "2"]
    assert len(read_table(comparison.TABLE)) == 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_has_its_network(case: Case) -> None:
    network = case.build()
    assert network.num_classes == comparison.CLASSES
    layers = [module for module in network.modules() if isinstance(module, ACmix2d)]
    if case.group == "paths" and "resnet" in case.network:
        assert layers
        assert {layer.paths for layer in layers} == {case.variant}


def test_names_of_cases_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def test_alpha_and_beta_of_all_layers_are_joined_in_order() -> None:
    row = {"epoch": 3.0, "train/loss": 1.5, "val/top1": 0.25}
    row |= {"val/alpha_0": 0.5, "val/beta_0": 0.75, "val/alpha_1": 1.0, "val/beta_1": -0.25}
    assert epoch_columns(row) == {
        "epoch": "3", "train_loss": "1.5000", "val_top1": "0.2500", "alpha": "0.500 1.000", "beta": "0.750 -0.250",
    }  # fmt: skip


@pytest.mark.slow
def test_finished_runs_are_not_repeated(
    tiny_imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr(comparison, "CLASSES", 6)  # with five or fewer, there is no top-5
    monkeypatch.setattr(comparison, "EPOCHS", 2)
    monkeypatch.setattr(comparison, "BATCH", 8)
    monkeypatch.setattr(
        comparison, "CASES", (Case("paths", "acmix_resnet_pico", "both"), Case("neighbours", "resnet_pico"))
    )
    options = {"only": None, "seeds": [0], "is_list": False}
    main(str(tiny_imagenet), tmp_path / "runs", **options)
    rows = read_table(tmp_path / comparison.TABLE)
    assert [(row["network"], row["variant"], row["seed"]) for row in rows] == [
        ("acmix_resnet_pico", "both", "0"), ("resnet_pico", "", "0"),
    ]  # fmt: skip
    assert all(int(row["macs"]) > 1e6 and 0 <= float(row["top1"]) <= 1 for row in rows)
    epochs = read_table(tmp_path / comparison.EPOCHS_TABLE)
    assert [row["epoch"] for row in epochs] == ["1", "2", "1", "2"]
    assert len(epochs[0]["alpha"].split()) > 1
    assert not epochs[-1]["alpha"]
    before = (tmp_path / comparison.TABLE).read_bytes()
    capsys.readouterr()
    main(str(tiny_imagenet), tmp_path / "runs", **options)
    assert capsys.readouterr().out == ""
    assert (tmp_path / comparison.TABLE).read_bytes() == before
    main(str(tiny_imagenet), tmp_path / "runs", only=None, seeds=[0, 1], is_list=True)
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [state for _, state in lines] == ["finished", "finished", "not started", "not started"]


@pytest.mark.slow
def test_an_upgraded_network_starts_with_the_logits_of_the_trained_plain_one(
    tiny_imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain network is trained first, and not again for the second case."""
    monkeypatch.setattr(comparison, "CLASSES", 6)
    monkeypatch.setattr(comparison, "EQUAL_TIME_EPOCHS", 1)
    monkeypatch.setattr(comparison, "UPGRADE_EPOCHS", {"attention": 2, "both": 1})
    monkeypatch.setattr(comparison, "BATCH", 8)
    images = make_subset(str(tiny_imagenet), tmp_path / "images")
    first = {}
    for paths in ("attention", "both"):
        case = Case("upgrade", "acmix_swin_pico", paths)
        _, epochs = comparison.train(case, 0, images, tmp_path / f"{case.name}-seed0")
        assert len(epochs) == case.epochs
        plain = tmp_path / f"{comparison.PLAIN_SWIN.name}-seed0/checkpoints/last.ckpt"
        first.setdefault("time", plain.stat().st_mtime_ns)
        assert plain.stat().st_mtime_ns == first["time"]
        task = comparison.ComparisonTask(*case, start=str(plain), **comparison.OPTIMISER)
        task.configure_models()
        image = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
        logits = task.model.eval()(image)
        assert torch.allclose(first.setdefault("logits", logits), logits, atol=1e-6)
