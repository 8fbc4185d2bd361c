"""Write a folder that runs the page as a Space on the Hugging Face Hub. It contains this package and the weights."""

from __future__ import annotations

import platform
import shutil
import tomllib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import timm
from packaging.requirements import Requirement

import acmix_zoo
from acmix_zoo.models.task_kinds import CLASSIFICATION, config_task
from acmix_zoo.weights.description import read_config
from acmix_zoo.weights.fetch import weight_folder
from acmix_zoo.weights.locate import Kind, locate
from acmix_zoo.weights.names import file_name
from acmix_zoo.weights.shipped import packaged_folder

_EXTRAS = ("train", "app")
_GRADIO = "6.31.0"  # the release that was tested, for a machine that has none

_README = """\
---
title: acmix-zoo
emoji: 🔀
colorFrom: yellow
colorTo: blue
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
license: mit
short_description: What attention and convolution see in an image
---

# acmix-zoo

Networks whose layers add attention and convolution of the same projections (ACmix, CVPR 2022): see what one makes of an
image, what each path contributed, and where a pixel attends to; compare two networks; fine-tune one on a few photos.

`acmix-zoo app --export-space` wrote this folder. The code has the MIT licence; the README.md of each weight folder in
checkpoints/ states that of the weights. To publish it, log in with `hf auth login` and run

    hf upload ORG/NAME . --repo-type space

in this folder. To run it on your own machine:

    pip install -r requirements.txt
    python app.py
"""

_APP = '''\
"""Run the page of acmix-zoo as a Space on the Hugging Face Hub."""

from acmix_zoo.cli.app import app

if __name__ == "__main__":
    app({arguments!r})
'''


def write_space(folder: Path, models: Sequence[str] = ()) -> list[str]:
    """Write README.md, app.py, requirements.txt, this package, its weights and recipes, and further weights.

    Args:
        folder: a new or empty folder.
        models: names of networks, or weights to copy into the folder.

    Returns:
        The names of what is in the folder.

    Raises:
        FileExistsError: the folder is not empty.
        ValueError, OSError: there are no such weights.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty. Expected a new folder for the Space. Choose another name")
    sources = [_find_weights(model) for model in models]
    folder.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    for model, weights in zip(models, sources, strict=True):
        if weights is None:
            names.append(model)
            continue
        stated = read_config(weights).get("acmix_zoo", {}).get("name")  # timm states none
        name = file_name(stated or Path(model).absolute().name)
        names.append(f"models/{len(names)}-{name}")
        shutil.copytree(weights, folder / names[-1])
    package = Path(acmix_zoo.__file__).parent
    unused = shutil.ignore_patterns("__pycache__", "*.so", "*.pyi")
    shutil.copytree(package, folder / "acmix_zoo", ignore=unused)
    for part in ("checkpoints", "recipes"):
        source = packaged_folder(part)
        if source and not source.is_relative_to(package):  # a wheel has them inside the package
            shutil.copytree(source, folder / part)
    python = ".".join(platform.python_version_tuple()[:2])
    (folder / "README.md").write_text(_README.format(gradio=_gradio_version(), python=python), encoding="utf-8")
    (folder / "app.py").write_text(_APP.format(arguments=[*names, "--host=0.0.0.0", "--port=7860"]), encoding="utf-8")
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in _requirements(package)), encoding="utf-8")
    return sorted(path.name for path in folder.iterdir())


def _find_weights(model: str) -> Path | None:
    """Return the weight folder to copy into the Space, or None for a network whose weights timm finds by its name.

    Raises:
        ValueError, OSError: there are no such weights, or they are not those of a classifier.
    """
    if locate(model).kind is Kind.NETWORK:
        if not timm.models.is_model_pretrained(model):
            raise ValueError(
                f"there are no weights for {model}, so the page could not start with it. Choose one of "
                "`acmix-zoo list --pretrained`, or the path of a weight folder"
            )
        return None
    weights = weight_folder(model)
    task = config_task(read_config(weights))
    if task is not CLASSIFICATION:
        raise ValueError(f"{model} is a network for {task.title}. Expected an image classifier")
    return weights


def _requirements(package: Path) -> list[str]:
    """Return what pip has to install to run the page.

    Raises:
        OSError: neither pyproject.toml nor an installed package states it.
    """
    project = package.parent / "pyproject.toml"
    if project.is_file():  # of a clone, which may be newer than what pip noted when the clone was installed
        stated = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        lines = [*stated["dependencies"], *(line for name in _EXTRAS for line in stated["optional-dependencies"][name])]
    else:
        try:
            found = [Requirement(line) for line in requires("acmix-zoo") or []]
        except PackageNotFoundError as error:
            raise OSError(
                "acmix-zoo is not installed, so its requirements are unknown. Expected an installed package or a "
                "clone. Install it with pip"
            ) from error
        extras = [{"extra": name} for name in _EXTRAS]
        lines = [str(line) for line in found if line.marker is None or any(map(line.marker.evaluate, extras))]
    return sorted(line.partition(";")[0].strip() for line in lines if not line.startswith("acmix-zoo"))


def _gradio_version() -> str:
    try:
        return version("gradio")
    except PackageNotFoundError:
        return _GRADIO
