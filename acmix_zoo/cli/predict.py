"""`acmix-zoo predict IMAGES --model MODEL`: predictions of any weights, such as shipped or downloaded ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from acmix_zoo.cli.parser import MODEL_HELP, Parser


def predict_images(arguments: Sequence[str]) -> None:
    """Predict the classes, boxes or masks of images, and save them.

    Raises:
        FileNotFoundError, ValueError: there are no such weights or images. Other errors are those of `weight_folder`.
    """
    parser = Parser("acmix-zoo predict")  # fit_help.py has its help
    parser.add_argument("images", nargs="+", metavar="IMAGES")
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--output", type=Path, metavar="FOLDER")
    if any(word.startswith(("--config", "--data.")) for word in arguments):
        parser.error(
            "IMAGES, --model, --threshold and --output cannot be combined with --config and --data.predict. Use "
            "IMAGES --model MODEL, where MODEL may be a run folder"
        )
    options = parser.parse_intermixed_args(arguments)  # so that images may come last
    if options.threshold is not None and not 0 <= options.threshold <= 1:
        parser.error(f"--threshold {options.threshold} is not a score. Expected a number from 0 to 1")
    parser.check_output("--output", options.output, is_folder=True)

    from acmix_zoo.cli.predictions import write_predictions
    from acmix_zoo.models.task_kinds import DETECTION, config_task
    from acmix_zoo.training.evaluate import predict
    from acmix_zoo.weights import read_config
    from acmix_zoo.weights.fetch import weight_folder
    from acmix_zoo.weights.names import file_name

    folder = weight_folder(options.model, is_complete=False)
    config = read_config(folder)
    task = config_task(config)
    if options.threshold is not None and task is not DETECTION:
        parser.error(f"--threshold is for detectors, but {options.model} is for {task.title}. Leave it out")
    found = predict(folder, options.images)
    batches = found.batches
    if options.threshold is not None:
        batches = [[image.above(options.threshold) for image in batch] for batch in batches]
    name = file_name(config.get("acmix_zoo", {}).get("name") or folder.name)
    write_predictions(task, found.trainer, batches, found.data, options.output or Path("runs") / f"predict-{name}")
    named = dict.fromkeys(str(Path(image).expanduser()) for image in options.images)
    if failures := [path for path in named if Path(path).is_file() and path not in found.data.predict_paths]:
        raise ValueError(
            f"{len(failures)} of the given images could not be predicted: {', '.join(failures)}. Repair these files "
            "or leave them out"
        )
