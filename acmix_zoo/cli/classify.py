"""The command `acmix-zoo classify`: print the most probable classes of images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acmix_zoo.cli.parser import MODEL_HELP, Parser


def classify(arguments: Sequence[str]) -> list[list[tuple[str, float]]]:
    """Print the most probable classes of images, one class per line.

    Unusable files in a folder are reported and skipped. They do not count as a failure.

    Returns:
        A list of (class, probability) pairs for each image, most probable first.

    Raises:
        FileNotFoundError: the weights do not exist.
        ValueError: the weights cannot be read, or a given image or folder cannot be classified. All other images are
            classified before this is raised.
    """
    parser = Parser("acmix-zoo classify", description="Classify images with trained weights.")
    parser.add_argument("weights", help=MODEL_HELP)
    parser.add_argument("images", nargs="+", type=Path, metavar="image", help="an image file, or a folder of images")
    parser.add_argument("--top", type=int, default=5, help="number of classes to print per image (default: 5)")
    options = parser.parse_args(arguments)
    if options.top < 1:
        parser.error(f"--top {options.top} is too small. Use 1 or more")

    import torch
    from timm.data import create_transform, resolve_data_config

    from acmix_zoo.data.images import UnreadableImage, load_image
    from acmix_zoo.data.predict_images import find_images_in
    from acmix_zoo.models.task_network import TaskNetwork
    from acmix_zoo.weights import from_pretrained

    model = from_pretrained(options.weights).eval()
    if isinstance(model, TaskNetwork):
        raise ValueError(
            f"{options.weights} holds a network for {model.kind.title}. Expected weights of a classifier. Use "
            "`acmix-zoo predict --config RUN --data.predict IMAGES`"
        )
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    transform = create_transform(**resolve_data_config(pretrained_cfg=cfg))
    labels = cfg.get("label_names") or [f"class {i}" for i in range(int(model.num_classes))]  # type: ignore[arg-type]
    # A high probability does not mean that an image shows one of these classes.
    print(
        f"{options.weights} knows {_class_list(labels)}; every image is assigned to one of them",
        file=sys.stderr,
        flush=True,
    )
    paths: list[str] = []
    failures: list[str] = []
    for location in options.images:
        try:
            found, skipped = find_images_in(location)
        except (OSError, ValueError) as error:
            failures.append(str(error))
            continue
        paths += found
        for line in skipped:
            print(line, file=sys.stderr, flush=True)
    results = []
    for path in paths:
        try:
            image = load_image(path)
        except UnreadableImage as error:
            if Path(path) in options.images:
                failures.append(str(error))
            else:
                print(f"skipped {error}", file=sys.stderr, flush=True)
            continue
        x = transform(image)[None]  # (1, C, H, W)
        with torch.inference_mode():
            probabilities = model(x).softmax(-1)[0]  # (classes,)
        best = probabilities.topk(min(options.top, len(probabilities)))
        results.append([(labels[i], float(p)) for p, i in zip(best.values, best.indices.tolist(), strict=True)])
        print(path, *(f"  {100 * p:5.1f} %  {label}" for label, p in results[-1]), sep="\n", flush=True)
    if failures:
        raise ValueError(f"{len(failures)} of the given images could not be classified: {'; '.join(failures)}")
    return results


def _class_list(labels: Sequence[str]) -> str:
    """Return the number of classes and the first ten names."""
    names = ", ".join(labels[:10]) + (", …" if len(labels) > 10 else "")
    return f"{len(labels)} classes ({names})"
