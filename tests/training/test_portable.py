"""Records contain no path that only exists on the machine of the run."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

from support.weight_folders import ROOT

from acmix_zoo.training.portable import portable_command
from acmix_zoo.training.record import run_record


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("--data.source=/data/ann/photos --x 1", "--data.source=photos --x 1"),
        ("--data.source {cwd}/my/photos", "--data.source ./my/photos"),  # my/photos could be a data set of the Hub
        ("--config {cwd}/recipes/finetune/folder.yaml", "--config recipes/finetune/folder.yaml"),
        ("-c {root}/recipes/finetune/folder.yaml", "-c recipes/finetune/folder.yaml"),
        ("-c /home/ann/recipes/finetune/folder.yaml", "-c folder.yaml"),  # not a shipped recipe
        ("--config '/home/ann/my recipe.yaml'", "--config 'my recipe.yaml'"),
        ("--data.source photos --run.folder ../runs/a", "--data.source photos --run.folder ../runs/a"),
        ("--data.source hf://org/name --model.pretrained org/name", None),
        ("--a '[/data/x, /data/y]'", "--a '[x, y]'"),
        ('--a \'{"dir": "/data/ann/x", "lr": 0.1}\'', '--a \'{"dir": "x", "lr": 0.1}\''),
        ("--url https://host/a/b --ratio 1/2", None),
        ("--data.source file:///home/ann/x --y=file://localhost/home/ann/z", "--data.source x --y=z"),
        ("--a '[file:///home/ann/x, a:/home/ann/y]' --b a:/home/ann/y", "--a '[x, a:y]' --b a:y"),
    ],
)
def test_paths_in_a_command_are_shortened(
    given: str, shown: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = "acmix-zoo fit " + given.replace("{cwd}", str(tmp_path)).replace("{root}", str(ROOT))
    assert portable_command(given) == (f"acmix-zoo fit {shown}" if shown else given)
    assert portable_command(portable_command(given)) == portable_command(given)


def test_paths_in_changed_options_are_shortened() -> None:
    def changes(folder: str) -> list[dict[str, Any]]:
        callbacks = [{"class_path": "a.B", "init_args": {"dirpath": folder, "every": 2}}]
        return [{"step": 4, "options": {"trainer.callbacks": [None, callbacks], "trainer.max_epochs": [2, 3]}}]

    assert run_record({"changes": changes("/home/ann/ck")}, {}, {})["changes"] == changes("ck")


def test_paths_are_shortened_in_the_root_folder_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert portable_command("acmix-zoo fit --data.source /data/ann/photos") == "acmix-zoo fit --data.source photos"
    for given in ("--data.source /data/ann/fashion_mnist", "--data.source=/data/ann/digits"):  # not shipped
        short = given.replace("/data/ann/", "./")
        assert portable_command(f"acmix-zoo fit {given}") == f"acmix-zoo fit {short}"
        assert portable_command(f"acmix-zoo fit {short}") == f"acmix-zoo fit {short}"
