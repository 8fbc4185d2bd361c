"""Which options may change when a run is resumed: a rule for every option of `acmix-zoo fit`.

The record of a run states the options that its weights were trained with. Changing an option that affects the result is
therefore refused on resume. Otherwise one part of the training would use the old value and another part the new one,
and the record would describe a run that never took place. tests/test_resume.py fails if an option has no rule here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch


class Rule(Enum):
    """What happens when a run is resumed with a different value of an option."""

    FIXED = "refused: the result depends on it"
    APPLIES = "takes effect from here on; the record lists the change"
    COMPARED = "the data module accepts or refuses it, because it knows whether images and steps stay the same"
    FREE = "takes effect; the result does not depend on it"


_RULES = {
    Rule.FIXED: """
        seed_everything
        model.model model.pretrained model.model_kwargs model.linear_probe model.ema_decay
        model.optimizer model.lr model.lr_batch model.weight_decay model.momentum model.nesterov
        model.warmup_epochs model.warmup_lr model.min_lr model.label_smoothing model.layer_decay
        data.image_size data.mean data.std data.interpolation data.crop_pct data.augment data.shift data.hflip
        data.random_erasing data.repeats data.mixup data.cutmix data.seed
        data.val_fraction data.label_column data.streaming data.epoch_images data.classes_file
        trainer.precision trainer.gradient_clip_val trainer.gradient_clip_algorithm trainer.sync_batchnorm
        trainer.limit_train_batches trainer.overfit_batches trainer.reload_dataloaders_every_n_epochs
        trainer.limit_val_batches trainer.val_check_interval trainer.check_val_every_n_epoch
        """,  # the last line affects which epoch is the best
    Rule.APPLIES: """
        trainer.max_epochs trainer.min_epochs trainer.max_steps trainer.min_steps trainer.max_time
        trainer.callbacks trainer.plugins trainer.limit_test_batches
        run.tag run.license run.test
        """,  # the first line sets the length of the training; the schedule is recomputed for the new length
    Rule.COMPARED: """
        data.source data.batch_size trainer.devices trainer.num_nodes trainer.accumulate_grad_batches
        """,
    Rule.FREE: """
        run.folder run.push_to run.save_every speed.loader_seconds speed.peak_flops ckpt_path weights_only
        model.channels_last model.compile model.grad_checkpointing
        data.num_workers data.max_unreadable data.predict
        trainer.accelerator trainer.strategy trainer.deterministic trainer.benchmark trainer.inference_mode
        trainer.use_distributed_sampler trainer.num_sanity_val_steps trainer.limit_predict_batches trainer.fast_dev_run
        trainer.logger trainer.log_every_n_steps trainer.enable_progress_bar trainer.enable_model_summary
        trainer.enable_checkpointing trainer.enable_autolog_hparams trainer.model_registry trainer.profiler
        trainer.detect_anomaly trainer.barebones trainer.default_root_dir
        """,  # devices, compilers and memory formats round differently; the record names the environment
}
RULES: dict[str, Rule] = {name: rule for rule, names in _RULES.items() for name in names.split()}
"""The rule for each option of `fit`, by its name `group.name`."""

# An int counts batches and a float is a fraction of them: 1 is one batch, 1.0 is all.
_COUNT_OR_SHARE = re.compile(r"trainer\.(limit_\w+|overfit_batches|val_check_interval)")
_PLACE = ("data.source",)  # the location of the data; the data module checks that the images are the same
_LENGTH = ("trainer.max_epochs", "trainer.min_epochs", "trainer.max_steps", "trainer.min_steps", "trainer.max_time")

Options = dict[str, Any]
Changes = dict[str, tuple[Any, Any]]  # {option: (recorded, given)}


@dataclass(frozen=True)
class Recorded:
    """What a checkpoint says about the run that it belongs to.

    Attributes:
        options: options of `fit`; only the model's options if a Python program wrote the checkpoint.
        epochs: number of completed epochs.
        steps: number of optimiser steps.
        within: whether the checkpoint was saved within an epoch.
        card: the value of `ImageDataModule.card`; None for other data.
        hyper_parameters: the hyper-parameters of the task.
    """

    options: Options
    epochs: int
    steps: int
    within: bool
    card: dict[str, Any] | None = None
    hyper_parameters: Options = field(default_factory=dict)

    @property
    def is_by_python(self) -> bool:
        """Whether there was no command: `options` are the task's hyper-parameters."""
        return self.options.keys() == {f"model.{name}" for name in self.hyper_parameters}


def flatten(config: Any) -> Options:
    """Return the options in jsonargparse's configuration as {"group.name": plain value}, without those that have no
    rule."""
    plain = json.loads(json.dumps(config.as_dict(), default=_plain))
    groups = {key: value if isinstance(value, dict) else {"": value} for key, value in plain.items()}
    flat = {f"{key}.{name}".strip("."): value for key, group in groups.items() for name, value in group.items()}
    return {name: value for name, value in flat.items() if name in RULES}


def _plain(value: Any) -> Any:
    if hasattr(value, "as_dict"):  # a Namespace in a list
        return value.as_dict()
    return str(getattr(value, "name", value))  # an Enum by its name, a Path as a string


def read_recorded(checkpoint: Path) -> Recorded:
    """Read what a checkpoint says about its run, without loading the weights into memory.

    Args:
        checkpoint: a file, or a folder of sharded files from several processes.
    """
    file = checkpoint / "meta.pt" if checkpoint.is_dir() else checkpoint
    content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    run = (content.get("callbacks") or {}).get("RunFolder") or {}
    history = run.get("history") or []
    steps = int(content.get("global_step", 0))
    hyper_parameters = dict(content.get("hyper_parameters") or {})
    options = run.get("options") or {f"model.{name}": value for name, value in hyper_parameters.items()}
    done = int(history[-1]["epoch"]) if history else 0
    card = (content.get("ImageDataModule") or {}).get("card")
    return Recorded(options, done, steps, steps > (history[-1]["step"] if history else 0), card, hyper_parameters)


def changes(recorded: Options, given: Options, *rules: Rule) -> Changes:
    """Return the options under `rules` whose value differs from the recorded one. Both sides must have the option."""
    both = [name for name in given if name in recorded and RULES.get(name) in rules]
    return {name: (recorded[name], given[name]) for name in both if not _is_same(recorded[name], given[name], name)}


def _is_same(a: Any, b: Any, option: str = "") -> bool:
    if isinstance(a, str) and isinstance(b, str):
        return a == b or os.path.abspath(a) == os.path.abspath(b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):  # a tuple comes back from JSON as a list
        return len(a) == len(b) and all(map(_is_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_is_same(value, b[key]) for key, value in a.items())
    if isinstance(a, bool) or isinstance(b, bool) or _COUNT_OR_SHARE.fullmatch(option):
        return type(a) is type(b) and bool(a == b)
    return bool(a == b)  # a Python program's 0 is the command line's 0.0


def check_resume(recorded: Recorded, given: Options, what: str) -> None:
    """Refuse to resume a run with options that would change its result.

    Args:
        given: the options of the command.
        what: what to call the run, or its checkpoint, in the message.

    Raises:
        ValueError: an option under Rule.FIXED has changed, or fewer epochs are requested than have been trained.
    """
    fixed = changes(recorded.options, given, Rule.FIXED)
    if fixed:
        raise ValueError(
            f"{what} was started with {_values(fixed, 0)}; this command says {_values(fixed, 1)}. These options cannot "
            f"change during a run. Resume with {_arguments(fixed)}, or choose another --run.folder for a new run, "
            "which may start from these weights with --model.pretrained"
        )
    epochs, trained = given.get("trainer.max_epochs"), recorded.epochs + recorded.within
    if isinstance(epochs, int) and 0 <= epochs < trained:
        raise ValueError(
            f"{what} has already reached epoch {trained}; this command asks for {epochs}. Resume with "
            f"--trainer.max_epochs {trained} or more, or choose another --run.folder for a shorter run"
        )


def check_hyperparameters(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse to resume a task with different hyper-parameters, for Python programs, which have no command line.

    Raises:
        ValueError: a hyper-parameter under Rule.FIXED has changed.
    """
    theirs, ours = ({f"model.{name}": value for name, value in h.items()} for h in (recorded, given))
    fixed = changes(theirs, ours, Rule.FIXED)
    if fixed:
        names = {name.removeprefix("model."): values for name, values in fixed.items()}
        raise ValueError(
            f"the checkpoint was trained with {_values(names, 0)}; this task has {_values(names, 1)}. The result would "
            "be a mixture of both. Resume with the values of the checkpoint, or start a new training from its weights, "
            "with pretrained=PATH and without ckpt_path"
        )


def check_network(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse to use a checkpoint for a network with different arguments.

    Many arguments do not change the shape of any parameter, so the weights would load and the outputs would be wrong.
    Dropout rates may differ, because they only have an effect during training, and so may the image size that a network
    is built for.

    Args:
        recorded: the hyper-parameters of the checkpoint.
        given: the hyper-parameters of the task.

    Raises:
        ValueError: `model_kwargs` differ.
    """
    kwargs = (recorded.get("model_kwargs") or {}, given.get("model_kwargs") or {})
    theirs, ours = ({k: v for k, v in each.items() if "drop" not in k and k != "img_size"} for each in kwargs)
    if "model_kwargs" in recorded and not _is_same(theirs, ours):
        said = [json.dumps(each, default=str) if each else "no model_kwargs" for each in (theirs, ours)]
        raise ValueError(
            f"the network of the checkpoint was built with {said[0]}, the one of this task with {said[1]}. Use the "
            f"same arguments (model_kwargs={theirs or None}), or let ClassificationTask.load_from_checkpoint build the "
            "task"
        )


def recorded_changes(recorded: Options, given: Options) -> Changes:
    """Return the changes to list in the run's record, because no single command would reproduce the run with them."""
    changed = changes(recorded, given, Rule.APPLIES, Rule.COMPARED)
    return {name: values for name, values in changed.items() if name not in _PLACE}


def check_finished(recorded: Recorded, given: Options, what: str) -> bool:
    """Return whether a finished run should stay unchanged; False if it is to be trained for longer.

    Args:
        given: the options of the command, already checked by `check_resume`.
        what: what to call the run in the message.

    Raises:
        ValueError: an option that affects the weights or their card has changed.
    """
    changed = changes(recorded.options, given, Rule.APPLIES, Rule.COMPARED)
    if changed.keys() & set(_LENGTH):
        return False
    late = {name: values for name, values in changed.items() if name not in ("trainer.callbacks", "trainer.plugins")}
    if late:
        raise ValueError(
            f"{what} is finished; it was trained with {_values(late, 0)}, and this command says {_values(late, 1)}. "
            f"Finished weights and their card are never changed. Choose another --run.folder for a new run, or raise "
            "--trainer.max_epochs to train this one for longer"
        )
    return True


def _values(found: Changes, which: int) -> str:
    return ", ".join(f"{name} {_word(values[which])}" for name, values in found.items())


def _arguments(found: Changes) -> str:
    return " ".join(f"--{name} {_word(values[0])}" for name, values in found.items())


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def finished_record(folder: Path, recorded: Recorded) -> dict[str, Any] | None:
    """Return the record of a run folder's weights if they come from its last checkpoint. Otherwise return None: the run
    was interrupted, or its weights could not be written."""
    weights = folder / "weights"
    if not (weights / "model.safetensors").is_file():
        return None
    try:
        record = json.loads((weights / "config.json").read_text(encoding="utf-8"))["acmix_zoo"]
        # records of acmix_zoo 0.1.0 and earlier have no steps
        is_last = record["steps"] == recorded.steps if "steps" in record else record["epochs"] == recorded.epochs
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return dict(record) if is_last and not recorded.within else None


def finished_message(folder: Path, record: Mapping[str, Any], recorded: Recorded) -> str:
    """Return a message that a run is finished, with its scores, where its weights are, and how to train longer."""
    planned = recorded.options.get("trainer.max_epochs") or recorded.epochs
    scores = ", ".join(
        f"{m['split']} {m['name'].replace('top', 'top-')} {100 * m['value']:.2f} %" for m in record.get("metrics", [])
    )
    longer = f"To train for longer, run the same command with --trainer.max_epochs {2 * planned}"
    if recorded.epochs < planned:
        longer = "To train for longer, change what stopped it: --trainer.max_time, --trainer.max_steps or a callback"
    return (
        f"The run in {folder} is finished: {recorded.epochs} of {planned} epochs, best epoch "
        f"{record.get('best_epoch', 'unknown')}" + (f"; {scores}" if scores else "") + f".\nIts weights are in "
        f"{folder / 'weights'}. Nothing was changed.\n{longer}. For a new run, choose another --run.folder."
    )
