"""The page of the demo: text, tables and plots in one HTML file that needs no other file."""

from __future__ import annotations

import base64
import csv
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

Section = str | Path | Sequence[Sequence[str]]  # text, a PNG file, or a table whose first row is its header

_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.3rem .8rem;border-bottom:1px solid #ddd;text-align:left}
img{max-width:100%}"""


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """Read the rows of a run's metrics.csv as {column: value}, without empty cells."""
    with open(path, newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def plot_comparison(runs: Mapping[str, Sequence[Mapping[str, float]]], path: str | Path) -> Path:
    """Draw training loss and validation accuracy over the epochs, one line per run.

    Args:
        runs: for each label, the rows of metrics.csv.
        path: output file.
    """
    figure = Figure(figsize=(9, 3.5), layout="constrained")  # not pyplot: no display
    for axes, column, title in zip(
        figure.subplots(1, 2), ("train/loss", "val/top1"), ("training loss", "validation accuracy, %"), strict=True
    ):
        factor = 100 if column == "val/top1" else 1
        for label, rows in runs.items():
            axes.plot([row["epoch"] for row in rows], [factor * row[column] for row in rows], marker=".", label=label)
        axes.set(xlabel="epoch", title=title)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=100)
    return Path(path)


def write_html(path: str | Path, title: str, sections: Sequence[tuple[str, Section]]) -> Path:
    """Write an HTML page with embedded images.

    Args:
        path: output file.
        title: title of the page.
        sections: (heading, content) pairs. An empty heading is left out.
    """
    parts = [f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>"]
    parts.append(f"<h1>{html.escape(title)}</h1>")
    for heading, content in sections:
        if heading:
            parts.append(f"<h2>{html.escape(heading)}</h2>")
        if isinstance(content, Path):
            data = base64.b64encode(content.read_bytes()).decode()
            parts.append(f'<img alt="{html.escape(heading)}" src="data:image/png;base64,{data}">')
        elif isinstance(content, str):
            parts += [f"<p>{html.escape(line)}</p>" for line in content.splitlines()]
        else:
            parts.append(_table(content))
    path = Path(path)
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return path


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = []
    for i, row in enumerate(rows):
        tag = "td" if i else "th"
        lines.append("<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>")
    return "<table>" + "\n".join(lines) + "</table>"
