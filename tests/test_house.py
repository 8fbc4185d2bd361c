"""The house rules that a reader relies on: what imports what, what ships, what stays out."""

import ast
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import acmix_zoo

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "acmix_zoo"
# How a command runs and how a run ends: parts of the command line, which may use everything.
TOP = {PACKAGE / "cli.py", PACKAGE / "demo.py", PACKAGE / "training/cli.py", PACKAGE / "training/finish.py"}
HEAVY = {"lightning", "pytorch_lightning", "datasets", "torchmetrics", "matplotlib", "sklearn", "tensorboard", "rich"}
LAYERS = ["ops", "layers", "models", "weights"]  # a hub user pays for these: each may use those before it
MAY_IMPORT = {
    **{name: set(LAYERS[: i + 1]) for i, name in enumerate(LAYERS)},
    "data": {"data"},
    "training": {*LAYERS, "data", "training", "analysis"},
    "tasks": {*LAYERS, "data", "training", "tasks"},
    "analysis": {*LAYERS, "data", "training", "analysis"},
}


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout


def imports(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, at the top or in a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_arrows_point_down(part: str) -> None:
    files = sorted(set((PACKAGE / part).rglob("*.py")) - TOP)
    assert files
    for path in files:
        names = imports(path)
        for name in names:
            if name.startswith("acmix_zoo.") and (PACKAGE / name.split(".")[1]).is_dir():
                assert name.split(".")[1] in MAY_IMPORT[part], f"{path.relative_to(ROOT)} imports {name}"
            assert not name.startswith(("acmix_zoo.cli", "acmix_zoo.demo")), f"{path.relative_to(ROOT)} imports {name}"
        if part in LAYERS:
            heavy = {name.split(".")[0] for name in names} & HEAVY
            assert not heavy, f"{path.relative_to(ROOT)} imports {heavy}"


def test_hub_users_do_not_pay_for_training() -> None:
    code = "import sys, acmix_zoo; print(' '.join(sorted({m.split('.')[0] for m in sys.modules})))"
    loaded = set(python(code).split())
    assert "torch" in loaded and not loaded & HEAVY


def test_complexity_needs_no_lightning() -> None:
    assert python("import sys, acmix_zoo.layers.complexity; print('lightning' in sys.modules)").strip() == "False"


def test_version_is_stated_once_and_the_same() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == acmix_zoo.__version__
    assert f"\nversion: {acmix_zoo.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {acmix_zoo.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_wheel_carries_code_weights_and_recipes(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
        env={**os.environ, "ACMIX_NO_NATIVE": "1"},  # tests/test_native_build.py builds the wheel with the library
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py")}
    files = [path for name in ("checkpoints", "recipes") for path in (ROOT / name).rglob("*") if path.is_file()]
    assert code | {f"acmix_zoo/{path.relative_to(ROOT).as_posix()}" for path in files} <= names
    assert not [name for name in names if not name.startswith(("acmix_zoo/", "acmix_zoo-"))]

    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    name = "acmix_resnet_pico"
    load = f"import timm, acmix_zoo; print(timm.create_model({name!r}, pretrained=True).pretrained_cfg['file'])"
    load += f"; from acmix_zoo.cli_reproduce import find_target; print(find_target({name!r}).arguments[1])"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    found = subprocess.run(
        [sys.executable, "-c", load], check=True, capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    file, recipe = map(Path, found.stdout.split())
    assert file.is_relative_to(tmp_path / "site" / "acmix_zoo" / "checkpoints")
    assert recipe == tmp_path / "site" / "acmix_zoo" / "recipes" / "fashion_mnist" / f"{name}.yaml"


def test_nothing_large_or_foreign_is_tracked() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    listed = subprocess.run(["git", "ls-files"], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    files = [ROOT / name for name in listed.splitlines() if (ROOT / name).is_file()]
    assert len(files) > 20
    large = [str(path) for path in files if path.stat().st_size > 5_000_000]
    assert not large, "every torch.hub user downloads them"
    assert not [str(path) for path in files if path.suffix in (".pth", ".pt", ".ckpt", ".pkl", ".bin")]
