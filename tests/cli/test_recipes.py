"""Recipes by name: `--config finetune/folder` works from any directory, and a wrong name lists the closest ones."""

from pathlib import Path

import pytest

from acmix_zoo.cli.main import main
from acmix_zoo.cli.recipes import config_file, with_config_files
from acmix_zoo.weights.recipe_files import find_recipe, recipe_names, recipes_root


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run the test in an empty folder outside of the clone."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shipped(name: str) -> str:
    root = recipes_root()
    assert root
    return str(root / f"{name}.yaml")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("finetune/folder", "finetune/folder"),
        ("recipes/finetune/folder.yaml", "finetune/folder"),
        ("folder", "finetune/folder"),
        ("hardware/ddp_8gpu", "hardware/ddp_8gpu"),
    ],
)
def test_recipes_are_found_from_any_directory(given: str, name: str) -> None:
    assert config_file(given) == shipped(name)
    assert with_config_files(["fit", "--config", given, f"--config={given}", "-c", given]) == [
        "fit", "--config", shipped(name), f"--config={shipped(name)}", "-c", shipped(name),
    ]  # fmt: skip


def test_every_shipped_recipe_has_a_name() -> None:
    root = recipes_root()
    assert root
    assert len(recipe_names()) == len(list(root.rglob("*.yaml")))
    assert all(find_recipe(name) == root / f"{name}.yaml" for name in recipe_names())


@pytest.mark.parametrize("name", ["f*", "finetune/f*", "[f]older", "ful?"])
def test_wildcards_are_not_expanded(name: str) -> None:
    assert find_recipe(name) is None


def test_files_and_run_folders_take_precedence_over_recipes(empty_folder: Path) -> None:
    (empty_folder / "mine.yaml").touch()
    (empty_folder / "finetune/folder").mkdir(parents=True)
    (empty_folder / "finetune/folder/config.yaml").touch()
    assert config_file("mine.yaml") == "mine.yaml"
    assert config_file("finetune/folder") == "finetune/folder/config.yaml"
    (empty_folder / "at 12:30").mkdir()
    (empty_folder / "at 12:30/config.yaml").touch()
    assert config_file("at 12:30") == "at 12:30/config.yaml", "not an address"
    for text in ("{model: {lr: 0.1" + " " * 300 + "}}", "seed_everything: 1" + " " * 300):  # too long for a file name
        assert config_file(text) == text


def test_other_options_and_yaml_text_are_left_alone() -> None:
    arguments = ["fit", "--model.model", "folder", "--data.source=folder", "--config", "{seed_everything: 1}"]
    assert with_config_files(arguments) == arguments


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("finetune/foldr", "The closest names are finetune/folder, "),
        ("fodler", "The closest name is finetune/folder"),
        ("imagenet/acmix_swin_t.yaml", "closest names are imagenet1k/acmix_swin_t"),
        ("gpu", "closest names are hardware/"),
        ("zzz", "The recipes are detect/bccd, "),
    ],
)
def test_a_wrong_name_lists_the_closest_recipes(wrong: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lightning")
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", wrong, "--data.source", "photos"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert f"acmix-zoo fit: error: --config {wrong} does not exist. Expected the name of a recipe" in error
    assert hint in error


def test_a_folder_that_is_not_a_run_is_rejected(empty_folder: Path) -> None:
    (empty_folder / "photos").mkdir()
    with pytest.raises(FileNotFoundError, match=r"photos is a folder without a config\.yaml"):
        config_file("photos")


def test_plan_accepts_the_same_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "fashion_mnist/acmix_resnet_pico", "--hardware", "hardware/fsdp", "--gpus", "8"]) == 0
    assert capsys.readouterr().out.startswith("fashion_mnist/acmix_resnet_pico: acmix_resnet_pico,")
