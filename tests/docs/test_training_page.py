"""docs/training.md: commands for a CPU run in order, and those for GPUs and clusters are parsed."""

import re
from typing import Any

from support.documents import ROOT, Document, Reader

from acmix_zoo.cli.recorded_command import find_target

PAGE = Document("docs/training.md")


def needs_more_than_a_cpu(words: list[str]) -> bool:
    return words[0] != "acmix-zoo" or words[1] == "reproduce" or any("hardware/" in word for word in words)


def test_commands_for_one_cpu_run(reader: Reader) -> None:
    commands = [words[1:] for words in PAGE.commands() if not needs_more_than_a_cpu(words)]
    assert [words[0] for words in commands] == ["plan"]
    for words in commands:
        printed = reader.acmix_zoo(*words)
        assert printed.code == 0, f"{words}\n{printed.out}\n{printed.err}"
        assert printed.out


def test_commands_for_other_machines_parse(parse: Any) -> None:
    from torch.distributed.run import get_args_parser

    programs = set()
    for words in filter(needs_more_than_a_cpu, PAGE.commands()):
        programs.add(words[0])
        if words[:2] == ["acmix-zoo", "reproduce"]:
            assert "--config" in find_target(words[2]).arguments
        elif words[0] == "sbatch":
            script, recipe, *more = words[1:]
            assert (ROOT / script).is_file()
            assert parse("--config", recipe, "--config", "hardware/slurm", *more).trainer.num_nodes == 1
        else:
            assert parse(*words[words.index("fit") + 1 :]).trainer.accelerator == "gpu"
            if words[0] == "torchrun":
                get_args_parser().parse_args(words[1:])
    assert programs == {"acmix-zoo", "torchrun", "sbatch"}


def test_the_example_in_python_runs(reader: Reader) -> None:
    (snippet,) = PAGE.blocks("python")
    short = snippet.replace("max_epochs=5", 'max_epochs=1, limit_train_batches=1, accelerator="cpu"')
    assert short != snippet
    reader.python(short)


def test_every_recipe_that_is_named_exists(parse: Any) -> None:
    for name in re.findall(r"`((?:finetune|hardware|imagenet1k|fashion_mnist)/\w+)`", PAGE.text):
        assert (ROOT / f"recipes/{name}.yaml").is_file(), name
