"""The command `acmix-zoo export`: write a network as an ONNX file, for torch.export, or as a weight folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from acmix_zoo.cli.packages import require_packages
from acmix_zoo.cli.parser import MODEL_HELP, Parser
from acmix_zoo.weights import read_config
from acmix_zoo.weights.locate import Kind, locate

if TYPE_CHECKING:
    from acmix_zoo.export.export_file import ExportedFile

_SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch-export": ()}


def export(arguments: Sequence[str]) -> None:
    """Write a network in the format that the output's name or `--format` states.

    An ONNX file or a file of torch.export is compared with the network on real images before it is moved to its place.

    Raises:
        ModuleNotFoundError: a package for the format is missing.
        FileNotFoundError: there is no such network, run, checkpoint or image.
        ValueError: there are no weights, or the file does not give the logits of the network.
    """
    options = _parse(arguments)
    if options.format == "folder":
        from acmix_zoo.training.export_weights import export_run

        folder = export_run(options.model, options.output, averaged=not options.no_ema)
        print(f"{folder}: {read_config(folder)['acmix_zoo']['name']}; verified")
        return
    require_packages(f"export to {options.format}", _PACKAGES[options.format], "export")

    from acmix_zoo.export.export_file import export_file

    more = {name: getattr(options, name) for name in ("data", "int8", "limit")}
    _print_result(export_file(options.model, options.output, options.format, **more))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "acmix-zoo export",
        description="Write a network as a file for onnxruntime or torch.export, folded for inference and checked on "
        "images, or the weights of a run as a weight folder.",
    )
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument(
        "output", type=Path, nargs="?", help="file.onnx, file.pt2 or a folder (default: a file named after the model)"
    )
    parser.add_argument(
        "--format", choices=(*_SUFFIXES, "folder"), help="output format (default: by the output's extension)"
    )
    parser.add_argument("--int8", action="store_true", help="quantise an ONNX file; needs --data")
    parser.add_argument(
        "--data",
        metavar="SOURCE",
        help="images to check the file with. Class folders, or another labelled data set, also give the accuracy",
    )
    parser.add_argument("--limit", type=int, default=1000, help="number of these images to use (default: 1000)")
    parser.add_argument(
        "--no-ema", action="store_true", help="write a run's trained weights, not their moving average; only to folders"
    )
    options = parser.parse_intermixed_args(arguments)  # so that the output may come last
    suffix = options.output.suffix.lower() if options.output else ""
    by_suffix = {value: key for key, value in _SUFFIXES.items()}
    options.format = options.format or by_suffix.get(suffix, "folder")
    if options.format == "folder" and options.output is None:
        parser.error("a weight folder needs a name. Pass the output folder, or --format onnx or torch-export")
    if by_suffix.get(suffix, options.format) != options.format:
        parser.error(f"--format {options.format} does not fit the extension of {options.output}. Leave out --format")
    if options.no_ema and options.format != "folder":
        parser.error("--no-ema only applies to weight folders. Export one, and then export that to a file")
    if options.int8 and (options.format != "onnx" or options.data is None):
        parser.error("--int8 needs --format onnx, and images to measure ranges on. Pass them with --data")
    if options.limit < 1:
        parser.error(f"--limit {options.limit} is too small. Use 1 or more")
    if options.format != "folder":
        locate(options.model, prefers_paths=True)  # before a folder is created for a model that does not exist
        options.output = _output_path(options)
        parser.check_output("output", options.output)
    return options


def _output_path(options: argparse.Namespace) -> Path:
    """Return the file to write. Its extension is added if it is missing, and its name if only a folder is given."""
    suffix = _SUFFIXES[options.format]
    output: Path | None = options.output
    if output is None or output.is_dir():
        return (output or Path()) / f"{_model_name(options.model)}{suffix}"
    return output if output.suffix.lower() == suffix else output.with_name(output.name + suffix)


def _model_name(model: str) -> str:
    """Return a file name without extension for a model: that of its run, weight folder, checkpoint or network."""
    location = locate(model, prefers_paths=True)
    if location.repository is not None:
        return location.repository.id.partition("/")[2]
    if location.kind is Kind.NETWORK or location.path is None:
        return location.name
    path = (location.run or location.path).resolve()
    return path.name if path.is_dir() else path.stem


def _print_result(found: ExportedFile) -> None:
    """Print what was written, how well it agrees with the network, and what to do next."""
    side = found.smallest_side
    size = "the training size" if side is None else "any size"
    if side is not None and side > 1:
        size += f" of at least {side}×{side} pixels"
    bytes_written = found.path.stat().st_size
    print(f"Saved {found.path.name} ({_megabytes(bytes_written)}). It accepts batches of images of {size}")
    agreement = found.agreement
    kind = "float32 file" if found.int8_agreement else "file"
    print(
        f"Checked on {found.images}: the logits of the {kind} differ from the network's by at most "
        f"{agreement.difference:.1e} (largest logit: {agreement.scale:.1f})"
    )
    if found.int8_agreement:
        int8 = found.int8_agreement
        share = 100 * int8.same_class / int8.images
        print(
            f"int8: {_megabytes(bytes_written)} instead of {_megabytes(found.float_bytes)}. The most probable class "
            f"stays the same for {share:.2f} % of {int8.images:,} images"
        )
    last = found.int8_agreement or agreement
    if last.labelled:
        network, file = (100 * n / last.labelled for n in (last.network_correct, last.file_correct))
        print(f"Top-1 on {last.labelled:,} images: {network:.2f} % with the network, {file:.2f} % with the file")
    use = "use the file without PyTorch" if found.path.suffix.lower() == ".onnx" else "load the file"
    print(f"docs/export.md shows how to {use}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
