"""Rules for the whole repository: which folder may import which, what the wheel contains, what is never committed."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import acmix_zoo
from acmix_zoo.cli.commands import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "acmix_zoo"
HEAVY = {"lightning", "pytorch_lightning", "datasets", "torchmetrics", "matplotlib", "sklearn", "tensorboard", "rich"}
# Everyone who loads a model imports these folders. Each may import itself and those before it.
LAYERS = ["ops", "layers", "models", "weights"]
MAY_IMPORT = {
    **{name: set(LAYERS[: i + 1]) for i, name in enumerate(LAYERS)},
    "data": {"data"},
    "tasks": {*LAYERS, "data", "tasks"},
    "training": {*LAYERS, "data", "tasks", "training"},
    "bench": {*LAYERS, "bench"},
    "scaling": {*LAYERS, "scaling"},
    "explain": {"ops", "layers", "explain"},
    "export": {*LAYERS, "data", "export"},
    "integrations": {*LAYERS, "integrations"},
    "app": {*LAYERS, "data", "explain", "app"},
    "cli": {*LAYERS, "data", "tasks", "training", "bench", "scaling", "explain", "export", "app", "cli"},
}


def imports(path: Path) -> set[str]:
    """Return the dotted names of everything that a file imports, at the top or within functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def folders_imported_by(part: str) -> set[str]:
    """Return the other folders that the files of a folder import. What the package exports counts as `weights`."""
    names = set().union(*(imports(path) for path in (PACKAGE / part).rglob("*.py")))
    parts = {name.split(".")[1] for name in names if name.startswith("acmix_zoo.")}
    folders = {name for name in parts if (PACKAGE / name).is_dir()}
    exports = (parts - folders) & set(acmix_zoo.__all__)
    return (folders | ({"weights"} if exports or "acmix_zoo" in names else set())) - {part}


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_arrows_point_down(part: str) -> None:
    assert folders_imported_by(part) <= MAY_IMPORT[part]
    for path in (PACKAGE / part).rglob("*.py"):
        packages = {name.split(".")[0] for name in imports(path)}
        assert not packages & {"tools", "examples", "tests"}, path
        assert part not in LAYERS or not packages & HEAVY, path


def test_ultralytics_is_only_imported_by_its_integration() -> None:
    """It is licensed under AGPL-3.0."""
    paths = [*PACKAGE.rglob("*.py"), *(ROOT / "examples").rglob("*.py"), ROOT / "hubconf.py"]
    found = {path for path in paths if "ultralytics" in {name.split(".")[0] for name in imports(path)}}
    assert found == {PACKAGE / "integrations" / "ultralytics.py"}


def test_every_folder_has_a_rule() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == MAY_IMPORT.keys()


def test_the_drawing_matches_the_imports() -> None:
    """In docs/architecture.md, every arrow stands for an import, and every import follows one or more arrows."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    drawn = set(re.findall(r"^  (\w+) --> (\w+)$", text, re.MULTILINE))
    found = {(part, other) for part in MAY_IMPORT for other in folders_imported_by(part) - {part}}
    assert not drawn - found, "arrows without an import"
    reached = set(drawn)
    while further := {(a, d) for a, b in reached for c, d in drawn if b == c} - reached:
        reached |= further
    assert not found - reached, "imports without an arrow"


def test_loading_a_model_imports_no_training_library() -> None:
    code = "import sys, acmix_zoo, acmix_zoo.layers.complexity; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "torch" in loaded and not loaded & HEAVY


def test_no_two_modules_share_a_name() -> None:
    """Neither two files nor two folders, so that a name that is read or searched for means one thing.

    Only a command's file may have the name of a folder: people type `acmix-zoo bench`, and bench/ is what it runs.
    """
    files = [path for part in ("acmix_zoo", "tools", "examples") for path in (ROOT / part).rglob("*.py")]
    modules = [path.parent if path.stem == "__init__" else path for path in files if path.stem != "__main__"]
    commands = {PACKAGE / "cli" / f"{command.function.partition(':')[0]}.py" for command in COMMANDS.values()}
    paths_by_name: dict[str, set[Path]] = {}
    for path in set(modules):
        paths_by_name.setdefault(path.stem, set()).add(path)
    for paths in paths_by_name.values():
        paths -= commands if any(path.is_dir() for path in paths) else set()
    assert len(paths_by_name) > 150
    assert not {name: paths for name, paths in paths_by_name.items() if len(paths) > 1}


def test_no_two_test_files_share_a_name() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert len(names) > 100
    assert not {name for name in names if names.count(name) > 1}


def test_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == acmix_zoo.__version__
    assert f"\nversion: {acmix_zoo.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {acmix_zoo.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_wheel_contains_code_weights_and_recipes_and_works_outside_a_clone(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
        env={
            **os.environ,
            "ACMIX_NO_NATIVE": "1",
        },  # tests/ops/backends/native/test_build.py builds the wheel with the library
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {path.relative_to(ROOT).as_posix() for ending in ("py", "csv") for path in PACKAGE.rglob(f"*.{ending}")}
    files = [path for name in ("checkpoints", "recipes") for path in (ROOT / name).rglob("*") if path.is_file()]
    assert code | {f"acmix_zoo/{path.relative_to(ROOT).as_posix()}" for path in files} <= names
    assert not [name for name in names if not name.startswith(("acmix_zoo/", "acmix_zoo-"))]

    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    installed = tmp_path / "site" / "acmix_zoo"
    script = """
import timm, acmix_zoo
from acmix_zoo.cli.recipes import config_file
from acmix_zoo.cli.recorded_command import find_target
print(timm.create_model("acmix_resnet_pico", pretrained=True).pretrained_cfg["file"])
print(find_target("acmix_resnet_pico").arguments[1])
print(config_file("finetune/folder"))
"""
    environment = {**os.environ, "PYTHONPATH": str(installed.parent)}
    found = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    weights, recorded, named = map(Path, found.stdout.split())
    assert weights.is_relative_to(installed / "checkpoints")
    assert recorded == installed / "recipes" / "fashion_mnist" / "acmix_resnet_pico.yaml"
    assert named == installed / "recipes" / "finetune" / "folder.yaml"


def test_no_large_file_and_no_pickled_weights_are_committed() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    listed = subprocess.run(["git", "ls-files"], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    files = [ROOT / name for name in listed.splitlines() if (ROOT / name).is_file()]
    assert len(files) > 20
    large = [str(path) for path in files if path.stat().st_size > 12_000_000]  # a network of 3 M parameters
    assert not large, "every torch.hub user downloads them"
    assert sum(path.stat().st_size for path in files) < 60_000_000
    assert not [str(path) for path in files if path.suffix in (".pth", ".pt", ".ckpt", ".pkl", ".bin")]
