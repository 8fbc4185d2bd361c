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
    parser.add_argument(
        "images", nargs="+", metavar="IMAGES", help="an image, a folder of images, or a pattern such as '*.jpg'"
    )
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    parser.add_argument("--threshold", type=float, help="of a detector: leave out boxes with a lower score")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="output folder (default: runs/predict-MODEL)")
    if any(word.startswith(("--config", "--data.")) for word in arguments):
        parser.error("IMAGES and --model do not go with --config and --data.predict. Use one or the other")
    options = parser.parse_intermixed_args(arguments)  # so that images may come last

    from acmix_zoo.cli.predictions import write_predictions
    from acmix_zoo.models.task_kinds import DETECTION
    from acmix_zoo.training.evaluate import predict
    from acmix_zoo.weights import read_config
    from acmix_zoo.weights.fetch import weight_folder

    folder = weight_folder(options.model)
    found = predict(folder, options.images)
    batches = found.batches
    if options.threshold is not None:
        if found.task is not DETECTION:
            parser.error(f"--threshold is for detectors, but {options.model} is for {found.task.title}. Leave it out")
        batches = [[image.above(options.threshold) for image in batch] for batch in batches]
    output = options.output or Path("runs") / f"predict-{read_config(folder)['acmix_zoo']['name']}"
    write_predictions(found.task, found.trainer, batches, found.data, output)
