"""Every function and command that takes a model or weights accepts every kind of name, or refuses it with advice.

`acmix_zoo.weights.locate` decides what a name means, which tests/weights/test_locate.py covers. Here, the same table of
names is given to every entry point, and each has to return the intended network or weights.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch
from support.hub_server import Hub, Repo
from support.weight_folders import ROOT, SHIPPED, file_contents, pico, save_checkpoint
from torch import Tensor, nn

pytest.importorskip("lightning")

from acmix_zoo import create_model, from_pretrained, load_weights
from acmix_zoo.bench.candidates import Candidate, build
from acmix_zoo.cli.classify import classify
from acmix_zoo.cli.info import info
from acmix_zoo.cli.recorded_command import find_target
from acmix_zoo.scaling.recipe import read_job
from acmix_zoo.tasks import ClassificationTask
from acmix_zoo.training.export_weights import export_run
from acmix_zoo.weights import read_config
from acmix_zoo.weights.convert_checkpoint import convert
from acmix_zoo.weights.fetch import weight_folder

NETWORK = "acmix_resnet_pico"
FOLDERS = ("tag", "folder", "its file", "finished run", "its config", "repository", "revision", "hf-hub")
CHECKPOINTS = ("interrupted run", "checkpoint")
BARE = ("state dict", "safetensors")
MISSING = ("missing name", "missing path")
NAMES = {
    "network": NETWORK,
    "tag": f"{NETWORK}.fashion_mnist",
    "folder": "folder",
    "its file": "folder/model.safetensors",
    "finished run": "finished",
    "its config": "finished/config.yaml",
    "repository": "org/pico",
    "revision": "org/pico@main",
    "hf-hub": "hf-hub:org/pico",
    "interrupted run": "interrupted",
    "checkpoint": "interrupted/checkpoints/best.ckpt",
    "state dict": "bare.pth",
    "safetensors": "bare.safetensors",
    "missing name": "acmix_resnet_pic",
    "missing path": "./nowhere",
}


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """Return the network of the interrupted run. It has four classes, and attends to 3 × 3 positions."""
    return pico(num_classes=4, kernel_att=3)


@pytest.fixture(scope="module")
def folder_with_names(tmp_path_factory: pytest.TempPathFactory, trained: nn.Module) -> Path:
    """Return a folder in which every local name exists."""
    folder = tmp_path_factory.mktemp("names")
    shutil.copytree(SHIPPED, folder / "folder")
    shutil.copytree(SHIPPED, folder / "finished" / "weights")
    save_checkpoint(folder / "interrupted/checkpoints/best.ckpt", trained, model_kwargs={"kernel_att": 3})
    for run in ("finished", "interrupted"):
        (folder / run / "config.yaml").write_text(f"model: {{model: {NETWORK}}}")
    state = safetensors.torch.load_file(SHIPPED / "model.safetensors")
    torch.save(state, folder / "bare.pth")
    safetensors.torch.save_file(state, folder / "bare.safetensors")
    return folder


@pytest.fixture
def name(request: pytest.FixtureRequest, folder_with_names: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of this kind, in a working directory where it exists."""
    monkeypatch.chdir(folder_with_names)
    found = NAMES[request.param]
    if "org/" in found:
        hub: Hub = request.getfixturevalue("hub")
        hub.repos["org/pico"] = Repo(private=False)
        hub.repos["org/pico"].commit("main", file_contents(SHIPPED))
    return found


def kinds(*groups: tuple[str, ...]) -> Any:
    return pytest.mark.parametrize("name", [kind for group in groups for kind in group], indirect=True)


@pytest.fixture
def expected(request: pytest.FixtureRequest, name: str, trained: nn.Module) -> dict[str, Tensor]:
    """Return the weights that the name refers to."""
    if name.startswith("interrupted"):
        return trained.state_dict()
    return safetensors.torch.load_file(SHIPPED / "model.safetensors")


def assert_loaded(model: nn.Module, expected: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(value, expected[key].to(value.dtype)) for key, value in state.items())


@cache
def hubconf() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hubconf_under_test", ROOT / "hubconf.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Functions that build the network that the weights name.
BY_NAME: dict[str, Callable[[str], nn.Module]] = {
    "create_model": lambda name: create_model(name, name == NAMES["tag"]),
    "from_pretrained": from_pretrained,
    "task": lambda name: ClassificationTask(name, num_classes=4 if "interrupted" in name else 10,
                                            pretrained=name == NAMES["tag"]).model,
    "bench": lambda name: build(Candidate(name)).module if name != NAMES["tag"] else from_pretrained(name),
}  # fmt: skip
# Functions that also get the name of the network, so that they accept any weight file.
AS_PRETRAINED: dict[str, Callable[[str], nn.Module]] = {
    "create_model": lambda name: create_model(NETWORK, name),
    "torch.hub": lambda name: getattr(hubconf(), NETWORK)(pretrained=name),
    "load_weights": lambda name: load_weights(
        create_model(NETWORK, num_classes=4 if "interrupted" in name else 10), name
    ),
}


class TestNetworksWithWeights:
    @kinds(FOLDERS, CHECKPOINTS)
    @pytest.mark.parametrize("build_by", BY_NAME)
    def test_weights_that_name_their_network_are_loaded(
        self, build_by: str, name: str, expected: dict[str, Tensor]
    ) -> None:
        if build_by == "bench" and "@" in name:
            pytest.skip("bench reads what follows an @ as a backend")
        assert_loaded(BY_NAME[build_by](name), expected)

    @kinds(BARE)
    @pytest.mark.parametrize("build_by", BY_NAME)
    def test_weights_that_do_not_name_their_network_are_refused(self, build_by: str, name: str) -> None:
        with pytest.raises(ValueError, match=r"does not state which network .* create_model\(NAME, pretrained="):
            BY_NAME[build_by](name)

    @kinds(FOLDERS, CHECKPOINTS, BARE)
    @pytest.mark.parametrize("build_by", AS_PRETRAINED)
    def test_weights_for_a_named_network_are_loaded(
        self, build_by: str, name: str, expected: dict[str, Tensor]
    ) -> None:
        assert_loaded(AS_PRETRAINED[build_by](name), expected)

    @kinds(("network",))
    def test_the_name_of_a_network_means_its_default_weights(self, name: str, expected: dict[str, Tensor]) -> None:
        """Only `create_model` needs `pretrained=True` for them."""
        assert not torch.equal(create_model(name).fc.weight, expected["fc.weight"].float())
        assert_loaded(create_model(name, pretrained=True), expected)
        assert_loaded(from_pretrained(name), expected)
        assert_loaded(load_weights(create_model(name), name), expected)

    @kinds(MISSING)
    @pytest.mark.parametrize("build_by", [*BY_NAME.values(), *AS_PRETRAINED.values()], ids=[*BY_NAME, *AS_PRETRAINED])
    def test_a_missing_name_is_refused(self, build_by: Callable[[str], nn.Module], name: str) -> None:
        with pytest.raises(ValueError, match=r"unknown model '|has no tag '|\./nowhere does not exist"):
            build_by(name)


class TestCommands:
    @kinds(("network",), FOLDERS)
    def test_commands_accept_everything_that_has_a_weight_folder(self, name: str, tmp_path: Path) -> None:
        """This covers verify, push, reproduce and export."""
        folder = weight_folder(name)
        assert file_contents(folder) == file_contents(SHIPPED)
        assert find_target(name).name == "acmix_resnet_pico.fashion_mnist"
        assert export_run(name, tmp_path / "copy") and file_contents(tmp_path / "copy") == file_contents(SHIPPED)

    @kinds(CHECKPOINTS)
    def test_a_checkpoint_has_to_be_exported_first(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"is not a weight folder: .*acmix-zoo export"):
            weight_folder(name)
        folder = export_run(name, tmp_path / "exported")
        assert read_config(folder)["model_args"] == {"kernel_att": 3}

    @kinds(BARE)
    def test_a_weight_file_has_to_be_converted_first(
        self, name: str, tmp_path: Path, expected: dict[str, Tensor]
    ) -> None:
        with pytest.raises(ValueError, match=r"is not a weight folder: .*acmix-zoo convert"):
            weight_folder(name)
        with pytest.raises(ValueError, match=r"is damaged|is not a Lightning checkpoint of a ClassificationTask"):
            export_run(name, tmp_path / "exported")
        assert_loaded(create_model(convert(name, NETWORK, tmp_path / "converted", {})), expected)

    @kinds(("network",), FOLDERS, CHECKPOINTS)
    def test_classify_info_and_plan_accept_every_name(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        [[(label, _), *_]] = classify([name, str(ROOT / "examples" / "ankle_boot.png"), "--top", "1"])
        assert label in ("a", "b", "c", "d") if "interrupted" in name else label[0].isupper()
        info([name])
        classes = "classes  4: a, b, c, d" if "interrupted" in name else "classes  10"
        assert classes in capsys.readouterr().out
        if name.startswith(("org/", "finished", "interrupted")) and not name.endswith(".ckpt"):
            return  # plan reads the recipe of a run folder, and takes org/name for the name of a recipe
        job = read_job(name)
        assert (job.model.partition(".")[0], job.model_kwargs) == (
            NETWORK,
            {"kernel_att": 3} if "interrupted" in name else {},
        )

    @kinds(MISSING)
    @pytest.mark.parametrize(
        "command",
        [weight_folder, find_target, lambda name: info([name]), lambda name: read_job(name).training(1)],
        ids=["verify and push", "reproduce", "info", "plan"],
    )
    def test_a_missing_name_is_refused(self, command: Callable[[str], Any], name: str) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=r"acmix_resnet_pic|nowhere"):
            command(name)
