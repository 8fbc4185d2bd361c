"""docs/training.md: what a CPU can run is run, in order; what needs a GPU or a cluster is parsed by the same parser."""

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

from test_readme import ROOT, SHORT, clone, run
from test_recipes import parse

from acmix_zoo.cli.reproduce import find_target
from tools.tables import render

__all__ = ["clone", "parse"]  # fixtures
PAGE = ROOT / "docs" / "training.md"
TEXT = PAGE.read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"^```bash\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]


def needs_more_than_a_cpu(words: list[str]) -> bool:
    return words[0] != "acmix-zoo" or words[1] == "reproduce" or any("hardware/" in word for word in words)


def test_commands_for_one_cpu_in_order(clone: Path) -> None:
    ran = []
    for words in COMMANDS:
        if needs_more_than_a_cpu(words):
            continue
        out = run([sys.executable, "-m", "acmix_zoo.cli", *words[1:], *(SHORT if words[1] == "fit" else [])], clone)
        assert out.startswith("photo.png\n") or words[1] != "classify"
        ran.append(words[1])
    assert ran == ["fit", "classify", "validate", "predict", "plan"]


def test_commands_for_other_machines_parse(parse: Any) -> None:
    seen = set()
    for words in filter(needs_more_than_a_cpu, COMMANDS):
        seen.add(words[0])
        if words[:2] == ["acmix-zoo", "reproduce"]:
            assert "--config" in find_target(words[2]).arguments
        elif words[0] == "sbatch":
            script, recipe, *more = words[1:]
            assert (ROOT / script).is_file()
            settings = parse("--config", ROOT / recipe, "--config", ROOT / "recipes/hardware/slurm.yaml", *more)
            assert settings.trainer.num_nodes == 1
        else:
            arguments = words[words.index("fit") + 1 :]
            arguments = [str(ROOT / word) if word.startswith("recipes/") else word for word in arguments]
            assert parse(*arguments).trainer.accelerator == "gpu"
            if words[0] == "torchrun":
                torchrun_parser().parse_args(words[1:])
    assert seen == {"acmix-zoo", "torchrun", "sbatch"}


def torchrun_parser() -> Any:
    from torch.distributed.run import get_args_parser

    return get_args_parser()


def test_tables_and_links_are_good() -> None:
    assert render(TEXT) == TEXT, "docs/training.md is stale: run `make readme`"
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert target.startswith("https://") or (PAGE.parent / target).exists(), target
