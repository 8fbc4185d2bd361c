"""The command `acmix-zoo convert`: turn a checkpoint file into a weight folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm.utils import ParseKwargs

from acmix_zoo.cli.parser import Parser
from acmix_zoo.weights import read_config
from acmix_zoo.weights.convert_checkpoint import convert
from acmix_zoo.weights.official import TAG, official_folder, official_record


def convert_checkpoint(arguments: Sequence[str]) -> None:
    """Convert a checkpoint file to a weight folder.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it cannot be read, or its weights do not belong to the network.
    """
    parser = Parser("acmix-zoo convert", description="Convert a checkpoint file to a weight folder.")
    parser.add_argument("file", help="checkpoint of the authors, Lightning, timm or plain torch, or a safetensors file")
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        help="output folder (default: weights/NAME; for the authors' files the cache that pretrained= reads)",
    )
    parser.add_argument(
        "--model", required=True, metavar="NAME", help=f"architecture or architecture.tag, such as acmix_swin_t.{TAG}"
    )
    parser.add_argument(
        "--model-kwargs",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="arguments of the network that the file does not state, such as img_size=64",
    )
    options = parser.parse_intermixed_args(arguments)  # so that FOLDER may come last
    words = options.model_kwargs
    if len(words) > 1 and options.folder is None and "=" not in words[-1]:
        options.folder = Path(words.pop())
    if wrong := [word for word in words if "=" not in word]:
        parser.error(f"--model-kwargs {wrong[0]} has no value. Expected KEY=VALUE, such as img_size=64")
    options.model_kwargs = {}
    ParseKwargs(["--model-kwargs"], "model_kwargs")(parser, options, words)
    name, file_name = options.model, Path(options.file).name
    record: dict[str, Any] = {"origin": f"converted from {file_name}"}
    default = official_folder(name)
    if default is not None:
        record = {**official_record(name.partition(".")[0]), "source": {"file": file_name}}
    target = options.folder or default or Path("weights") / name
    folder = convert(options.file, name, target, record, options.model_kwargs)
    print(f"{folder}: {read_config(folder)['acmix_zoo']['params']:,} parameters; verified")
