"""All functions and commands that take a model, weights or a recipe accept every kind of name or raise a helpful error.

`acmix_zoo.weights.locate` decides what a name means, which tests/weights/test_locate.py covers. Here, each kind of name
is given to every entry point, and two tables state what has to come out.
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

NETWORK = "acmix_resnet_pico"
NAMES = {
    "network": NETWORK,
    "tag": f"{NETWORK}.fashion_mnist",
    "folder": "packed",
    "its file": "packed/model.safetensors",
    "its config.json": "packed/config.json",
    "finished run": "finished",
    "its config": "finished/config.yaml",
    "its weights": "finished/weights",
    "repository": "org/pico",
    "revision": "org/pico@main",
    "hf-hub": "hf-hub:org/pico",
    "interrupted run": "interrupted",
    "its checkpoints": "interrupted/checkpoints",
    "checkpoint": "interrupted/checkpoints/best.ckpt",
    "state dict": "bare.pth",
    "safetensors": "bare.safetensors",
    "recipe": "finetune/full",
    "recipe file": "mine.yaml",
    # misspelt or unknown
    "misspelt network": "acmix_resnet_pic",
    "misspelt tag": f"{NETWORK}.fashion",
    "misspelt folder": "./packd",
    "misspelt run": "finishd",
    "misspelt subfolder": "finished/weigths",
    "misspelt best.ckpt": "interrupted/checkpoints/bst.ckpt",
    "misspelt file": "bare.pt",
    "unknown repository": "org/pic",
    "unknown revision": "hf-hub:org/pico@v9",
    "misspelt recipe": "finetune/ful",
}
# Each cell is the expected outcome of passing that name to the column's functions (see `CALLS`): the loaded weights
# (shipped, trained, or new for untrained), a key of `ERRORS`, or 'closest'.
BUILDING = """
kind               | model          | weights        | pretrained     | load           | folder         | export
network            | new            | shipped        | shipped        | shipped        | shipped        | shipped
tag                | new            | shipped        | shipped        | shipped        | shipped        | shipped
folder             | shipped        | shipped        | shipped        | shipped        | shipped        | shipped
its file           | shipped        | shipped        | shipped        | shipped        | shipped        | shipped
its config.json    | shipped        | shipped        | shipped        | shipped        | shipped        | shipped
finished run       | shipped        | shipped        | shipped        | shipped        | shipped        | shipped
its config         | shipped        | shipped        | shipped        | shipped        | shipped        | shipped
its weights        | shipped        | shipped        | shipped        | shipped        | shipped        | shipped
repository         | shipped        | shipped        | shipped        | shipped        | shipped        | shipped
revision           | shipped        | shipped        | shipped        | shipped        | shipped        | shipped
hf-hub             | shipped        | shipped        | shipped        | shipped        | shipped        | shipped
interrupted run    | trained        | trained        | trained        | trained        | needs export   | trained
its checkpoints    | trained        | trained        | trained        | trained        | needs export   | trained
checkpoint         | trained        | trained        | trained        | trained        | needs export   | trained
state dict         | no network     | no network     | shipped        | shipped        | needs export   | no task
safetensors        | no network     | no network     | shipped        | shipped        | needs export   | no task
recipe             | not on the Hub | not on the Hub | not on the Hub | not on the Hub | not on the Hub | not on the Hub
recipe file        | is a recipe    | is a recipe    | is a recipe    | is a recipe    | is a recipe    | is a recipe
misspelt network   | closest        | closest        | not a tag      | closest        | closest        | closest
misspelt tag       | closest        | closest        | closest        | closest        | closest        | closest
misspelt folder    | closest        | closest        | closest        | closest        | closest        | closest
misspelt run       | closest        | closest        | closest        | closest        | closest        | closest
misspelt subfolder | closest        | closest        | closest        | closest        | closest        | closest
misspelt best.ckpt | closest        | closest        | closest        | closest        | closest        | closest
misspelt file      | closest        | closest        | closest        | closest        | closest        | closest
unknown repository | not on the Hub | not on the Hub | not on the Hub | not on the Hub | not on the Hub | not on the Hub
unknown revision   | not a revision | not a revision | not a revision | not a revision | not a revision | not a revision
misspelt recipe    | not on the Hub | not on the Hub | not on the Hub | not on the Hub | not on the Hub | not on the Hub
"""
# Here, a cell can also be the name of a recipe, a run or a checkpoint, or what `plan` calculates with.
TRAINING = """
kind               | reproduce      | plan           | config            | resume              | evaluate
network            | shipped        | network        | acmix_resnet_pico | not a checkpoint    | not a checkpoint
tag                | shipped        | network        | not a recipe      | not a checkpoint    | not a checkpoint
folder             | shipped        | network        | not a recipe      | no training state   | no training state
its file           | shipped        | network        | not a recipe      | no training state   | no training state
its config.json    | shipped        | network        | not a recipe      | no training state   | no training state
finished run       | shipped        | recipe         | finished          | no checkpoints left | no checkpoints left
its config         | shipped        | recipe         | finished          | no checkpoints left | no checkpoints left
its weights        | shipped        | network        | finished          | no checkpoints left | no checkpoints left
repository         | shipped        | network        | missing           | missing             | missing
revision           | shipped        | network        | missing           | missing             | missing
hf-hub             | shipped        | network        | not a recipe      | not a checkpoint    | not a checkpoint
interrupted run    | interrupted    | recipe         | interrupted       | best.ckpt           | best.ckpt
its checkpoints    | interrupted    | trained        | interrupted       | best.ckpt           | best.ckpt
checkpoint         | interrupted    | trained        | interrupted       | best.ckpt           | best.ckpt
state dict         | needs export   | no network     | not a recipe      | no training state   | no training state
safetensors        | needs export   | no network     | not a recipe      | no training state   | no training state
recipe             | full           | recipe         | full              | missing             | missing
recipe file        | mine           | recipe         | mine              | no training state   | no training state
misspelt network   | closest        | closest        | closest           | missing             | missing
misspelt tag       | closest        | closest        | closest           | missing             | missing
misspelt folder    | closest        | closest        | missing           | closest             | closest
misspelt run       | closest        | closest        | closest           | closest             | closest
misspelt subfolder | closest        | closest        | closest           | closest             | closest
misspelt best.ckpt | closest        | closest        | closest           | closest             | closest
misspelt file      | closest        | closest        | missing           | closest             | closest
unknown repository | not on the Hub | not on the Hub | missing           | missing             | missing
unknown revision   | not a revision | not a revision | not a recipe      | not a checkpoint    | not a checkpoint
misspelt recipe    | closest        | closest        | closest           | missing             | missing
"""
ERRORS = {
    "no network": r"does not state which network .* create_model\(NAME, pretrained=.* `acmix-zoo convert .* --model",
    "needs export": r"is not a weight folder: .*acmix-zoo export .* or with `acmix-zoo convert`",
    "no task": r"is damaged|is not a Lightning checkpoint of a task",
    "is a recipe": "mine.yaml is a recipe, which has no weights. Expected a weight folder, a run folder",
    "not a tag": f"{NETWORK} has no tag 'acmix_resnet_pic'. Expected fashion_mnist, or a weight folder",
    "not on the Hub": "is neither a path on this machine nor a repository on the Hub. Expected org/name",
    "not a revision": "org/pico has no revision 'v9'. Expected one of its branches, tags or commits",
    "missing": "does not exist. Expected (the name of a recipe|last, best, a run folder)",
    # --config
    "not a recipe": r"is (a|the) .*, which is not a recipe. Expected the name of a recipe .* weights use --model.pretr",
    # --ckpt_path
    "not a checkpoint": "is not a checkpoint. Expected last, best, a run folder .* Use --model.pretrained",
    "no training state": r"is damaged or not a checkpoint of a run. Expected last, best, .* Use --model.pretrained",
    "no checkpoints left": r"the run has no .*\.ckpt. Expected last, best, a run folder .* Use --model.pretrained",
}
# What the error for a misspelt name has to suggest.
CLOSEST = {
    "misspelt network": NETWORK, "misspelt tag": "fashion_mnist", "misspelt folder": "packed",
    "misspelt run": "finished", "misspelt subfolder": "finished/weights",
    "misspelt best.ckpt": "interrupted/checkpoints/best.ckpt", "misspelt file": "bare.pth",
    "misspelt recipe": "finetune/full",
}  # fmt: skip


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
        assert result.model.partition(".")[0] == NETWORK
        return "trained" if result.model_kwargs else "network" if result.precision == "bf16-mixed" else "recipe"
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
