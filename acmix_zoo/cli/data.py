"""The command `acmix-zoo data`: check and summarise a data set without training. See `acmix_zoo.cli`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from acmix_zoo.cli.parser import Parser
from acmix_zoo.data.boxes.box_dataset import BoxLoaders
from acmix_zoo.data.boxes.coco_source import is_coco_folder
from acmix_zoo.data.boxes.open_boxes import open_box_source
from acmix_zoo.data.boxes.voc_source import is_voc_folder
from acmix_zoo.data.indexed_loaders import IndexedLoaders
from acmix_zoo.data.masks.class_list import ClassOptions
from acmix_zoo.data.masks.mask_dataset import MaskLoaders
from acmix_zoo.data.masks.mask_folder import is_mask_folder
from acmix_zoo.data.masks.mask_sources import open_mask_source
from acmix_zoo.data.sources.load_table import is_table
from acmix_zoo.data.sources.open import open_source
from acmix_zoo.data.splits import DEFAULT_VAL_FRACTION
from acmix_zoo.models.task_kinds import CLASSIFICATION, DETECTION, SEGMENTATION, TASK_KINDS, TaskKind

_OPTION_TASKS = {
    "label_column": CLASSIFICATION,
    "mask_column": SEGMENTATION,
    "classes_file": SEGMENTATION,
    "first_class_value": SEGMENTATION,
    "ignore_values": SEGMENTATION,
    "box_format": DETECTION,
}
"""The task whose data an option describes."""
_RECIPES = {DETECTION.name: "detect/bccd", SEGMENTATION.name: "segment/camvid"}
"""A recipe to begin with, for tasks other than classification."""


def data(arguments: Sequence[str]) -> bool:
    """Print the splits, classes and images of a data set, and what training would leave out or refuse.

    Returns:
        Whether all images and masks are usable.

    Raises:
        FileNotFoundError: the data set does not exist.
        ValueError: training could not use it.
    """
    parser = Parser("acmix-zoo data", description="Check a data set without training: splits, classes, unusable files.")
    parser.add_argument("source", help="a folder, or anything else that --data.source accepts")
    parser.add_argument(
        "--task", choices=TASK_KINDS, help="what the data are for; by default, the layout of the folder decides"
    )
    parser.add_argument("--label_column", metavar="NAME", help="class column of a table that has several")
    parser.add_argument("--mask_column", metavar="NAME", help="mask column of a table that has several image columns")
    parser.add_argument("--classes_file", metavar="FILE", help="names of the classes of masks, one per line")
    parser.add_argument("--first_class_value", type=int, metavar="N", help="value of the first class in masks")
    parser.add_argument("--ignore_values", type=int, nargs="+", metavar="N", help="mask values that belong to no class")
    parser.add_argument("--box_format", choices=("xywh", "xyxy"), help="what the numbers of a box in a table are")
    options = parser.parse_args(arguments)
    loaders = _open_loaders(options)
    inspections = loaders.inspect(list(loaders.sizes()), thorough=True)
    print(loaders.summary(inspections))
    return not any(inspection.problems for inspection in inspections.values())


def _open_loaders(options: argparse.Namespace) -> IndexedLoaders:
    """Return the loaders of a data set, which know how to check and summarise it."""
    given = {name: value for name in _OPTION_TASKS if (value := getattr(options, name)) is not None}
    task = options.task or next((_OPTION_TASKS[name].name for name in given), layout_task(options.source).name)
    for name in given:
        if _OPTION_TASKS[name].name != task:
            raise ValueError(f"--{name} does not apply to data for {task}. Expected --task {_OPTION_TASKS[name].name}")
    if task == DETECTION.name:
        return BoxLoaders(open_box_source(options.source, **given), DEFAULT_VAL_FRACTION, seed=0)
    if task == SEGMENTATION.name:
        column = given.pop("mask_column", None)
        source = open_mask_source(options.source, ClassOptions(**given), column)
        return MaskLoaders(source, DEFAULT_VAL_FRACTION, seed=0)
    return IndexedLoaders(open_source(options.source, **given), DEFAULT_VAL_FRACTION, seed=0)


def layout_task(source: str) -> TaskKind:
    """Return the task for which a folder is laid out, classification for anything else."""
    path = Path(source).expanduser()
    if is_coco_folder(path) or is_voc_folder(path):
        return DETECTION
    return SEGMENTATION if is_mask_folder(path) else CLASSIFICATION


def check_class_folders(source: str) -> None:
    """Raise ValueError if a folder is laid out for detection or segmentation, and no table states classes of images."""
    task = layout_task(source).name
    if task in _RECIPES and not is_table(Path(source).expanduser()):
        raise ValueError(
            f"{source} looks like a {task} data set. Expected a folder with one subfolder of images per class. Use "
            f"`acmix-zoo fit --config {_RECIPES[task]} --data.source {shlex.quote(source)}`"
        )
