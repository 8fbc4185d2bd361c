"""`RunState`: which epoch is the best, and what a resumed run keeps of the state in its checkpoint."""

from __future__ import annotations

import pytest

pytest.importorskip("lightning")

from acmix_zoo.models.task_kinds import CLASSIFICATION
from acmix_zoo.training.run_state import RunState


def test_the_first_of_equal_epochs_is_the_best() -> None:
    """The validation loss decides between epochs with the same accuracy."""
    state = RunState()
    epochs = [(0.5, 1.0), (0.5, 1.0), (0.5, 0.9), (0.4, 0.1), (0.5, 0.9), (0.6, 2.0)]
    rows = [{"epoch": i, "val/top1": top1, "val/loss": loss} for i, (top1, loss) in enumerate(epochs, start=1)]
    assert [state.add_epoch(row, CLASSIFICATION) for row in rows] == [True, False, True, False, False, True]
    assert state.history == rows and state.best == [0.6, -2.0]


def test_without_validation_a_completed_epoch_replaces_its_first_part() -> None:
    """max_steps ended the run within epoch 2, and the resumed run completes it."""
    state = RunState()
    for row in ({"epoch": 1, "step": 6, "seconds": 1.0}, {"epoch": 2, "step": 8, "seconds": 0.5}):
        assert state.add_epoch(row, CLASSIFICATION)
    assert state.take_seconds(2) == 0.5
    assert state.add_epoch({"epoch": 2, "step": 12, "seconds": 1.0}, CLASSIFICATION)
    assert [row["step"] for row in state.history] == [6, 12]


def test_a_resumed_run_keeps_the_command_that_started_it_unless_an_option_changes() -> None:
    saved = RunState(command="first", options={"trainer.max_epochs": 2}, seed=3, epochs=2).to_dict()
    same = RunState(command="second", options={"trainer.max_epochs": 2})
    same.restore(saved, step=4)
    assert (same.command, same.seed, same.changes) == ("first", 3, [])
    longer = RunState(command="second", options={"trainer.max_epochs": 5})
    longer.restore(saved, step=4)
    assert longer.command == "second"
    assert longer.changes == [{"step": 4, "options": {"trainer.max_epochs": [2, 5]}}]


def test_a_resumed_run_whose_card_changes_is_repeated_by_the_new_command() -> None:
    """As after a trial that left the test images alone."""
    state = RunState(command="second", options={"run.test": True})
    state.restore(RunState(command="first", options={"run.test": False}).to_dict(), step=4)
    assert (state.command, state.changes) == ("second", [])
