"""`acmix-zoo predict IMAGES --model MODEL`: predictions of any weights, such as shipped or downloaded ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from acmix_zoo.cli.parser import MODEL_HELP, Parser


def predict_images(arguments: Sequence[str]) -> None:
    """Write the boxes, masks or classes that weights find in images.

    Raises:
        FileNotFoundError, ValueError: there are no such weights or images. Other errors are those of `weight_folder`.
    """
    parser = Parser("acmix-zoo predict", description="Detect objects in images, segment or classify them.")
    parser.add_argument("images", metavar="IMAGES", help="an image, a folder of images, or a pattern such as '*.jpg'")
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="output folder (default: runs/predict-MODEL)")
    options = parser.parse_args(arguments)

    from acmix_zoo.cli.predictions import write_predictions
    from acmix_zoo.training.evaluate import predict
    from acmix_zoo.weights import read_config
    from acmix_zoo.weights.fetch import weight_folder

    folder = weight_folder(options.model)
    found = predict(folder, options.images)
    output = options.output or Path("runs") / f"predict-{read_config(folder)['acmix_zoo']['name']}"
    write_predictions(found.task, found.trainer, found.batches, found.data, output)
