"""Write a network as an ONNX file, and run such a file with onnxruntime."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from acmix_zoo.export.exportable import Exportable, Network

INPUT, OUTPUT = "images", "logits"
"""The names of the input (B, C, H, W) and the output (B, classes) of an ONNX file."""


def write_onnx(network: Exportable, path: Path) -> None:
    """Write a network as an ONNX file in float32.

    Each entry of the metadata is an entry of the file's own metadata, encoded as JSON.
    """
    import onnx

    axes = {0: "batch", **({2: "height", 3: "width"} if network.any_size else {})}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # about the exporter's own code
        program = torch.onnx.export(
            network.model, (network.example,), dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT],
            dynamic_shapes=(axes,),
        )  # fmt: skip
    assert program is not None
    proto = program.model_proto
    proto.producer_name = "acmix_zoo"
    onnx.save(proto, str(path))
    set_metadata(path, network.metadata)


def set_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    """Replace the metadata of an ONNX file."""
    import onnx

    proto = onnx.load(str(path))
    onnx.helper.set_model_props(proto, {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()})
    onnx.save(proto, str(path))


def load_onnx(path: Path) -> Network:
    """Return a function that runs an ONNX file with onnxruntime: images (B, C, H, W) → logits (B, classes)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])
