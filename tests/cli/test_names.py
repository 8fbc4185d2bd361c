"""All functions and commands that take a model, weights or a recipe accept every kind of name or raise a helpful error.

`acmix_zoo.weights.locate` decides what a name means, which tests/weights/test_locate.py covers. Here, each kind of name
is given to every entry point. Two tables in support/named_outcomes.py state what has to come out.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from support.hub_server import Hub, Repo
from support.named_outcomes import BUILDING, CLOSEST, ERRORS, NAMES, NETWORK, TRAINING
from support.weight_folders import ROOT, SHIPPED, file_contents, pico, save_checkpoint
from torch import nn

pytest.importorskip("lightning")

from acmix_zoo import create_model, from_pretrained, load_weights
from acmix_zoo.bench.candidates import Candidate, build
from acmix_zoo.cli.checkpoint_option import find_checkpoint
from acmix_zoo.cli.classify import classify
from acmix_zoo.cli.info import info
from acmix_zoo.cli.recipes import config_file
from acmix_zoo.cli.recorded_command import Target, find_target
from acmix_zoo.scaling.jobs import Job
from acmix_zoo.scaling.recipe import read_job
from acmix_zoo.tasks import ClassificationTask
from acmix_zoo.training import RunFolder
from acmix_zoo.training.export_weights import export_run
from acmix_zoo.weights import read_config
from acmix_zoo.weights.convert_checkpoint import convert
from acmix_zoo.weights.fetch import weight_folder


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """Return the network of the interrupted run. It has four classes, and attends to 3 × 3 positions."""
    return pico(num_classes=4, kernel_att=3)


@pytest.fixture(scope="module")
def folder_with_names(tmp_path_factory: pytest.TempPathFactory, trained: nn.Module) -> Path:
    """Return a folder in which every local name exists."""
    folder = tmp_path_factory.mktemp("names")
    shutil.copytree(SHIPPED, folder / "packed")
    shutil.copytree(SHIPPED, folder / "finished" / "weights")
    save_checkpoint(folder / "interrupted/checkpoints/best.ckpt", trained, model_kwargs={"kernel_att": 3})
    for recipe in ("finished/config.yaml", "interrupted/config.yaml", "mine.yaml"):
        (folder / recipe).write_text(f"model: {{model: {NETWORK}}}\nrun: {{push_to: org/pico}}")
    state = safetensors.torch.load_file(SHIPPED / "model.safetensors")
    torch.save(state, folder / "bare.pth")
    safetensors.torch.save_file(state, folder / "bare.safetensors")
    return folder


@pytest.fixture
def name(request: pytest.FixtureRequest, folder_with_names: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of this kind, in a working directory where it exists."""
    monkeypatch.chdir(folder_with_names)
    found = NAMES[request.param]
    if found.partition("/")[0] in ("org", "hf-hub:org", "finetune"):
        hub: Hub = request.getfixturevalue("hub")
        hub.repos["org/pico"] = Repo(private=False)
        hub.repos["org/pico"].commit("main", file_contents(SHIPPED))
    return found


@cache
def hubconf() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hubconf_under_test", ROOT / "hubconf.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def num_classes(name: str) -> int:
    return 4 if name.startswith("interrupted") else 10


def find_given_checkpoint(command: str, path: str) -> Path:
    """Return the checkpoint for `--ckpt_path`."""
    config = SimpleNamespace(ckpt_path=path, trainer=SimpleNamespace(fast_dev_run=False))
    return Path(str(find_checkpoint(config, command, RunFolder("new"), command=f"--ckpt_path {path}")))


def plan(name: str) -> Job:
    """Return the job of `acmix-zoo plan`, whose network is only counted where that fails."""
    job = read_job(name)
    if name.startswith("bare"):
        job.training(1)
    return job


# The functions of each column. They get a name and a folder to write to.
CALLS: dict[str, dict[str, Callable[[str, Path], Any]]] = {
    "model": {  # a network, or weights that name it
        "create_model": lambda name, _: create_model(name),
        "fit": lambda name, _: ClassificationTask(name, num_classes=num_classes(name)).model,
        "bench": lambda name, _: build(Candidate(name)).module,
    },
    "weights": {"from_pretrained": lambda name, _: from_pretrained(name)},  # as classify and info
    "pretrained": {  # the weights of a network that is named beside them
        "create_model": lambda name, _: create_model(NETWORK, name),
        "torch.hub": lambda name, _: getattr(hubconf(), NETWORK)(pretrained=name),
        "fit": lambda name, _: ClassificationTask(NETWORK, num_classes=num_classes(name), pretrained=name).model,
    },
    "load": {"load_weights": lambda name, _: load_weights(create_model(NETWORK, num_classes=num_classes(name)), name)},
    "folder": {"verify and push": lambda name, _: weight_folder(name)},
    "export": {"export": lambda name, folder: export_run(name, folder / "exported")},
    "reproduce": {"reproduce": lambda name, _: find_target(name)},
    "plan": {"plan": lambda name, _: plan(name)},
    "config": {"fit": lambda name, _: Path(config_file(name))},
    "resume": {"fit": lambda name, _: find_given_checkpoint("fit", name)},
    "evaluate": {"test": lambda name, _: find_given_checkpoint("test", name)},
}
# The quick tests build networks for these kinds only, and do not repeat that for functions that call `create_model`.
QUICK_KINDS = ("network", "tag", "folder", "finished run", "repository", "interrupted run", "state dict")
SAME_AS_CREATE_MODEL = ("torch.hub", "fit")


def cells(table: str) -> Iterator[Any]:
    """Yield the kind of name, column, function and outcome of each call in a table."""
    header, *rows = ([cell.strip() for cell in line.split("|")] for line in table.strip().splitlines())
    assert [row[0] for row in rows] == list(NAMES)
    for kind, *outcomes in rows:
        for column, outcome in zip(header[1:], outcomes, strict=True):
            for function in CALLS[column]:
                builds = column != "folder" and table == BUILDING and outcome in ("new", "shipped", "trained")
                is_quick = kind in QUICK_KINDS and (function not in SAME_AS_CREATE_MODEL or kind == "interrupted run")
                marks = [] if is_quick or not builds else [pytest.mark.slow]
                yield pytest.param(kind, column, function, outcome, marks=marks, id=f"{kind}-{column}-{function}")


def describe(result: Any, trained: nn.Module) -> str:
    """Return the word for what a function returned."""
    if isinstance(result, nn.Module):
        state = result.state_dict()
        known = {"shipped": safetensors.torch.load_file(SHIPPED / "model.safetensors"), "trained": trained.state_dict()}
        for word, expected in known.items():
            if state.keys() == expected.keys() and all(
                torch.equal(state[key], expected[key].to(state[key].dtype)) for key in state
            ):
                return word
        return "new"
    if isinstance(result, Target):
        return "shipped" if result.name == f"{NETWORK}.fashion_mnist" else result.name
    if isinstance(result, Job):
        assert result.model.partition(".")[0] in (NETWORK, "acmix_resnet_nano")  # the latter is that of finetune/full
        if "kernel_att" in result.model_kwargs:
            return "trained"
        return "network" if result.precision == "bf16-mixed" else "recipe"
    assert isinstance(result, Path)
    if result.is_dir():
        is_shipped = file_contents(result) == file_contents(SHIPPED)
        return "shipped" if is_shipped else "trained" if read_config(result)["model_args"] == {"kernel_att": 3} else ""
    return result.parent.name if result.name == "config.yaml" else result.name.removesuffix(".yaml")


@pytest.mark.parametrize(
    ("name", "column", "function", "outcome"), [*cells(BUILDING), *cells(TRAINING)], indirect=["name"]
)
def test_outcome(
    name: str,
    column: str,
    function: str,
    outcome: str,
    request: pytest.FixtureRequest,
    trained: nn.Module,
    tmp_path: Path,
) -> None:
    call = CALLS[column][function]
    if outcome == "closest":
        right = CLOSEST[next(kind for kind, wrong in NAMES.items() if wrong == name)]
        with pytest.raises((ValueError, OSError), match=rf"closest names? (is|are) .*{re.escape(right)}"):
            call(name, tmp_path)
    elif outcome in ERRORS:
        with pytest.raises((ValueError, OSError), match=ERRORS[outcome]):
            call(name, tmp_path)
    else:
        assert describe(call(name, tmp_path), trained) == outcome


@pytest.mark.parametrize("name", ["tag", "checkpoint"], indirect=True)
def test_classify_and_info_find_the_same_weights(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    [image] = classify([str(ROOT / "examples" / "ankle_boot.png"), "--model", name, "--top", "1"])
    info([name])
    is_trained = name.startswith("interrupted")
    assert ("classes  4: a, b, c, d" if is_trained else "classes  10: T-shirt/top") in capsys.readouterr().out
    assert (image.classes[0].name in "abcd") == is_trained


@pytest.mark.parametrize("name", ["state dict", pytest.param("safetensors", marks=pytest.mark.slow)], indirect=True)
def test_weight_files_can_be_converted(name: str, tmp_path: Path, trained: nn.Module) -> None:
    assert describe(create_model(convert(name, NETWORK, tmp_path / "converted", {})), trained) == "shipped"


def test_reproducing_a_run_does_not_publish_it(folder_with_names: Path) -> None:
    config = folder_with_names / "interrupted/config.yaml"
    assert find_target(str(config.parent)).arguments == ["--config", str(config), "--run.push_to", "null"]
