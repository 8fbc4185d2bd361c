"""The folder of a Space: its header, its requirements, and that it runs without this clone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import yaml
from support.documents import ROOT

from acmix_zoo.app.space import write_space


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("space") / "new"
    weights = ROOT / "checkpoints/acmix_swin_pico.fashion_mnist"
    names = write_space(folder, [str(weights), "acmix_san_pico"])
    assert set(names) == {"README.md", "app.py", "requirements.txt", "acmix_zoo", "checkpoints", "recipes", "models"}
    return folder


def test_the_header_says_how_to_run_it(space: Path) -> None:
    _, header, text = (space / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    fields = yaml.safe_load(header)
    assert fields["sdk"] == "gradio" and fields["app_file"] == "app.py" and (space / fields["app_file"]).is_file()
    assert int(str(fields["sdk_version"]).partition(".")[0]) >= 6 and len(fields["short_description"]) <= 60
    assert fields["license"] == "mit" and "hf upload ORG/NAME . --repo-type space" in text


def test_the_requirements_are_those_of_the_extras(space: Path) -> None:
    lines = (space / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert "gradio>=6" in lines and "torch>=2.7" in lines
    names = {line.split(">")[0] for line in lines}
    assert {"timm", "lightning", "matplotlib"} <= names and not names & {"acmix-zoo", "pytest", "onnx"}


@pytest.mark.slow
def test_the_folder_is_complete_without_the_clone(space: Path) -> None:
    """It finds its own package, weights and recipes."""
    code = """
import acmix_zoo
from acmix_zoo.app.decision import load_network, shipped_examples
from acmix_zoo.weights.recipe_files import locate_recipe
print(acmix_zoo.__file__, len(shipped_examples()), locate_recipe("finetune/folder"), sep="\\n")
for name in ("models/0-acmix_swin_pico.fashion_mnist", "acmix_san_pico"):
    print(len(load_network(name).labels))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=space, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    package, examples, recipe, *classes = done.stdout.splitlines()
    assert Path(package).is_relative_to(space) and Path(recipe).is_relative_to(space)
    assert int(examples) >= 4 and classes == ["10", "10"]
    app = (space / "app.py").read_text(encoding="utf-8")
    assert "app(['models/0-acmix_swin_pico.fashion_mnist', 'acmix_san_pico', '--host=0.0.0.0'" in app


def test_a_folder_with_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(FileExistsError, match="is not empty"):
        write_space(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_weights_that_the_page_cannot_use_are_rejected(tmp_path: Path) -> None:
    """The published page would fail when it starts."""
    for model, message in (
        ("fcos_acmix_resnet_nano.bccd", "is a network for object detection. Expected an image classifier"),
        ("acmix_resnet50", "there are no weights for acmix_resnet50, so the page could not start"),
    ):
        with pytest.raises(ValueError, match=message):
            write_space(tmp_path / "new", [model])
        assert not (tmp_path / "new").exists()


def test_a_folder_that_timm_wrote_gets_its_own_name(tmp_path: Path) -> None:
    """It has no record with a name."""
    timm.models.save_for_hf(timm.create_model("acmix_resnet_pico"), tmp_path / "theirs", safe_serialization=True)
    write_space(tmp_path / "new", [str(tmp_path / "theirs")])
    assert (tmp_path / "new/models/0-theirs/model.safetensors").is_file()
