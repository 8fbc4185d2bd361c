"""The command `acmix-zoo classify`: print the most probable classes of images, or write them to files."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from acmix_zoo.cli.parser import MODEL_HELP, Parser

if TYPE_CHECKING:
    from torch import nn

    from acmix_zoo.weights.class_names import ClassNames

_SHEET_LIMIT = 400  # more images would be too small to recognise on a screen


class ClassProbability(NamedTuple):
    """A class and its probability for one image.

    Attributes:
        name: the name of the class in the training data, such as a folder's name or a WordNet id.
        description: the same in words.
        probability: between 0 and 1.
    """

    name: str
    description: str
    probability: float


class ClassifiedImage(NamedTuple):
    """An image with its most probable classes, most probable first."""

    path: str
    classes: list[ClassProbability]


def classify(arguments: Sequence[str]) -> list[ClassifiedImage]:
    """Print the most probable classes of images, one class per line, or write them as CSV, JSON or a contact sheet.

    Unusable files in a folder are reported and skipped. They do not count as a failure.

    Raises:
        FileNotFoundError: the weights do not exist.
        ValueError: the weights cannot be read, or a given image or folder cannot be classified. All other images are
            classified before this is raised.
    """
    options = _parse(arguments)

    from tqdm import tqdm

    from acmix_zoo.data.contact_sheet import check_sheet_path
    from acmix_zoo.weights.class_names import class_names
    from acmix_zoo.weights.classifier import load_classifier

    if options.sheet:
        check_sheet_path(options.sheet)
    model = load_classifier(options.model)
    names = class_names(model)
    # A high probability does not mean that an image shows one of these classes.
    _remark(f"{options.model} knows {_class_list(names.descriptions)}; every image is assigned to one of them")
    paths, failures = _find_images(options.images)
    given = {str(Path(location).expanduser()) for location in options.images}
    results: list[ClassifiedImage] = []
    with tqdm(total=len(paths), unit="image", disable=None, leave=False) as progress:  # None: only on a terminal
        for classified, problems in _classify_all(model, names, paths, options.top, options.batch_size):
            for path, problem in problems:
                if path in given:
                    failures.append(problem)
                else:
                    _remark(f"skipped {problem}")
            if not options.json and options.csv is None:
                for image in classified:
                    tqdm.write("\n".join([image.path, *map(_line, image.classes)]), file=sys.stdout)
                sys.stdout.flush()
            results += classified
            progress.update(len(classified) + len(problems))
    if options.json:
        print(json.dumps([_as_json(image) for image in results], indent=2, ensure_ascii=False))
    if options.csv is not None:
        _write_csv(options.csv, results)
        _remark(f"Saved the classes of {len(results):,} images to {options.csv}")
    if options.sheet and results:
        _write_sheet(options.sheet, results)
    if failures:
        raise ValueError(f"{len(failures)} of the given images could not be classified: {'; '.join(failures)}")
    return results


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("acmix-zoo classify", description="Classify images with trained weights.")
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="an image file, a folder of images, or a pattern such as '*.jpg'"
    )
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    parser.add_argument("--top", type=int, default=5, help="number of classes per image (default: 5)")
    parser.add_argument("--batch-size", type=int, default=32, help="images per batch (default: 32)")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON instead of text")
    output.add_argument("--csv", type=Path, metavar="FILE", help="write a table instead of printing text")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="also write a contact sheet (.png, .jpg or .webp)")
    options = parser.parse_intermixed_args(arguments)  # so that images may come last
    for name in ("top", "batch_size"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)} is too small. Use 1 or more")
    parser.check_output("--csv", options.csv)
    parser.check_output("--sheet", options.sheet)
    return options


def _find_images(locations: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the paths of all images, each once, and what is wrong with locations that have none."""
    from acmix_zoo.data.predict_images import find_images_in

    paths: list[str] = []
    failures: list[str] = []
    for location in locations:
        try:
            found, remarks = find_images_in(location)
        except (OSError, ValueError) as error:
            failures.append(str(error))
            continue
        paths += found
        for line in remarks:
            _remark(line)
    return list(dict.fromkeys(paths)), failures


class _Classified(NamedTuple):
    """The result for one batch: its images, and the paths and problems of unreadable ones."""

    images: list[ClassifiedImage]
    problems: list[tuple[str, str]]


def _classify_all(
    model: nn.Module, names: ClassNames, paths: Sequence[str], top: int, batch_size: int
) -> Iterator[_Classified]:
    """Yield the most probable classes of images, batch by batch."""
    import torch

    from acmix_zoo.data.image_loading import evaluation_transform, load_batches
    from acmix_zoo.data.images import load_image

    readers = [partial(load_image, path) for path in paths]
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]  # timm's contract
    for batch in load_batches(readers, evaluation_transform(cfg), batch_size):
        images = []
        if batch.numbers:
            with torch.inference_mode():
                probabilities = model(batch.images).softmax(-1)  # (B, classes)
            best = probabilities.topk(min(top, probabilities.shape[1]))
            images = [
                ClassifiedImage(
                    paths[number],
                    [
                        ClassProbability(names.names[i], names.descriptions[i], p)
                        for i, p in zip(indices, values, strict=True)
                    ],
                )
                for number, indices, values in zip(
                    batch.numbers, best.indices.tolist(), best.values.tolist(), strict=True
                )
            ]
        problems = [(paths[number], str(error)) for number, error in batch.problems.items()]
        yield _Classified(images, problems)


def _line(found: ClassProbability) -> str:
    return f"  {100 * found.probability:5.1f} %  {found.description}"


def _as_json(image: ClassifiedImage) -> dict[str, Any]:
    return {"path": image.path, "classes": [found._asdict() for found in image.classes]}


def _write_csv(path: Path, results: Sequence[ClassifiedImage]) -> None:
    """Write a table with one row per image and class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "rank", "class", "description", "probability"])
        for image in results:
            for rank, found in enumerate(image.classes, start=1):
                writer.writerow([image.path, rank, found.name, found.description, f"{found.probability:.4f}"])


def _write_sheet(path: Path, results: Sequence[ClassifiedImage]) -> None:
    """Write a contact sheet with the three most probable classes below each image."""
    from acmix_zoo.data.contact_sheet import write_contact_sheet
    from acmix_zoo.data.images import load_image

    shown = results[:_SHEET_LIMIT]
    titles = ["\n".join(_line(found).strip() for found in image.classes[:3]) for image in shown]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_contact_sheet(path, (load_image(image.path) for image in shown), titles)
    part = f" of the first {len(shown)} images" if len(shown) < len(results) else ""
    _remark(f"Saved a contact sheet{part} to {path}")


def _remark(text: str) -> None:
    """Print a message that is not part of the result."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


def _class_list(names: Sequence[str]) -> str:
    """Return the number of classes and the first ten names."""
    listed = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    return f"{len(names)} classes ({listed})"
