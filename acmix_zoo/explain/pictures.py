"""Draw explanations as PNG pictures. Matplotlib is imported when the first one is drawn, and needs no display."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from acmix_zoo.explain.contributions import Contributions, LayerContribution, spread
from acmix_zoo.explain.effective_kernels import EffectiveKernels, kernel_patterns
from acmix_zoo.explain.explanation import Explanation
from acmix_zoo.explain.pixel_attention import PixelAttention

Image = npt.NDArray[np.uint8]  # (H, W, 3), as the network sees it
_NO_MATH: dict[str, Any] = {"parse_math": False}  # a $ in a name does not start a formula
_COLOURS = {"attention": "#c1571a", "convolution": "#2a6f97"}
_PATHS = ("attention", "convolution")
_SIGNS = {1: "#c4161c", -1: "#1f5fb4"}  # for a class, and against it
_MAX_HEADS = 8
_LAYERS_PER_ROW = 8
_N_PATTERNS = 4


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def draw_summary(image: Image, explanation: Explanation) -> bytes:
    """Draw where both paths contribute, summed over all layers, beside the image and Grad-CAM."""
    size, parts, cam = image.shape[:2], explanation.contributions, explanation.grad_cam
    panels = 1 + (2 if parts else 0) + (cam is not None)
    figure = _figure(2.9 * panels, 3.6)
    axes = list(figure.subplots(1, panels, squeeze=False).flat)
    _show_image(axes[0], image, "image")
    if parts:
        values = {path: parts.picture(path, size).numpy() for path in _PATHS}
        limit = max(float(np.abs(v).max()) for v in values.values()) or 1.0
        for panel, path in zip(axes[1:], _PATHS, strict=False):
            _show_signed(panel, image, values[path], limit)
            panel.set_title(f"{path}: {getattr(parts, path):+.2f}", color=_COLOURS[path])
        for panel, label, sign in ((axes[1], "■ for the class", 1), (axes[2], "■ against the class", -1)):
            panel.set_xlabel(label, color=_SIGNS[sign])
    if cam is not None:
        _show_positive(axes[-1], image, _enlarged(cam, size), 1.0)
        axes[-1].set_title("Grad-CAM")
    return _png(figure)


def draw_layers(parts: Contributions) -> bytes:
    """Draw the contribution of both paths of every layer as bars."""
    names = [layer.name for layer in parts.layers]
    figure = _figure(7.5, 1.1 + 0.42 * len(names))
    axes = figure.subplots()
    for offset, path in zip((-0.19, 0.19), _PATHS, strict=True):
        totals = [_total(layer, path) for layer in parts.layers]
        axes.barh(np.arange(len(names)) + offset, totals, 0.36, color=_COLOURS[path], label=path)
    axes.set_yticks(range(len(names)), names, **_NO_MATH)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set(xlabel="contribution to the score")
    axes.legend(loc="best")
    return _png(figure)


def draw_layer_maps(image: Image, parts: Contributions) -> bytes:
    """Draw where both paths of every layer contribute. Both paths of a layer have the same colour scale."""
    size, count = image.shape[:2], len(parts.layers)
    columns = min(_LAYERS_PER_ROW, count)
    rows = -(-count // columns)
    figure = _figure(0.6 + 1.5 * columns, 3.4 * rows)
    grid = figure.subplots(2 * rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for i, layer in enumerate(parts.layers):
        found = {path: part for path in _PATHS if (part := getattr(layer, path))}
        values = {path: spread(part.positions, size).numpy() for path, part in found.items()}
        limit = max(float(np.abs(v).max()) for v in values.values()) or 1.0
        for j, path in enumerate(_PATHS):
            axes = grid[2 * (i // columns) + j, i % columns]
            if path in values:
                axes.axis("on")
                _show_signed(axes, image, values[path], limit)
                axes.set_title(f"{_total(layer, path):+.2f}", fontsize=9, color=_COLOURS[path], pad=3)
                if i % columns == 0:
                    axes.set_ylabel(path, color=_COLOURS[path])
            if j == 0:
                axes.annotate(
                    layer.name, (0.5, 1.0), xycoords="axes fraction", xytext=(0, 17), textcoords="offset points",
                    fontsize=8, ha="center", **_NO_MATH,
                )  # fmt: skip
    return _png(figure)


def draw_attention(image: Image, attention: PixelAttention, head: int | None = None) -> bytes:
    """Draw the attention of a pixel: the mean of all heads and the first heads, or only one head.

    A white outline marks the position that contains the pixel.
    """
    weights = attention.weights.detach().cpu().double()
    heads = [head] if head is not None else list(range(min(len(weights), _MAX_HEADS)))
    panels = [(f"head {i}", weights[i]) for i in heads]
    if head is None and len(weights) > 1:
        panels.insert(0, (f"mean of {len(weights)}", weights.mean(0)))
    columns = len(panels) + 1 if len(panels) < 6 else 5
    rows = -(-(len(panels) + 1) // columns)
    figure = _figure(2.3 * columns, 2.6 * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    _show_image(axes[0], image, pixel_name(attention))
    _outline(axes[0], attention, image.shape[:2])
    for panel, (title, values) in zip(axes[1:], panels, strict=False):
        limit = float(values.abs().max()) or 1.0
        if values.min() < 0:
            _show_signed(panel, image, values.numpy(), limit)
        else:
            _show_positive(panel, image, values.numpy(), limit)
        scale = f"±{limit:.2g}" if values.min() < 0 else f"max {100 * limit:.0f} %"
        panel.set_title(f"{title} ({scale})", fontsize=9)
        _outline(panel, attention, image.shape[:2])
    for panel in axes[len(panels) + 1 :]:
        panel.axis("off")
    return _png(figure)


def draw_kernels(kernels: dict[str, EffectiveKernels]) -> bytes:
    """Draw the strength of every tap and the principal patterns of the kernels of every layer."""
    figure = _figure(2.2 + 1.15 * (1 + _N_PATTERNS), 0.4 + 1.25 * len(kernels))
    grid = figure.subplots(len(kernels), 1 + _N_PATTERNS, squeeze=False)
    for row, (name, found) in zip(grid, kernels.items(), strict=True):
        patterns = kernel_patterns(found.weight)
        row[0].imshow(patterns.taps, cmap="Greys", vmin=0)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8, **_NO_MATH)
        for axes, pattern, share in zip(row[1:], patterns.patterns, patterns.shares, strict=False):
            limit = float(pattern.abs().max())
            axes.imshow(pattern, cmap="PuOr_r", vmin=-limit, vmax=limit)
            axes.set_title(f"{100 * share:.0f} %", fontsize=9)
    grid[0, 0].set_title("strength", fontsize=9)
    for axes in grid.flat:
        _frame(axes)
    return _png(figure)


def pixel_name(attention: PixelAttention) -> str:
    """Return the name of the query for titles: "pixel 3,4" or "class token"."""
    pixel = attention.pixel
    return "class token" if pixel == "token" else f"pixel {pixel[0]},{pixel[1]}"


def _total(layer: LayerContribution, path: str) -> float:
    part = getattr(layer, path)
    return part.total if part else 0.0


def _extent(size: Sequence[int]) -> tuple[float, float, float, float]:
    """Return the edges of an image of (height, width), for a picture of other resolution that covers it."""
    return -0.5, size[1] - 0.5, size[0] - 0.5, -0.5


def _frame(axes: Any) -> None:
    axes.set(xticks=[], yticks=[])


def _show_image(axes: Any, image: Image, title: str) -> None:
    """Show the image with the coordinates of its pixels."""
    axes.imshow(image)
    axes.set_title(title)
    axes.set(xticks=[0, image.shape[1] - 1], yticks=[0, image.shape[0] - 1])
    axes.tick_params(labelsize=7)


def _show_pale(axes: Any, image: Image) -> None:
    """Show the image in light grey, as the background of a map."""
    axes.imshow(image.mean(2), cmap="gray", vmin=-600, vmax=255)
    _frame(axes)


def _show_signed(axes: Any, image: Image, values: npt.NDArray[np.float64], limit: float) -> None:
    """Overlay signed values on a pale image. The colour shows the sign, its opacity the size up to `limit`."""
    from matplotlib.colors import to_rgb

    _show_pale(axes, image)
    colours = np.where(values[..., None] > 0, to_rgb(_SIGNS[1]), to_rgb(_SIGNS[-1]))  # (H, W, 3)
    opacity = np.clip(np.abs(values) / limit, 0, 1)[..., None]
    axes.imshow(np.concatenate([colours, opacity], 2), extent=_extent(image.shape[:2]))


def _show_positive(axes: Any, image: Image, values: npt.NDArray[np.float64], limit: float) -> None:
    """Overlay values from 0 to `limit` on a pale image."""
    _show_pale(axes, image)
    opacity = 0.15 + 0.75 * np.clip(values / limit, 0, 1)
    axes.imshow(values, cmap="YlOrRd", vmin=0, vmax=limit, alpha=opacity, extent=_extent(image.shape[:2]))


def _outline(axes: Any, attention: PixelAttention, size: Sequence[int]) -> None:
    """Outline the position of the query in a picture of the image. A class token has none."""
    from matplotlib.patches import Rectangle

    if attention.query is None:
        return
    height, width = (side / n for side, n in zip(size, attention.grid, strict=True))
    corner = (attention.query[1] * width - 0.5, attention.query[0] * height - 0.5)
    for colour, line in (("black", 2.5), ("white", 1.2)):
        axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=line))


def _enlarged(values: Tensor, size: Sequence[int]) -> npt.NDArray[np.float64]:
    """Enlarge a feature map to the size of the image for display, with bilinear interpolation."""
    import torch.nn.functional as F

    enlarged: npt.NDArray[np.float64] = F.interpolate(
        values.detach().cpu().double()[None, None], size=tuple(size), mode="bilinear"
    )[0, 0].numpy()
    return enlarged
