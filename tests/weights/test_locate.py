"""Every kind of name and path is located, and the error for a missing one names the closest names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.weight_folders import SHIPPED

from acmix_zoo import list_models
from acmix_zoo.weights.locate import (
    Kind,
    Repository,
    find_run,
    locate,
    locate_weights,
    parse_repository,
)
from acmix_zoo.weights.names import list_tags
from acmix_zoo.weights.not_found import NotFoundError

DETECTOR = "fcos_acmix_resnet_nano.bccd"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with weights of every kind. They do not have to be readable."""
    for folder in ("folder", "finished/weights", "resnet18"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text('{"architecture": "resnet18", "pretrained_cfg": {}}')
        (tmp_path / folder / "model.safetensors").touch()
    for run in ("finished", "interrupted"):
        (tmp_path / run / "checkpoints").mkdir(parents=True)
        (tmp_path / run / "config.yaml").touch()
        (tmp_path / run / "checkpoints" / "best.ckpt").touch()
    (tmp_path / "sharded" / "checkpoints" / "best.ckpt").mkdir(parents=True)
    (tmp_path / "sharded" / "checkpoints" / "best.ckpt" / ".metadata").touch()
    for file in ("mine.pth", "mine.yaml", "other/model.safetensors", "other/config.json", "foreign/x.txt"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "kind", "path", "run"),
    [
        ("acmix_resnet_pico", Kind.NETWORK, None, None),
        ("acmix_resnet_pico.fashion_mnist", Kind.NETWORK, None, None),
        ("vit_tiny_patch16_224.augreg_in21k", Kind.NETWORK, None, None),
        ("folder", Kind.WEIGHT_FOLDER, "folder", None),
        ("./folder/", Kind.WEIGHT_FOLDER, "folder", None),
        ("folder/model.safetensors", Kind.WEIGHT_FOLDER, "folder", None),
        ("folder/config.json", Kind.WEIGHT_FOLDER, "folder", None),
        ("finished", Kind.WEIGHT_FOLDER, "finished/weights", "finished"),
        ("finished/config.yaml", Kind.WEIGHT_FOLDER, "finished/weights", "finished"),
        ("finished/checkpoints", Kind.WEIGHT_FOLDER, "finished/weights", "finished"),
        ("finished/weights", Kind.WEIGHT_FOLDER, "finished/weights", "finished"),
        ("finished/checkpoints/best.ckpt", Kind.CHECKPOINT, "finished/checkpoints/best.ckpt", "finished"),
        ("interrupted", Kind.CHECKPOINT, "interrupted/checkpoints/best.ckpt", "interrupted"),
        ("interrupted/config.yaml", Kind.CHECKPOINT, "interrupted/checkpoints/best.ckpt", "interrupted"),
        ("sharded", Kind.SHARDED_CHECKPOINT, "sharded/checkpoints/best.ckpt", "sharded"),
        ("mine.pth", Kind.CHECKPOINT, "mine.pth", None),
        ("other/model.safetensors", Kind.CHECKPOINT, "other/model.safetensors", None),  # config.json of another library
    ],
)
@pytest.mark.parametrize("as_path", [False, True], ids=["str", "Path"])
def test_names_and_paths_are_located(
    here: Path, name: str, kind: Kind, path: str | None, run: str | None, as_path: bool
) -> None:
    if as_path and kind is Kind.NETWORK:
        with pytest.raises(NotFoundError, match="does not exist"):
            locate(Path(name))
        return
    location = locate(Path(name) if as_path else name)
    assert (location.kind, location.path) == (kind, Path(path) if path else None)
    assert (location.run and location.run.absolute()) == (here / run if run else None)
    assert location.name == (str(Path(name)) if as_path else name)
    architecture, _, tag = name.partition(".")
    assert (location.architecture, location.tag) == ((architecture, tag) if kind is Kind.NETWORK else ("", ""))


@pytest.mark.parametrize("prefix", ["", "hf-hub:"])
@pytest.mark.parametrize("name", ["org/name", "org/name@v1", "Org-2/some.name_3@refs"])
def test_repositories_are_located(name: str, prefix: str) -> None:
    location = locate(prefix + name)
    repo, _, revision = name.partition("@")
    assert (location.kind, location.repository) == (Kind.REPOSITORY, Repository(repo, revision or None))
    assert str(location.repository) == name


@pytest.mark.parametrize("name", ["name", "a/b/c", "org/", "or g/x", "hf-hub:name"])
def test_impossible_repositories_are_rejected(name: str) -> None:
    with pytest.raises(ValueError, match=r"Expected org/name|is not a valid repository name on"):
        parse_repository(name)


def test_a_network_takes_precedence_over_a_folder_of_the_same_name(here: Path) -> None:
    assert locate("resnet18").kind is Kind.NETWORK
    assert locate("resnet18", prefers_paths=True).path == locate("./resnet18").path == Path("resnet18")


def test_an_existing_path_takes_precedence_over_a_repository(here: Path) -> None:
    assert locate("finished/weights").kind is Kind.WEIGHT_FOLDER
    with pytest.raises(NotFoundError, match=r"finished/weight does not exist.* is finished/weights.*hf-hub:finished/"):
        locate("finished/weight")
    assert locate("hf-hub:finished/weight").kind is locate("finished/weight@v1").kind is Kind.REPOSITORY


def test_a_run_that_does_not_exist_is_not_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if there is no folder `runs` yet, or the working directory is a different one."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFoundError, match=r"runs/folder-photos does not exist.*use hf-hub:runs/folder-photos"):
        locate("runs/folder-photos")


def test_the_weights_of_a_network_are_located(here: Path) -> None:
    assert locate_weights("acmix_resnet_pico", "fashion_mnist").tag == "fashion_mnist"
    assert locate_weights("resnet18", "resnet18").path == Path("resnet18")
    assert locate_weights("acmix_resnet_pico", "org/name").kind is Kind.REPOSITORY
    with pytest.raises(NotFoundError, match=r"acmix_resnet_pico has no tag 'nobodys'\. Expected fashion_mnist, or a w"):
        locate_weights("acmix_resnet_pico", "nobodys")
    with pytest.raises(NotFoundError, match=r"nowhere\.pth does not exist"):
        locate_weights("acmix_resnet_pico", "nowhere.pth")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("acmix_resnet_pic", r"unknown model 'acmix_resnet_pic'.*closest names are acmix_resnet_pico"),
        ("acmix_resnet_pico.fashion", "acmix_resnet_pico has no tag 'fashion'. Expected fashion_mnist"),
        ("san15_patchwise.x", "`san15_patchwise` has no tag 'x': no pretrained weights .*Expected a weight folder"),
        ("resnet_50", r"unknown model.*resnet50"),
        ("interupted", r"unknown model.*closest name is interrupted"),
        ("zzzzzz", r"unknown model 'zzzzzz'.*Run `acmix-zoo list`"),
        ("mine.ckpt", r"mine\.ckpt does not exist.*closest name is mine\.pth"),
        ("./foldr", r"\./foldr does not exist. Expected a weight folder.*closest name is folder"),
        ("/no/such/place", "/no/such/place does not exist"),
        ("foreign", "foreign is a folder without weights. Expected a weight folder"),
        ("~/x", "does not exist"),
        ("mine.yaml", r"mine\.yaml is a recipe, which has no weights. Expected a weight folder, a run folder or a"),
        ("acmix_resnet_pico.fashion_mnst", "has no tag 'fashion_mnst'.*closest name is fashion_mnist"),
    ],
)
def test_a_missing_name_lists_the_closest_ones(here: Path, name: str, message: str) -> None:
    """The error is both a ValueError, as for an unknown model, and a FileNotFoundError, as for a missing path."""
    for kind in (ValueError, FileNotFoundError):
        with pytest.raises(kind, match=message):
            locate(name)


@pytest.mark.parametrize(
    ("path", "run"),
    [
        *[(f"finished{part}", "finished") for part in ("", "/config.yaml", "/weights", "/weights/model.safetensors")],
        *[(f"sharded{part}", "sharded") for part in ("", "/checkpoints", "/checkpoints/best.ckpt")],
        *[(path, None) for path in ("folder", "mine.pth", "foreign", "nowhere", ".", "sharded/checkpoints/bst.ckpt")],
    ],
)
def test_the_run_folder_that_a_path_belongs_to(here: Path, path: str, run: str | None) -> None:
    found = find_run(Path(path))
    assert (found and found.absolute()) == (here / run if run else None)


def test_shipped_weights_of_a_detector_have_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not weights of the backbone. For functions that need weights, a folder of the same name comes first."""
    monkeypatch.chdir(tmp_path)
    folder = SHIPPED.parent / DETECTOR
    for prefers_paths in (False, True):
        location = locate(DETECTOR, prefers_paths=prefers_paths)
        assert (location.kind, location.path, location.run) == (Kind.WEIGHT_FOLDER, folder, None)
    assert list_models("fcos*") == [] and DETECTOR in list_models("fcos*", pretrained=True)
    assert list_models("fcos_acmix_resnet_nano", pretrained=True) == [DETECTOR]
    assert "bccd" not in list_tags("acmix_resnet_nano")
    shutil.copytree(folder, DETECTOR)
    assert locate(DETECTOR, prefers_paths=True).path == Path(DETECTOR) and locate(DETECTOR).path == folder
    with pytest.raises(NotFoundError, match=f"unknown model 'fcos_acmix_resnet_nano.bcd'.*{DETECTOR}"):
        locate("fcos_acmix_resnet_nano.bcd")


def test_the_file_of_a_shipped_folder_is_located_as_its_folder(tmp_path: Path) -> None:
    """Without its config.json, the same file is located as a plain file."""
    assert locate(SHIPPED / "model.safetensors").path == SHIPPED
    copy = Path(shutil.copy(SHIPPED / "model.safetensors", tmp_path))
    assert locate(copy).kind is Kind.CHECKPOINT
