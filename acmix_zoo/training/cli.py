"""LightningCLI with a run folder: fit, validate, test and predict from a recipe and overrides."""

import csv
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from torch import distributed

from acmix_zoo.cli_parser import Parser
from acmix_zoo.data import ImageDataModule
from acmix_zoo.tasks import ClassificationTask
from acmix_zoo.training.checkpoints import is_checkpoint
from acmix_zoo.training.finish import finish_run
from acmix_zoo.training.logs import Log
from acmix_zoo.training.run import RunFolder
from acmix_zoo.training.speed import Speed


class _SaveConfig(SaveConfigCallback):
    """config.yaml of a fit, in the run folder. Without ckpt_path: a resumed run's, too, repeats the whole run."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Not yet: the folder may be another run's."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rehearsal = bool(getattr(trainer, "fast_dev_run", False))  # which keeps nothing, and has not locked the folder
        if trainer.is_global_zero and not self.already_saved and not rehearsal:
            config = self.config.clone()
            config["ckpt_path"] = None
            folder = Path(config.run.folder)
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(config, str(folder / "config.yaml"), skip_none=False, overwrite=True, multifile=False)
            self.already_saved = True


class _Parser(Parser, LightningArgumentParser):
    """Lightning's parser with our short errors."""


class TrainingCLI(LightningCLI):
    """`acmix-zoo fit|validate|test|predict`.

    Args:
        command: the command line as given, for the record.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        # An advertisement in every log, and a deprecation that Lightning has to settle with torch.
        logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda r: "Tip:" not in r.getMessage())
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
        on_terminal = sys.stdout.isatty()
        super().__init__(
            ClassificationTask,
            ImageDataModule,
            save_config_callback=_SaveConfig,
            seed_everything_default=0,
            parser_class=_Parser,
            trainer_defaults={
                # A log file gets a line an epoch from RunFolder instead.
                "enable_progress_bar": on_terminal,
                "callbacks": [RichProgressBar()] if on_terminal else [],
            },
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # hyper-parameters in a checkpoint stay plain values
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder and the watch over speed; take the number of classes from the data."""
        parser.add_lightning_class_args(RunFolder, "run")
        parser.add_lightning_class_args(Speed, "speed")
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Keep the model that was asked for: the base class would quietly put the checkpoint's in its place."""

    def before_instantiate_classes(self) -> None:
        """Settle the run folder and the checkpoint before anything is built."""
        config = self.config[self.subcommand]
        if config.run.folder is None:
            config.run.folder = f"runs/{Path(config.model.model).name}"
        run = RunFolder(config.run.folder)
        config.trainer.default_root_dir = str(run.folder)
        if config.trainer.logger in (None, True):  # `false`, or loggers of the user's, stay what they are
            config.trainer.logger = self.subcommand == "fit"
        config.weights_only = True  # a checkpoint never runs code
        self._settle_checkpoint(config, run)

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
            if not found:
                print(f"{run.last} does not exist yet: the run starts from the beginning", flush=True)
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
        """Build all; data of a run that goes on are not refused for a file that broke meanwhile."""
        super().instantiate_classes()
        if self.subcommand == "fit":
            self.datamodule.goes_on = bool(self.config[self.subcommand].ckpt_path)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the trainer; its TensorBoard log goes into the run folder."""
        self.run: RunFolder = self._get(self.config_init, "run")
        recipe = self.config[self.subcommand].get("config")
        self.run.command, self.run.recipe = self.command, str(recipe[0]) if recipe else None
        if self._get(self.config_init, "trainer").logger is True:
            kwargs["logger"] = Log(self.run.folder / "tensorboard")
        return super().instantiate_trainer(**kwargs)

    def after_fit(self) -> None:
        """Test the best weights and write the weight folder."""
        if self._get(self.config, "trainer").fast_dev_run:
            return
        finish_run(self.trainer, self.model, self.datamodule, self.run)

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
        rows = sorted(pair for part in parts for pair in part)
        with target.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "class", "probability", *names])
            for i, p in rows:
                writer.writerow([paths[i], names[p.index(max(p))], f"{max(p):.4f}", *(f"{v:.4f}" for v in p)])
        print(f"{target}: {len(rows)} images", flush=True)
