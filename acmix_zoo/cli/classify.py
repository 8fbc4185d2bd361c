"""The command `acmix-zoo classify`: print the most probable classes of pictures. See `acmix_zoo.cli`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acmix_zoo.cli.parser import Parser


def classify(arguments: Sequence[str]) -> list[list[tuple[str, float]]]:
    """Print the most probable classes of pictures, one per line.

    Returns:
        A list of (class, probability) pairs for each picture, most probable first.

    Raises:
        FileNotFoundError, ValueError: the weights or a picture does not exist or cannot be read.
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

    from acmix_zoo.data.images import load_image
    from acmix_zoo.weights import create_model

    name: Any = Path(options.weights) if Path(options.weights).exists() else options.weights
    paths = [path for image in options.images for path in _pictures(image)]
    model = create_model(name, pretrained=True).eval()
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    transform = create_transform(**resolve_data_config(pretrained_cfg=cfg))
    labels = cfg.get("label_names") or [f"class {i}" for i in range(int(model.num_classes))]  # type: ignore[arg-type]
    # A probability does not reveal that a picture shows none of these classes.
    print(f"{options.weights} knows {_known(labels)}; every picture is assigned to one", file=sys.stderr, flush=True)
    results = []
    for path in paths:
        x = transform(load_image(path))[None]  # (1, C, H, W)
        with torch.inference_mode():
            probabilities = model(x).softmax(-1)[0]  # (classes,)
        best = probabilities.topk(min(options.top, len(probabilities)))
        results.append([(labels[i], float(p)) for p, i in zip(best.values, best.indices.tolist(), strict=True)])
        print(path, *(f"  {100 * p:5.1f} %  {label}" for label, p in results[-1]), sep="\n", flush=True)
    return results


def _pictures(path: Path) -> list[Path]:
    """Return all pictures in a folder and its subfolders, or the file itself."""
    if not path.is_dir():
        return [path]
    from acmix_zoo.data.option_checks import pictures_to_predict

    return [Path(name) for name in pictures_to_predict(str(path))]


def _known(labels: Sequence[str]) -> str:
    names = ", ".join(labels[:10]) + (", …" if len(labels) > 10 else "")
    return f"{len(labels)} classes ({names})"
