"""The short help of `fit`, `validate`, `test` and `predict`.

Like commands.py, this file imports nothing that takes time, so the help appears at once.
"""

from __future__ import annotations

_CONFIG = {
    "--config CONFIG": "a recipe such as finetune/folder, a YAML file, or a run folder. May be repeated; later ones "
    "override",
}
_EVALUATION = {
    **_CONFIG,
    "--data.source SOURCE": "data set (default: the one that the run was trained on)",
    "--ckpt_path FILE": "best (the default), last, a run folder or a checkpoint file",
    "--model.pretrained WEIGHTS": "evaluate these weights instead of a checkpoint",
    "--data.batch_size N": "images per batch and device",
    "--data.num_workers N": "processes that load images",
}
# The options that most people use; `--help-all` lists all of them.
OPTIONS: dict[str, dict[str, str]] = {
    "fit": {
        **_CONFIG,
        "--data.source SOURCE": "folder with one subfolder per class (train/, val/ and test/ are recognised), table, "
        "Hub data set, or fashion_mnist. Segmentation: images/ and masks/. Detection: COCO or Pascal VOC",
        "--model.model NAME": "network: a name from `acmix-zoo list`, any timm model, or a weight folder",
        "--model.pretrained WEIGHTS": "weights to start from: true, false, a tag, or anything that MODEL can be",
        "--data.image_size PIXELS": "side length of the square input, in pixels",
        "--data.batch_size N": "images per batch and device",
        "--model.lr LR": "learning rate",
        "--run.find_lr true": "suggest a learning rate, print the command that trains with it, and stop",
        "--trainer.max_epochs N": "number of epochs",
        "--data.num_workers N": "processes that load images (0: load in the training process)",
        "--run.folder FOLDER": "output folder (default: runs/RECIPE-DATA). Run the same command again to resume",
        "--run.verbose true": "also print learning rate, throughput, time waiting for data and MFU",
    },
    "validate": _EVALUATION,
    "test": _EVALUATION,
    "predict": {
        "IMAGES": "an image, a folder of images, or a pattern such as '*.jpg'",
        "--model MODEL": "weights: a name, a weight folder, a run folder, or ORG/NAME on the Hub",
        "--threshold SCORE": "for detectors: drop boxes that score below SCORE",
        "--output FOLDER": "output folder (default: runs/predict-MODEL)",
        "--config RUN": "instead of the options above: the weights of a run, with its options and those below",
        "--data.predict PATH": "an image, or a folder of images",
        "--ckpt_path FILE": "best (the default), last, a run folder or a checkpoint file",
        "--data.batch_size N": "images per batch and device",
        "--data.num_workers N": "processes that load images",
    },
}
_SUMMARIES = {
    "fit": "Train a network, or fine-tune pretrained weights. Logs, checkpoints and weights go to the run folder.",
    "validate": "Measure the scores of a run's best weights on the validation split.",
    "test": "Measure the scores of a run's best weights on the test split.",
    "predict": "Classify images, detect objects in them or segment them. The result is predictions.csv, "
    "predictions.json in\nCOCO's format, or a folder of masks.",
}


def short_help(command: str, example: str) -> str:
    """Return the help of a command with the options that most people use.

    Args:
        command: a command that takes a recipe.
        example: arguments that show its use.
    """
    options = OPTIONS[command]
    width = max(map(len, options)) + 2
    usage = "IMAGES --model MODEL" if command == "predict" else "--config CONFIG"
    return "\n".join(
        [
            f"usage: acmix-zoo {command} {usage} [options]\n\n{_SUMMARIES[command]}\n",
            *(f"  {option:{width}}{text}" for option, text in options.items()),
            f"\nExample: acmix-zoo {command} {example}\n\nAll options: acmix-zoo {command} --help-all",
        ]
    )
