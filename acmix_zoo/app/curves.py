"""The curves of a training as HTML, with text that stays readable on a narrow screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

CURVE_STYLE = """
.acmix .chart { margin: 0 0 1.25rem } .acmix .chart figcaption { margin-bottom: .5rem }
.acmix .plot { display: flex; gap: .5rem; height: 9rem }
.acmix .ticks { display: flex; flex-direction: column; justify-content: space-between; width: 3rem; text-align: right }
.acmix .epochs { display: flex; justify-content: space-between; margin-left: 3.5rem }
.acmix .ticks, .acmix .epochs { font-size: .8em; line-height: 1; opacity: .75 }
.acmix .plot svg { flex: 1; min-width: 0; height: 100%; overflow: visible; border-bottom: 1px solid var(--faint) }
.acmix .plot line { stroke: var(--faint) } .acmix .plot polyline { fill: none; stroke-width: 2.5 }
.acmix .plot line, .acmix .plot polyline { vector-effect: non-scaling-stroke }
.acmix polyline.training { stroke: var(--conv) } .acmix polyline.validation { stroke: var(--att) }
.acmix span.training { color: var(--conv) } .acmix span.validation { color: var(--att) }
"""
_DOT = 0.8  # half the width of the line that stands for a single epoch, in hundredths of the plot

Line = Sequence[tuple[float, float]]  # (epoch, value)


def curves_html(history: Sequence[Mapping[str, float]], epochs: int) -> str:
    """Return the validation accuracy and the losses of the epochs so far, with room for those to come.

    Args:
        history: a row of metrics for each epoch so far.
        epochs: number of epochs of the whole training.
    """
    accuracy, train_loss, val_loss = (
        [(row["epoch"], row[name]) for row in history if name in row] for name in ("val/top1", "train/loss", "val/loss")
    )
    highest = max((value for _, value in (*train_loss, *val_loss)), default=1.0) or 1.0
    losses = {"training": train_loss, "validation": val_loss}
    return (
        '<div class="acmix">'
        + _chart("Accuracy", {"validation": accuracy}, epochs, 1.0, ("100 %", "50 %", "0 %"))
        + _chart("Loss", losses, epochs, highest, (f"{highest:.2f}", f"{highest / 2:.2f}", "0"))
        + "</div>"
    )


def _chart(title: str, lines: Mapping[str, Line], epochs: int, highest: float, ticks: tuple[str, str, str]) -> str:
    """Return a chart with values from 0 to `highest`. Its ticks are listed from top to bottom."""
    legend = ", ".join(f'<span class="{name}">{name} images</span>' for name in lines)
    grid = "".join(f'<line x1="0" x2="100" y1="{y}" y2="{y}"/>' for y in (0, 50))
    points = {name: _points(line, epochs, highest) for name, line in lines.items()}
    drawn = "".join(f'<polyline class="{name}" points="{place}"/>' for name, place in points.items())
    return (
        f'<figure class="chart"><figcaption><b>{title}</b> of the {legend}</figcaption><div class="plot">'
        f'<div class="ticks">{"".join(f"<span>{tick}</span>" for tick in ticks)}</div>'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none">{grid}{drawn}</svg></div>'
        f'<div class="epochs"><span>epoch 1</span><span>{f"epoch {epochs}" if epochs > 1 else ""}</span></div></figure>'
    )


def _points(line: Line, epochs: int, highest: float) -> str:
    """Return the points of a line in a square of 100 × 100 whose top left corner is (0, 0)."""
    points = [(100 * (epoch - 1) / max(1, epochs - 1), 100 * (1 - value / highest)) for epoch, value in line]
    if len(points) == 1:
        ((x, y),) = points
        points = [(x - _DOT, y), (x + _DOT, y)]
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
