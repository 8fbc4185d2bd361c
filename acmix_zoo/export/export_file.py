"""`export_file`: write a network as a file for another program, and check that the file computes the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import torch
from torch.nn import functional as F

from acmix_zoo.data.image_loading import ImageTransform, evaluation_transform
from acmix_zoo.export.agreement import TOLERANCE, Agreement, CheckBatch, compare
from acmix_zoo.export.check_images import CheckImages, open_check_images, sample_input
from acmix_zoo.export.exportable import Exportable, Network, prepare
from acmix_zoo.export.onnx_file import load_onnx, set_metadata, write_onnx
from acmix_zoo.export.program_file import load_program, write_program
from acmix_zoo.export.quantization import quantize
from acmix_zoo.weights.class_names import class_names
from acmix_zoo.weights.classifier import load_classifier
from acmix_zoo.weights.fetch import weight_folder

Format = Literal["onnx", "torch-export"]


class ExportedFile(NamedTuple):
    """A file that has been written and checked.

    Attributes:
        path: the file.
        smallest_side: it accepts images of any size whose sides have at least this many pixels. None if it only accepts
            images of the size of the training.
        images: description of the images that it was checked on.
        agreement: how well the float32 file agrees with the network.
        int8_agreement: how well the int8 file does, if one was asked for.
        float_bytes: the size of the float32 file, in bytes.
    """

    path: Path
    smallest_side: int | None
    images: str
    agreement: Agreement
    int8_agreement: Agreement | None
    float_bytes: int


def export_file(
    model: str | Path, path: Path, format: Format, *, data: str | None = None, int8: bool = False, limit: int = 1000
) -> ExportedFile:
    """Write a network as an ONNX file, or as a `.pt2` file of torch.export.

    The network is folded for inference. The file accepts any batch size and, unless the network has a fixed image size,
    any image size, except that a `.pt2` file may refuse very small images. It is compared with the network before it
    replaces an existing file.

    Args:
        model: the name of weights, a weight folder, a run folder, a checkpoint or a repository on the Hub.
        path: the output file. An existing file is replaced.
        format: "onnx" or "torch-export".
        data: images to check the file with, as for `open_check_images`. By default, the sample input of the weights.
        int8: quantise an ONNX file, with ranges measured on `data`.
        limit: number of images of `data` to use.

    Raises:
        FileNotFoundError: there are no such weights or images.
        ValueError: `int8` is set without `data` or for a different format, or the file does not compute the same.
    """
    if format not in ("onnx", "torch-export"):
        raise ValueError(f"unknown format {format!r}. Expected onnx or torch-export")
    if int8 and (data is None or format != "onnx"):
        raise ValueError("int8 needs the format onnx, and images to measure ranges on. Pass them as `data`")
    network = prepare(load_classifier(model))
    transform = evaluation_transform(network.cfg)
    images = None if data is None else open_check_images(data, class_names(network.original).names, limit)
    check = _check_with(images, transform, model, network)
    write, load = (write_onnx, load_onnx) if format == "onnx" else (write_program, load_program)
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        new = Path(folder) / path.name
        write(network, new)
        exported = load(new)
        agreement = _compare(network, exported, check.batches())
        smallest = None
        if network.any_size:
            _compare(network, exported, [_resized(next(iter(check.batches())))])
            smallest = _smallest_side(network, exported)
        float_bytes, int8_agreement = new.stat().st_size, None
        if images is not None and int8:
            float_file, new = new, new.with_name("int8.onnx")
            quantize(float_file, new, images.calibration_batches(transform))
            set_metadata(new, network.metadata)
            int8_agreement = compare(network.original, load(new), check.batches())
        os.replace(new, path)
    return ExportedFile(path, smallest, check.description, agreement, int8_agreement, float_bytes)


class _Check(NamedTuple):
    """The images of a check: where they come from, for messages, and a function that reads them in batches."""

    description: str
    batches: Callable[[], Iterable[CheckBatch]]


def _check_with(
    images: CheckImages | None, transform: ImageTransform, model: str | Path, network: Exportable
) -> _Check:
    """Return the given images or, by default, the sample input of the weights."""
    if images is not None:
        return _Check(images.description, partial(images.batches, transform))
    try:
        folder = weight_folder(model)
    except (OSError, ValueError):  # a checkpoint, or weights of timm
        folder = None
    description, batch = sample_input(folder, network.input_size)
    return _Check(description, lambda: [batch])


def _resized(batch: CheckBatch) -> CheckBatch:
    """Return a few of the images at a different size and shape."""
    height, width = batch.images.shape[2:]
    images = F.interpolate(batch.images[:3], (height * 5 // 4, width * 3 // 2), mode="bilinear")
    return CheckBatch(images, batch.targets[:3])


def _smallest_side(network: Exportable, exported: Network) -> int:
    """Return the smallest square image, in pixels per side, for which the file computes what the network computes.

    torch.export assumes that no feature map of a network is smaller than 2×2 pixels, unless that of its example is.
    """
    largest = min(network.example.shape[-2:])
    for side in range(1, largest):
        images = network.example[:1, :, :side, :side]  # (1, C, side, side)
        try:
            if compare(network.original, exported, [CheckBatch(images, torch.tensor([-1]))]).is_close:
                return side
        except Exception:  # the file refuses this size, or the network does; each runtime has its own errors
            continue
    return largest


def _compare(network: Exportable, exported: Network, batches: Iterable[CheckBatch]) -> Agreement:
    """Return how well a float32 file agrees with its network.

    Raises:
        ValueError: it does not, or no image could be read.
    """
    found = compare(network.original, exported, batches)
    if not found.images:
        raise ValueError("none of the images for the check can be read. Expected at least one. Use other images")
    if not found.is_close:
        raise ValueError(
            f"the file does not compute what the network computes: the logits differ by {found.difference:.1e} of "
            f"{found.scale:.1f}. Expected at most {TOLERANCE:.0e} times the largest logit, or {TOLERANCE:.0e} if "
            "that is below 1. Please report this, with the network and the versions of torch and onnxruntime"
        )
    return found
