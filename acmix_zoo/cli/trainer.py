"""LightningCLI with a run folder: fit, validate, test and predict from a recipe and overrides."""

import csv
import signal
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import yaml  # type: ignore[import-untyped]
from jsonargparse import get_loader, set_loader
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from torch import distributed

from acmix_zoo.cli.old_names import with_current_keys
from acmix_zoo.cli.parser import Parser
from acmix_zoo.data import ImageDataModule
from acmix_zoo.data.sources.recorded import recorded_source
from acmix_zoo.tasks import ClassificationTask
from acmix_zoo.tasks.classification import settle_hyperparameters, without_start_weights
from acmix_zoo.training.checkpoints import is_checkpoint
from acmix_zoo.training.finish import finish_run
from acmix_zoo.training.launch import absolute_paths, check_config, is_first_process, missing_source, settle_folder
from acmix_zoo.training.logs import Bar, Log, quieten_lightning
from acmix_zoo.training.resume import (
    check_finished,
    check_resume,
    finished_message,
    finished_record,
    flatten,
    read_recorded,
)
from acmix_zoo.training.run import RunFolder
from acmix_zoo.training.signals import Interrupted, ending_on_sigterm
from acmix_zoo.training.speed import Speed


class _SaveConfig(SaveConfigCallback):
    """Save the options of a fit as config.yaml in the run folder, with absolute paths to the data.

    The file has no ckpt_path, so that also the file of a resumed run repeats the whole run.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Not yet: the folder may be another run's."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rehearsal = bool(getattr(trainer, "fast_dev_run", False))  # which keeps nothing, and has not locked the folder
        if trainer.is_global_zero and not self.already_saved and not rehearsal:
            config = self.config.clone()
            config["ckpt_path"] = None
            absolute_paths(config)
            folder = Path(config.run.folder)
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(config, str(folder / "config.yaml"), skip_none=False, overwrite=True, multifile=False)
            self.already_saved = True


class _Parser(Parser, LightningArgumentParser):
    """Lightning's parser with our short errors."""

    help_option = "--help-all"


_load_yaml = get_loader("yaml")
set_loader("yaml", lambda text: with_current_keys(_load_yaml(text)), exceptions=(yaml.YAMLError,))


class TrainingCLI(LightningCLI):
    """`acmix-zoo fit|validate|test|predict`.

    Args:
        command: the command line as given, for the record.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        quieten_lightning()
        super().__init__(
            ClassificationTask,
            ImageDataModule,
            save_config_callback=_SaveConfig,
            seed_everything_default=0,
            parser_class=_Parser,
            trainer_defaults={
                # A log file gets a line an epoch from RunFolder instead.
                "enable_progress_bar": sys.stdout.isatty(),
                # RunFolder describes the model in one line; Lightning's table would not count the FLOPs of our layers
                "enable_model_summary": False,
            },
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # hyper-parameters in a checkpoint stay plain values
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder and the watch over speed; take the number of classes from the data."""
        parser.add_lightning_class_args(RunFolder, "run")
        parser.add_lightning_class_args(Speed, "speed")
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        # with ImageDataModule's default, a user who forgets --data.source would train on Fashion-MNIST
        parser.set_defaults({"data.source": None})

    def _parse_ckpt_path(self) -> None:
        """Keep the model that was asked for: the base class would quietly put the checkpoint's in its place."""

    def _set_seed(self) -> None:
        """Set the seed, and note whether it was drawn at random. A resumed run keeps the seed that it drew first."""
        self._seed_was_drawn = self._get(self.config, "seed_everything") is True
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Settle the run folder and the checkpoint before anything is built."""
        config = self.config[self.subcommand]
        self.is_finished = False  # whether the run is finished, so that there is nothing left to do
        check_config(config, str(self.subcommand))
        settle_folder(config, self.command)
        run = RunFolder(config.run.folder)
        config.trainer.default_root_dir = str(run.folder)
        if config.trainer.logger in (None, True):  # `false`, or loggers of the user's, stay what they are
            config.trainer.logger = self.subcommand == "fit"
        config.weights_only = True  # a checkpoint never runs code
        self._resumes_by_itself = config.ckpt_path == "last"
        self._settle_checkpoint(config, run)
        recorded = read_recorded(Path(config.ckpt_path)) if config.ckpt_path else None
        self._card = recorded.card if recorded else None
        self._hyper_parameters = recorded.hyper_parameters if recorded else None
        if self.subcommand == "predict" and self._card:
            config.data.streaming = False  # prediction needs only the classes of the training data
        elif config.data.source is None:
            raise ValueError(missing_source(str(self.subcommand)))
        if self.subcommand == "fit" and config.ckpt_path:
            self._check_resume(config, run)

    def _check_resume(self, config: Any, run: RunFolder) -> None:
        """Compare the options with those of the run to be resumed, and check whether anything is left to do."""
        recorded = read_recorded(Path(config.ckpt_path))
        if self._seed_was_drawn and "seed_everything" in recorded.options:
            config.seed_everything = recorded.options["seed_everything"]
        is_own = Path(config.ckpt_path).parent.resolve() == run.checkpoints.folder.resolve()
        what = f"The run in {run.folder}" if is_own else f"The run of {config.ckpt_path}"
        options = flatten(config)
        if recorded.is_by_python:  # a task notes what it made of the options, see `resolve_network`
            ours = {name.removeprefix("model."): v for name, v in options.items() if name.startswith("model.")}
            options |= {f"model.{name}": value for name, value in settle_hyperparameters(ours, is_new=True).items()}
            theirs = settle_hyperparameters(recorded.hyper_parameters)
            recorded = replace(recorded, options={f"model.{name}": value for name, value in theirs.items()})
        check_resume(recorded, options, what)
        record = finished_record(run.folder, recorded) if is_own else None
        if record is not None and check_finished(recorded, flatten(config), what):
            self.is_finished = True
            if is_first_process():
                print(finished_message(run.folder, record, recorded), flush=True)

    def _settle_checkpoint(self, config: Any, run: RunFolder) -> None:
        given = config.ckpt_path
        fitting = self.subcommand == "fit"
        if not fitting and given == "last" and "--ckpt_path" not in self.command:
            given = None  # `last` stands in the recipe for its fit; what is evaluated is the best
        if config.trainer.fast_dev_run and given == "last":
            config.ckpt_path = None  # a rehearsal
        elif given == "last" and fitting:
            found = run.checkpoints.find()
            config.ckpt_path = str(found) if found else None
        elif given in ("last", "best"):
            path = run.last if given == "last" else run.best
            if not path.exists():
                raise FileNotFoundError(f"{path} does not exist; give --run.folder of a run, or --ckpt_path FILE")
            config.ckpt_path = str(path)
        elif given is not None and not Path(given).exists():
            raise FileNotFoundError(f"--ckpt_path {given} does not exist; expected last, best or a checkpoint file")
        elif given is not None and not is_checkpoint(Path(given)):
            raise ValueError(
                f"--ckpt_path {given} is damaged or not a checkpoint of a run, which are in its checkpoints/. "
                "Bare weights are given with --model.pretrained"
            )
        elif given is None and fitting and run.checkpoints.any() and not config.trainer.fast_dev_run:
            raise FileExistsError(
                f"{run.folder} already holds a run; go on with it: --ckpt_path last, or choose another --run.folder"
            )
        elif given is None and not fitting:
            config.ckpt_path = None
            if config.model.pretrained and ("--model.pretrained" in self.command or not run.best.exists()):
                return  # those weights; but a run that began from them has better ones
            if not run.best.exists():
                raise FileNotFoundError(
                    f"there are no weights to {self.subcommand}: {run.best} does not exist; "
                    "give --ckpt_path FILE, --run.folder of a run, or --model.pretrained"
                )
            config.ckpt_path = str(run.best)

    def instantiate_classes(self) -> None:
        """Build everything unless the run is finished. A resumed run does not fail if one of its image files has been
        damaged in the meantime."""
        if self.is_finished:
            return
        card = self._card if self.subcommand == "predict" else None
        resumed = bool(self.config[self.subcommand].ckpt_path)
        with without_start_weights(resumed, self._hyper_parameters), recorded_source(card):
            super().instantiate_classes()
        if self.subcommand == "fit":
            self.datamodule.is_resumed = bool(self.config[self.subcommand].ckpt_path)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the subcommand. If it is interrupted, the exit code tells the signal: 130 for Ctrl-C, 143 for SIGTERM."""
        if self.is_finished:
            return
        # several processes end together: a handler in Python would not run while one waits for the others
        ending = ending_on_sigterm() if self.trainer.world_size == 1 else nullcontext()
        try:
            with ending:
                super()._run_subcommand(subcommand)
        except SystemExit as error:
            if not isinstance(error.__context__, KeyboardInterrupt) or isinstance(error, Interrupted):
                raise
            # Lightning exits with 1 after Ctrl-C; RunFolder has told how to resume a training
            if subcommand == "fit" and self.run.has_begun:
                raise Interrupted(128 + signal.SIGINT) from error
            raise KeyboardInterrupt from error

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the trainer; its TensorBoard log goes into the run folder, and it shows one progress bar."""
        self.run: RunFolder = self._get(self.config_init, "run")
        recipe = self.config[self.subcommand].get("config")
        self.run.command, self.run.recipe = self.command, str(recipe[0]) if recipe else None
        self.run.options = flatten(self.config[self.subcommand])
        self.run.resumes_by_itself = self._resumes_by_itself
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
                f"Lightning's trainer cannot be built with these --trainer options: {error}. Change the option that it "
                "names"
            ) from error

    def after_fit(self) -> None:
        """Test the best weights and write the weight folder."""
        if self._get(self.config, "trainer").fast_dev_run:
            return
        try:
            finish_run(self.trainer, self.model, self.datamodule, self.run)
        except (KeyboardInterrupt, SystemExit) as error:  # Lightning raises SystemExit for Ctrl-C during the test
            if self.trainer.is_global_zero:
                again = "the same command again" + ("" if self.run.resumes_by_itself else " with --ckpt_path last")
                print(
                    f"The training is finished and its best weights are safe in {self.run.best}. The test and the "
                    f"export to {self.run.folder / 'weights'} were interrupted; run {again} to complete them",
                    flush=True,
                )
            raise Interrupted(error.code if isinstance(error, Interrupted) else 128 + signal.SIGINT) from error

    def validate(self, **kwargs: Any) -> None:
        """Print the scores on the validation split."""
        self._evaluate("val", self.trainer.validate(**{**kwargs, "verbose": False}))

    def test(self, **kwargs: Any) -> None:
        """Print the scores on the test split."""
        self._evaluate("test", self.trainer.test(**{**kwargs, "verbose": False}))

    def _evaluate(self, split: str, results: list[Any]) -> None:
        if not self.trainer.is_global_zero:
            return
        if not results or f"{split}/top1" not in results[0]:
            what = "validation" if split == "val" else split
            raise ValueError(
                f"{self.datamodule.source.name} has no {what} images to evaluate on. Add a {split}/ folder with the "
                "same class folders" + (", or set --data.val_fraction 0.1" if split == "val" else "")
            )
        scores = {name.removeprefix(f"{split}/"): value for name, value in results[0].items()}
        tops = [f"{n.replace('top', 'top-')} {100 * v:.2f} %" for n, v in scores.items() if n.startswith("top")]
        weights = self.config[self.subcommand].ckpt_path or self.model.hparams["pretrained"]
        print(f"{split}: {', '.join(tops)}, loss {scores['loss']:.4f} ({weights})", flush=True)

    def predict(self, **kwargs: Any) -> None:
        """Write predictions.csv into the run folder: path, class, probability, and the probability of every class."""
        batches = self.trainer.predict(**kwargs) or []
        own = [pair for p, i in batches for pair in zip(i.tolist(), p.tolist(), strict=True) if pair[0] >= 0]
        parts = [own] * self.trainer.world_size
        if self.trainer.world_size > 1:
            distributed.all_gather_object(parts, own)
        if not self.trainer.is_global_zero:
            return
        paths, names = self.datamodule.predict_paths, self.datamodule.class_names
        self.run.folder.mkdir(parents=True, exist_ok=True)
        target = self.run.folder / "predictions.csv"
        kept = _keep(target)
        rows = sorted(pair for part in parts for pair in part)
        with target.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "class", "probability", *names])
            for i, p in rows:
                writer.writerow([paths[i], names[p.index(max(p))], f"{max(p):.4f}", *(f"{v:.4f}" for v in p)])
        before = f" (the previous ones are now in {kept.name})" if kept else ""
        print(f"Saved the predictions for {len(rows)} images to {target}{before}", flush=True)


def _keep(path: Path) -> Path | None:
    """Rename an existing file to the first free name such as predictions-1.csv; return the new path, or None."""
    if not path.exists():
        return None
    number = 1
    while (free := path.with_stem(f"{path.stem}-{number}")).exists():
        number += 1
    return path.rename(free)
