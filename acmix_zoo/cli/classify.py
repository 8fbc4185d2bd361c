"""The command `acmix-zoo classify`: print the most probable classes of pictures. See `acmix_zoo.cli`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acmix_zoo.cli.parser import Parser


def classify(arguments: Sequence[str]) -> list[list[tuple[str, float]]]:
    """Print the most probable classes of pictures, one per line.

    Files in a folder that are skipped are reported, and do not count as a failure.

    Returns:
        A list of (class, probability) pairs for each picture, most probable first.

    Raises:
        FileNotFoundError: the weights do not exist.
        ValueError: the weights cannot be read, or one of the given pictures or folders could not be classified. In the
            latter case, the others were.
    """
    parser = Parser("acmix-zoo classify", description="Classify pictures with trained weights.")
    parser.add_argument("weights", help="a weight folder, a run folder, a checkpoint of `fit`, or a model's name")
    parser.add_argument("images", nargs="+", type=Path, metavar="image", help="a picture, or a folder of pictures")
    parser.add_argument("--top", type=int, default=5, help="how many classes to print per picture (default: 5)")
    options = parser.parse_args(arguments)
    if options.top < 1:
        parser.error(f"--top {options.top} was given; expected at least 1")

    import torch
    from timm.data import create_transform, resolve_data_config

    from acmix_zoo.data.images import UnreadableImage, load_image
    from acmix_zoo.data.predict_images import find_images_in
    from acmix_zoo.weights import create_model

    name: Any = Path(options.weights) if Path(options.weights).exists() else options.weights
    model = create_model(name, pretrained=True).eval()
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    transform = create_transform(**resolve_data_config(pretrained_cfg=cfg))
    labels = cfg.get("label_names") or [f"class {i}" for i in range(int(model.num_classes))]  # type: ignore[arg-type]
    # A probability does not reveal that a picture shows none of these classes.
    print(f"{options.weights} knows {_known(labels)}; every picture is assigned to one", file=sys.stderr, flush=True)
    paths: list[str] = []
    failures: list[str] = []
    for place in options.images:
        try:
            found, skipped = find_images_in(place)
        except (OSError, ValueError) as error:
            failures.append(str(error))
            continue
        paths += found
        for line in skipped:
            print(line, file=sys.stderr, flush=True)
    results = []
    for path in paths:
        try:
            picture = load_image(path)
        except UnreadableImage as error:
            if Path(path) in options.images:
                failures.append(str(error))
            else:
                print(f"skipped {error}", file=sys.stderr, flush=True)
            continue
        x = transform(picture)[None]  # (1, C, H, W)
        with torch.inference_mode():
            probabilities = model(x).softmax(-1)[0]  # (classes,)
        best = probabilities.topk(min(options.top, len(probabilities)))
        results.append([(labels[i], float(p)) for p, i in zip(best.values, best.indices.tolist(), strict=True)])
        print(path, *(f"  {100 * p:5.1f} %  {label}" for label, p in results[-1]), sep="\n", flush=True)
    if failures:
        raise ValueError(f"{len(failures)} of the given pictures could not be classified: {'; '.join(failures)}")
    return results


def _known(labels: Sequence[str]) -> str:
    names = ", ".join(labels[:10]) + (", …" if len(labels) > 10 else "")
    return f"{len(labels)} classes ({names})"
