"""Every option has a rule that says whether it may change for a resumed run, and values are compared by meaning."""

import json
from typing import Any

import pytest

pytest.importorskip("lightning")

from acmix_zoo.cli.trainer import TrainingCLI
from acmix_zoo.tasks.task_classes import TASK_NAMES, task_classes
from acmix_zoo.training.option_rules import RULES, Rule, find_changes, flatten


class ParserBuilt(Exception):
    """Carries the parser out of the command line, which stops there."""


@pytest.fixture(scope="module")
def parsers() -> dict[str, Any]:
    """Return the parser of `acmix-zoo fit` for each task."""

    class ParserOnly(TrainingCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            raise ParserBuilt(self._parser("fit"))

    parsers = {}
    for task in TASK_NAMES:
        with pytest.raises(ParserBuilt) as built:
            ParserOnly("", task)
        parsers[task] = built.value.args[0]
    return parsers


def options_of(parser: Any) -> set[str]:
    """Return the options of a parser, except those that it takes from the data, such as the number of classes."""
    helpers = ("_HelpAction", "ActionConfigFile", "_ActionPrintConfig", "_ActionHelpClassPath", "_ActionConfigLoad")
    options = {action.dest for action in parser._actions if type(action).__name__ not in helpers}
    linked = {name for task in TASK_NAMES for name in task_classes(task).task.FROM_DATA}
    return {name for name in options if "-->" not in name} - {f"model.{name}" for name in linked}


def test_every_option_has_a_rule(parsers: dict[str, Any]) -> None:
    """The options are read from the parsers, so that no new option can be forgotten, not even one of Lightning."""
    options: set[str] = set()
    for parser in parsers.values():
        assert len(options_of(parser)) > 90
        options |= options_of(parser)
    assert sorted(options - RULES.keys()) == [], "give these options a rule in acmix_zoo/training/option_rules.py"
    assert sorted(RULES.keys() - options) == [], "these options no longer exist"


def test_tasks_share_their_optimiser_and_run_folder(parsers: dict[str, Any]) -> None:
    shared = set.intersection(*map(options_of, parsers.values()))
    assert {"task", "model.lr", "model.ema_decay", "model.layer_decay", "data.source", "data.batch_size"} <= shared


@pytest.mark.parametrize("task", TASK_NAMES)
def test_a_parsed_configuration_keeps_every_option(task: str, parsers: dict[str, Any]) -> None:
    config = parsers[task].parse_args(["--data.source=x", "--model.model=test_resnet", "--trainer.callbacks=null"])
    assert flatten(config).keys() == options_of(parsers[task])
    assert json.loads(json.dumps(flatten(config))) == flatten(config)


def test_equivalent_values_are_not_changes() -> None:
    recorded = {"data.mean": [0.5, 0.5], "data.classes_file": "a/b", "trainer.limit_val_batches": 1.0, "run.tag": "a"}
    given = {"data.mean": (0.5, 0.5), "data.classes_file": "./a/b", "trainer.limit_val_batches": 1, "run.tag": "b"}
    assert find_changes(recorded, given, Rule.FIXED) == {"trainer.limit_val_batches": (1.0, 1)}  # one batch, not all
    assert find_changes(recorded, given, Rule.APPLIES) == {"run.tag": ("a", "b")}
    assert find_changes({}, given, *Rule) == {}  # an option that the recording version did not have


@pytest.mark.parametrize(
    ("option", "recorded", "given", "is_same"),
    [
        ("model.warmup_epochs", 0, 0.0, True),
        ("model.lr", 1, 1.0, True),
        ("model.ema_decay", 0, False, False),
        ("model.nesterov", True, 1, False),
        ("trainer.overfit_batches", 1, 1.0, False),
        ("trainer.val_check_interval", 1.0, 1, False),
        ("model.model_kwargs", {"depths": (1, 2), "rate": 0}, {"depths": [1, 2], "rate": 0.0}, True),
        ("model.model_kwargs", {"depths": (1, 2)}, {"depths": [1, 3]}, False),
        ("model.model_kwargs", {"depths": (1, 2)}, {"depths": [1, 2], "rate": 0}, False),
    ],
)
def test_numbers_are_compared_by_value(option: str, recorded: Any, given: Any, is_same: bool) -> None:
    """Options for which an int is a count and a float is a fraction are the exception."""
    assert (find_changes({option: recorded}, {option: given}, Rule.FIXED) == {}) is is_same
