"""The rule for every option of `acmix-zoo fit`: what happens if it has a different value when a run is resumed.

The record of a run states the options that its weights were trained with. An option that affects the result therefore
cannot be changed on resume. Otherwise the record would describe a run that never took place. A test fails if an option
has no rule here.
"""

from __future__ import annotations

import json
import re
from enum import Enum
from typing import Any

from acmix_zoo.tasks.hyperparameters import FIXED, as_text, is_equal

Options = dict[str, Any]  # {"group.name": plain value}
Changes = dict[str, tuple[Any, Any]]  # {option: (recorded, given)}


class Rule(Enum):
    """What happens when a run is resumed with a different value of an option."""

    FIXED = "an error, because the result depends on it"
    APPLIES = "it takes effect from then on, and the record lists the change"
    COMPARED = "the data module decides, because it knows whether the images and steps stay the same"
    FREE = "it takes effect, because the result does not depend on it"


_RULES = {
    Rule.FIXED: """
        seed_everything task
        data.image_size data.train_sizes data.mean data.std data.interpolation data.crop_pct data.augment
        data.shift data.crop_scale data.hflip data.random_erasing data.repeats data.mixup data.cutmix data.seed
        data.val_fraction data.validation_as_test data.label_column data.streaming data.epoch_images data.classes_file
        data.max_size data.multi_scale data.masks data.box_format data.vflip
        data.crop_size data.resize data.eval_resize data.color_jitter data.class_names data.first_class_value
        data.ignore_values data.mask_column
        trainer.precision trainer.gradient_clip_val trainer.gradient_clip_algorithm trainer.sync_batchnorm
        trainer.limit_train_batches trainer.overfit_batches trainer.reload_dataloaders_every_n_epochs
        trainer.limit_val_batches trainer.val_check_interval trainer.check_val_every_n_epoch
        """,  # the last line determines which epoch is the best
    Rule.APPLIES: """
        trainer.max_epochs trainer.min_epochs trainer.max_steps trainer.min_steps trainer.max_time
        trainer.callbacks trainer.plugins trainer.limit_test_batches
        run.tag run.license run.test
        """,  # the first line sets the length of the run; the schedule is recomputed for the new length
    Rule.COMPARED: """
        data.source data.batch_size trainer.devices trainer.num_nodes trainer.accumulate_grad_batches
        """,
    Rule.FREE: """
        run.folder run.push_to run.save_every run.verbose run.find_lr
        speed.loader_seconds speed.peak_flops speed.verbose ckpt_path weights_only
        model.channels_last model.compile model.grad_checkpointing
        data.num_workers data.max_unreadable data.predict
        trainer.accelerator trainer.strategy trainer.deterministic trainer.benchmark trainer.inference_mode
        trainer.use_distributed_sampler trainer.num_sanity_val_steps trainer.limit_predict_batches trainer.fast_dev_run
        trainer.logger trainer.log_every_n_steps trainer.enable_progress_bar trainer.enable_model_summary
        trainer.enable_checkpointing trainer.enable_autolog_hparams trainer.model_registry trainer.profiler
        trainer.detect_anomaly trainer.barebones trainer.default_root_dir
        """,  # devices, compilers and memory formats round differently; the record names the environment.
    # run.find_lr trains nothing, and is refused for a run that has begun.
}
RULES: dict[str, Rule] = {
    **{f"model.{name}": Rule.FIXED for name in FIXED},
    **{name: rule for rule, names in _RULES.items() for name in names.split()},
}
"""The rule for each option of `fit`, by its name `group.name`."""

# An int is a number of batches and a float a fraction of them: 1 is one batch, 1.0 is all.
_COUNT_OR_FRACTION = re.compile(r"trainer\.(limit_\w+|overfit_batches|val_check_interval)")


def flatten(config: Any) -> Options:
    """Return the options in jsonargparse's configuration that have a rule, as {"group.name": plain value}."""
    plain = json.loads(json.dumps(config.as_dict(), default=_to_plain))
    groups = {key: value if isinstance(value, dict) else {"": value} for key, value in plain.items()}
    flat = {f"{key}.{name}".strip("."): value for key, group in groups.items() for name, value in group.items()}
    return {name: value for name, value in flat.items() if name in RULES}


def _to_plain(value: Any) -> Any:
    if hasattr(value, "as_dict"):  # a Namespace in a list
        return value.as_dict()
    return str(getattr(value, "name", value))  # an Enum by its name, a Path as a string


def find_changes(recorded: Options, given: Options, *rules: Rule) -> Changes:
    """Return the options under `rules` whose value has changed. Options that one side does not have are ignored."""
    names = [name for name in given if name in recorded and RULES.get(name) in rules]
    return {name: (recorded[name], given[name]) for name in names if not _is_same(name, recorded[name], given[name])}


def _is_same(option: str, a: Any, b: Any) -> bool:
    return is_equal(a, b, is_typed=_COUNT_OR_FRACTION.fullmatch(option) is not None)


def recorded_values(changes: Changes) -> str:
    """Return the recorded values of changed options as text: "model.lr 0.1, data.seed 0"."""
    return ", ".join(f"{name} {as_text(recorded)}" for name, (recorded, _) in changes.items())


def given_values(changes: Changes) -> str:
    """Return the given values of changed options as text: "model.lr 0.2, data.seed 1"."""
    return ", ".join(f"{name} {as_text(given)}" for name, (_, given) in changes.items())


def recorded_arguments(changes: Changes) -> str:
    """Return the arguments that restore the recorded values: "--model.lr 0.1 --data.seed 0"."""
    return " ".join(f"--{name} {as_text(recorded)}" for name, (recorded, _) in changes.items())
