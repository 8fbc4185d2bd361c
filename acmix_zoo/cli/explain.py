"""The command `acmix-zoo explain`: show what attention and convolution contribute to the decision for an image."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from acmix_zoo.cli.packages import require_packages
from acmix_zoo.cli.parser import MODEL_HELP, Parser
from acmix_zoo.cli.text_table import print_columns

if TYPE_CHECKING:
    from acmix_zoo.explain import Explanation
    from acmix_zoo.explain.contributions import Contributions, PathContribution
    from acmix_zoo.explain.pixel_attention import Pixel
    from acmix_zoo.weights.class_names import ClassNames

_DESCRIPTION = """\
Show what attention and convolution contribute to the decision of a network for an image.

The score of a class is divided into parts for both paths of every layer, and for every position. The parts sum to the
score; docs/explain.md describes the method. The command writes pictures, the numbers as JSON, and explanation.html, a
page that contains everything: the contributions, alpha and beta of each layer, the attention of one pixel, the kernels
of the convolution paths, and Grad-CAM."""


def explain_image(arguments: Sequence[str]) -> Explanation:
    """Explain the decision for an image, print the numbers, and write the page.

    Raises:
        FileExistsError: the output folder is a file, or has other files of the same names.
        FileNotFoundError: the weights do not exist.
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: the weights or the image cannot be read, or the class, layer, head or pixel does not exist.
    """
    options = _parse(arguments)
    require_packages("explain", ("matplotlib",), "train")

    from acmix_zoo.data.images import load_image
    from acmix_zoo.data.prepared_image import prepare_image
    from acmix_zoo.explain import Subject, explain, write_explanation
    from acmix_zoo.explain.explanation_folder import check_explanation_folder
    from acmix_zoo.weights.class_names import class_names
    from acmix_zoo.weights.classifier import load_classifier

    folder = options.out or _first_free(Path("explained") / options.image.stem)
    check_explanation_folder(folder)
    picture = load_image(options.image)
    model = load_classifier(options.model)
    names = class_names(model)
    labels = names.descriptions
    target = None if options.target is None else _class_index(options.target, names)
    prepared = prepare_image(picture, model)
    found = explain(model, prepared.tensor, target=target, layer=options.layer, pixel=options.pixel)
    subject = Subject(options.image.name, options.model, labels, options.head)
    files = write_explanation(found, prepared.picture, subject, folder)

    print(f"{options.image}: {labels[found.target]} {100 * float(found.probabilities[found.target]):.2f} %")
    for line in found.missing:
        print(line)
    if found.contributions:
        _print_contributions(found.contributions)
    print(f"Saved {', '.join(path.name for path in files)} to {files[0].parent}. Open {files[0]} in a browser.")
    return found


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("acmix-zoo explain", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("image", type=Path, help="an image file")
    add("--model", required=True, help=MODEL_HELP)
    add("--class", dest="target", metavar="CLASS", help="name or number of the class (default: the most probable one)")
    add("--layer", help="layer whose attention is shown (default: the one whose attention contributes most)")
    add("--head", type=int, help="index of the attention head to show (default: the mean and the first eight heads)")
    add(
        "--pixel", type=_pixel, metavar="X,Y", help="pixel whose attention is shown, in the image as the network sees "
        "it, or `token` for the class token of PVT (default: where the attention of the layer contributes most)",
    )  # fmt: skip
    add(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="output folder (default: explained/IMAGE; if it exists, explained/IMAGE-2, ...)",
    )
    options = parser.parse_args(arguments)
    parser.check_output("--out", options.out, is_folder=True)
    return options  # type: ignore[no-any-return]


def _first_free(folder: Path) -> Path:
    """Return the first of FOLDER, FOLDER-2, FOLDER-3, … that does not exist."""
    folders = chain([folder], (folder.with_name(f"{folder.name}-{number}") for number in count(2)))
    return next(path for path in folders if not path.exists())


def _pixel(text: str) -> Pixel:
    if text == "token":
        return "token"
    try:
        x, y = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a pixel. Expected X,Y, such as 12,20, or token") from None
    return x, y


def _class_index(given: str, names: ClassNames) -> int:
    """Return the index of a class that is given by name, description or number.

    Raises:
        ValueError: there is no such class.
    """
    for known in names:  # as it is written first, because classes may differ in case only
        if given in known:
            return known.index(given)
    indices = {name.lower(): i for known in names for i, name in reversed(list(enumerate(known)))}
    if given.lower() in indices:
        return indices[given.lower()]
    labels = names.descriptions
    if given.isdecimal() and int(given) < len(labels):
        return int(given)
    found = [indices[word] for word in difflib.get_close_matches(given.lower(), indices, 3)]
    near = [labels[i] for i in dict.fromkeys(found)] or labels[:10]
    more = ", …" if len(near) < len(labels) else ""
    raise ValueError(
        f"--class {given}: there is no such class. Expected one of {', '.join(near)}{more}, or a number from 0 to "
        f"{len(labels) - 1}"
    )


def _print_contributions(parts: Contributions) -> None:
    scores = parts.scores
    print(
        f"score {scores.both:.3f} = attention {parts.attention:+.3f}, convolution {parts.convolution:+.3f}, "
        f"rest of the network {parts.rest:+.3f}, integration error {parts.error:+.3f}"
    )
    print(f"score with only attention {scores.attention:.3f}, with only convolution {scores.convolution:.3f}")
    cells = [("layer", "alpha", "attention", "beta", "convolution")]
    for layer in parts.layers:
        attention, convolution = (_total(part) for part in (layer.attention, layer.convolution))
        cells.append((layer.name, _factor(layer.alpha), attention, _factor(layer.beta), convolution))
    print_columns(cells)


def _factor(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _total(part: PathContribution | None) -> str:
    return "" if part is None else f"{part.total:+.3f}"
