"""Write an explanation to a folder: the pictures, the numbers as JSON, and one HTML page that contains everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from acmix_zoo.explain.contributions import PathContribution
from acmix_zoo.explain.explanation import Explanation
from acmix_zoo.explain.page import Subject, html_page
from acmix_zoo.explain.pictures import (
    Image,
    draw_attention,
    draw_kernels,
    draw_layer_maps,
    draw_layers,
    draw_summary,
)

PAGE = "explanation.html"
NUMBERS = "explanation.json"
_PICTURES = tuple(f"{name}.png" for name in ("contributions", "layers", "layer_maps", "attention", "kernels"))


def check_explanation_folder(folder: Path) -> None:
    """Raise a FileExistsError if this is a file, or a folder with files that an explanation would overwrite."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file. Expected a folder for the explanation. Choose another name")
    if (folder / NUMBERS).is_file():  # of an earlier explanation, which may be replaced
        return
    if existing := [name for name in (PAGE, *_PICTURES) if (folder / name).exists()]:
        raise FileExistsError(
            f"{folder} already has a file {existing[0]} that is not part of an explanation, so it is not replaced. "
            "Choose another folder"
        )


def write_explanation(explanation: Explanation, picture: Image, subject: Subject, folder: Path) -> list[Path]:
    """Write the pictures, the numbers and the page to a folder, which is created if needed.

    Args:
        explanation: the result of `explain`.
        picture: (H, W, 3) uint8, the image that the network sees.
        subject: names for titles and tables.
        folder: existing files of an earlier explanation are replaced.

    Returns:
        The paths of the files, the page first.

    Raises:
        FileExistsError: the folder has other files of these names, or it is a file.
        ValueError: `subject.head` is not one of the heads.
    """
    check_explanation_folder(folder)
    pictures = draw_pictures(explanation, picture, subject.head)
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        PAGE: html_page(explanation, subject, pictures).encode(),
        NUMBERS: (json.dumps(numbers(explanation, subject), indent=2, ensure_ascii=False) + "\n").encode(),
        **{f"{name}.png": data for name, data in pictures.items()},
    }
    for name in _PICTURES:
        (folder / name).unlink(missing_ok=True)  # of an earlier explanation, which may have had more
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in files]


def numbers(explanation: Explanation, subject: Subject) -> dict[str, Any]:
    """Return the numbers of an explanation as values for JSON."""
    parts, attention = explanation.contributions, explanation.attention
    out: dict[str, Any] = {
        "image": subject.image,
        "model": subject.model,
        "class": subject.class_names[explanation.target],
        "probability": float(explanation.probabilities[explanation.target]),
        "missing": list(explanation.missing),
    }
    if parts:
        out["score"] = {
            "total": parts.scores.both,
            "attention": parts.attention,
            "convolution": parts.convolution,
            "rest": parts.rest,
            "integration_error": parts.error,
            "integration_points": parts.points,
        }
        out["score_with_only"] = {"attention": parts.scores.attention, "convolution": parts.scores.convolution}
        out["layers"] = [
            {"name": layer.name, "alpha": layer.alpha, "beta": layer.beta}
            | {path: _path_numbers(getattr(layer, path)) for path in ("attention", "convolution")}
            for layer in parts.layers
        ]
    if attention:
        out["attention"] = {
            "layer": attention.layer,
            "pixel": attention.pixel,
            "position": attention.query,
            "weights": attention.weights.tolist(),
        }
    return out


def _path_numbers(part: PathContribution | None) -> dict[str, Any] | None:
    if part is None:
        return None
    return {"contribution": part.total, "size": part.size, "tokens": part.tokens, "positions": part.positions.tolist()}


def draw_pictures(explanation: Explanation, picture: Image, head: int | None) -> dict[str, bytes]:
    """Return the pictures as PNG files by name."""
    parts, attention = explanation.contributions, explanation.attention
    if head is not None:
        count = len(attention.weights) if attention else 0
        if not 0 <= head < count:
            expected = f"Expected a number from 0 to {count - 1}" if count else "The network has no attention"
            raise ValueError(f"there is no head {head}. {expected}. Choose another head, or leave it out for all")
    pictures = {"contributions": draw_summary(picture, explanation)}
    if parts:
        pictures["layers"] = draw_layers(parts)
        pictures["layer_maps"] = draw_layer_maps(picture, parts)
    if attention:
        pictures["attention"] = draw_attention(picture, attention, head)
    if explanation.kernels:
        pictures["kernels"] = draw_kernels(explanation.kernels)
    return pictures
