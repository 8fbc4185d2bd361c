"""LightningCLI with a run folder: fit, validate, test and predict from a recipe and overrides."""

from __future__ import annotations

import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from acmix_zoo.cli.checkpoint_option import find_checkpoint
from acmix_zoo.cli.config_checks import check_config, missing_source_message
from acmix_zoo.cli.data import check_class_folders
from acmix_zoo.cli.find_lr import check_find_lr, suggest_learning_rate
from acmix_zoo.cli.parser import Parser
from acmix_zoo.cli.predictions import write_predictions
from acmix_zoo.cli.run_folder import check_run_folder, choose_run_folder, is_first_process, with_absolute_paths
from acmix_zoo.cli.run_result import print_class_table, print_files, print_next_commands
from acmix_zoo.data.sources.recorded import use_recorded_source
from acmix_zoo.models.task_kinds import CLASSIFICATION, TASK_KINDS
from acmix_zoo.tasks.start_weights import without_start_weights
from acmix_zoo.tasks.task_classes import TASK_NAMES, task_classes
from acmix_zoo.training.evaluation_files import WrittenFile, class_table, write_evaluation
from acmix_zoo.training.finish import finish_run
from acmix_zoo.training.history import format_metrics
from acmix_zoo.training.logs import Bar, Log, quieten_lightning
from acmix_zoo.training.option_rules import flatten
from acmix_zoo.training.record import partial_score_warning
from acmix_zoo.training.resume import (
    Recorded,
    check_finished,
    check_resume,
    finished_message,
    finished_record,
    match_python_run,
    read_recorded,
)
from acmix_zoo.training.run import RunFolder
from acmix_zoo.training.signals import Interrupted, ending_on_sigterm
from acmix_zoo.training.speed import Speed


class _SaveConfig(SaveConfigCallback):
    """Save the options of a fit as config.yaml in the run folder, with absolute paths to the data.

    The file has no ckpt_path, so that the file of a resumed run also repeats the run from the start.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Do nothing yet, because the folder may belong to a different run."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        is_dry_run = bool(getattr(trainer, "fast_dev_run", False))  # a dry run writes nothing and locks no folder
        if trainer.is_global_zero and not self.already_saved and not is_dry_run:
            config = with_absolute_paths(self.config)
            config["ckpt_path"] = None
            folder = Path(config.run.folder)
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(config, str(folder / "config.yaml"), skip_unset=False, overwrite=True, multifile=False)
            self.already_saved = True


class _Parser(Parser, LightningArgumentParser):
    """Lightning's parser with short errors."""

    help_option = "--help-all"


class TrainingCLI(LightningCLI):
    """`acmix-zoo fit|validate|test|predict`.

    Args:
        command: the command line as given, for the record.
        task: the name of the task, which determines the options of the groups `model` and `data`.
    """

    def __init__(self, command: str, task: str = CLASSIFICATION.name) -> None:
        self.command, self.task = command, TASK_KINDS[task]
        quieten_lightning()
        classes = task_classes(task)
        super().__init__(
            classes.task,
            classes.data,
            save_config_callback=_SaveConfig,
            seed_everything_default=0,
            parser_class=_Parser,
            trainer_defaults={
                # A log file gets one line per epoch from RunFolder instead.
                "enable_progress_bar": sys.stdout.isatty(),
                # RunFolder describes the model in one line; Lightning's table would not count the FLOPs of our layers
                "enable_model_summary": False,
            },
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # hyper-parameters in a checkpoint stay plain values
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the run folder and the speed measurement; take some of the task's from the data."""
        # Read by `fit` before this parser exists. Here, it becomes part of the run's config.yaml.
        parser.add_argument("--task", type=str, default=self.task.name, help=f"one of {', '.join(TASK_NAMES)}")
        parser.add_lightning_class_args(RunFolder, "run")
        parser.add_lightning_class_args(Speed, "speed")
        parser.link_arguments("run.verbose", "speed.verbose")
        for name in task_classes(self.task.name).task.FROM_DATA:
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")
        # With the default of ImageDataModule, a user who forgets --data.source would train on Fashion-MNIST.
        parser.set_defaults({"data.source": None})

    def _parse_ckpt_path(self) -> None:
        """Keep the model given on the command line. The base class would silently replace it with the checkpoint's."""

    def _set_seed(self) -> None:
        """Set the seed, and note whether it was drawn at random. A resumed run keeps the seed that it drew first."""
        self._seed_was_drawn = self._get(self.config, "seed_everything") is True
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Choose the run folder and the checkpoint, and check the options, before anything is built."""
        config = self.config[self.subcommand]
        check_config(config, str(self.subcommand))
        self._moved = choose_run_folder(config, self.command)
        config.trainer.default_root_dir = str(Path(config.run.folder))
        if config.trainer.logger in (None, True):  # `false`, or loggers of the user's, stay unchanged
            config.trainer.logger = self.subcommand == "fit"
        config.weights_only = True  # a checkpoint never runs code
        self._resumes_by_itself = config.ckpt_path == "last"
        run = RunFolder(config.run.folder)
        config.ckpt_path = find_checkpoint(config, str(self.subcommand), run, self.command)
        if self.subcommand == "fit":
            check_find_lr(config)
        recorded = read_recorded(Path(config.ckpt_path)) if config.ckpt_path else None
        self._card = recorded.card if recorded else None
        self._hyper_parameters = recorded.hyper_parameters if recorded else None
        self.is_finished = False  # whether the run is finished, so that there is nothing left to do
        if self.subcommand == "predict" and self._card:
            if "streaming" in config.data:
                # prediction needs only the classes of the training data, which the checkpoint lists
                config.data.streaming, config.data.classes_file = False, None
        elif config.data.source is None:
            expected = task_classes(self.task.name).data.expected_source
            raise ValueError(missing_source_message(str(self.subcommand), expected))
        elif self.task is CLASSIFICATION:
            check_class_folders(config.data.source)
        if self.subcommand == "fit" and recorded is not None:
            self.is_finished = self._check_resume(config, recorded, run)

    def _check_resume(self, config: Any, recorded: Recorded, run: RunFolder) -> bool:
        """Check the options against those of the run to be resumed, and return whether it is finished.

        Raises:
            ValueError: an option that the result depends on has changed.
        """
        if self._seed_was_drawn and "seed_everything" in recorded.options:
            config.seed_everything = recorded.options["seed_everything"]
        is_own = Path(config.ckpt_path).parent.resolve() == run.checkpoints.folder.resolve()
        run_name = f"The run in {run.folder}" if is_own else f"The run of {config.ckpt_path}"
        unmoved = {name: recorded.options[name] for name in self._moved if name in recorded.options}
        recorded, options = match_python_run(recorded, {**flatten(with_absolute_paths(config)), **unmoved})
        check_resume(recorded, options, run_name)
        record = finished_record(run.folder, recorded) if is_own else None
        if record is None or not check_finished(recorded, options, run_name):
            return False
        if is_first_process():
            print(finished_message(run.folder, record, recorded, self.task), flush=True)
        return True

    def instantiate_classes(self) -> None:
        """Build everything unless the run is finished. A resumed run does not fail if one of its image files has been
        damaged in the meantime."""
        if self.is_finished:
            return
        card = self._card if self.subcommand == "predict" else None
        resumed = bool(self.config[self.subcommand].ckpt_path)
        with without_start_weights(resumed, self._hyper_parameters), use_recorded_source(card):
            super().instantiate_classes()
        if self.subcommand == "fit":
            self.datamodule.is_resumed = resumed
            if not resumed and not self._get(self.config, "trainer").fast_dev_run:
                check_run_folder(self.run.folder, self.datamodule.loaders.source)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the subcommand. If it is interrupted, the exit code indicates the signal: 130 for Ctrl-C, 143 for
        SIGTERM."""
        if self.is_finished:
            return
        # Several processes stop together: a Python handler would not run while its process waits for the others.
        ending = ending_on_sigterm() if self.trainer.world_size == 1 else nullcontext()
        try:
            with ending:
                if subcommand == "fit" and self.run.find_lr:
                    suggest_learning_rate(self)
                else:
                    super()._run_subcommand(subcommand)
        except SystemExit as error:
            if not isinstance(error.__context__, KeyboardInterrupt) or isinstance(error, Interrupted):
                raise
            # Lightning exits with 1 after Ctrl-C; RunFolder has printed how to resume a training run
            if subcommand == "fit" and self.run.has_begun:
                raise Interrupted(128 + signal.SIGINT) from error
            raise KeyboardInterrupt from error

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the trainer; its TensorBoard log goes into the run folder, and it shows one progress bar."""
        self.run: RunFolder = self._get(self.config_init, "run")
        recipe = self.config[self.subcommand].get("config")
        state = self.run.state
        state.command, state.recipe = self.command, str(recipe[0]) if recipe else None
        state.options = flatten(with_absolute_paths(self.config[self.subcommand]))
        option = "" if self._resumes_by_itself else " with --ckpt_path last"
        self.run.resume_command = f"the same command again{option}"
        trainer = self._get(self.config_init, "trainer")
        given = trainer.callbacks or []
        callbacks = [*given] if isinstance(given, list) else [given]
        if trainer.enable_progress_bar and not any(isinstance(callback, ProgressBar) for callback in callbacks):
            callbacks.append(Bar())
        kwargs["callbacks"] = callbacks
        if trainer.logger is True:
            kwargs["logger"] = Log(self.run.folder / "tensorboard")
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, ImportError) as error:
            raise ValueError(
                f"Lightning rejected the --trainer options: {error}. Expected arguments of lightning.Trainer. Change "
                "the option named in this message"
            ) from error

    def after_fit(self) -> None:
        """Test the best weights and write the weight folder."""
        if self._get(self.config, "trainer").fast_dev_run:
            return
        try:
            finished = finish_run(self.trainer, self.model, self.datamodule, self.run)
        except (KeyboardInterrupt, SystemExit) as error:  # Lightning raises SystemExit for Ctrl-C during the test
            if self.trainer.is_global_zero:
                print(
                    f"Training is finished, and the best weights are in {self.run.best}. The test and the export to "
                    f"{self.run.folder / 'weights'} were interrupted. Run {self.run.resume_command} to complete them",
                    flush=True,
                )
            raise Interrupted(error.code if isinstance(error, Interrupted) else 128 + signal.SIGINT) from error
        if self.trainer.is_global_zero:
            self._print_details(finished.split, finished.files)
            source = str(self.config[self.subcommand].data.source)
            print_next_commands(self.task, self.run.folder, self.datamodule, source)

    def validate(self, **kwargs: Any) -> None:
        """Print the scores on the validation split."""
        self._print_scores("val", self.trainer.validate(**{**kwargs, "verbose": False}))

    def test(self, **kwargs: Any) -> None:
        """Print the scores on the test split."""
        self._print_scores("test", self.trainer.test(**{**kwargs, "verbose": False}))

    def _print_scores(self, split: str, results: list[Any]) -> None:
        if not self.trainer.is_global_zero:
            return
        source, checkpoint = self.datamodule.loaders.source, self.config[self.subcommand].ckpt_path
        if not results or f"{split}/{self.task.main_metric}" not in results[0]:
            name = "validation" if split == "val" else split
            raise ValueError(
                f"{source.name} has no {name} images to evaluate. {source.missing_split_advice(split)}"
                # a run that was trained on all images would be evaluated on some of them
                + (", or set --data.val_fraction 0.1" if split == "val" and not checkpoint else "")
            )
        scores = {name.removeprefix(f"{split}/"): value for name, value in results[0].items()}
        weights = checkpoint or self.model.hparams["pretrained"]
        loss = f", loss {scores['loss']:.4f}" if "loss" in scores else ""
        print(f"{split}: {format_metrics(scores, self.task)}{loss} ({weights})", flush=True)
        if line := partial_score_warning(self.trainer, split):
            print(line, flush=True)
        self._print_details(split, write_evaluation(self.model, self.datamodule, split, self.run.folder))

    def _print_details(self, split: str, files: list[WrittenFile]) -> None:
        """Print the scores of each class on a split, and the files to look at."""
        if table := class_table(self.model, split, self.datamodule.class_names):
            print_class_table(table)
        if files:
            print_files(self.run.folder, files)

    def predict(self, **kwargs: Any) -> None:
        """Write the predictions into the run folder, in the form of the task."""
        write_predictions(
            self.task, self.trainer, self.trainer.predict(**kwargs) or [], self.datamodule, self.run.folder
        )
