"""Draw the folder dependencies of docs/architecture.md for the site, which has no Mermaid without a network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

WIDTH, HEIGHT = 112, 34  # of a box, in pixels
COLUMN, ROW = 136, 84  # distances between the left edges and between the upper edges of boxes


def draw_graph(arrows: Sequence[tuple[str, str]]) -> str:
    """Return a graph without cycles as inline SVG, in the colours of the page. All arrows point down.

    Args:
        arrows: pairs (from, to) of names.
    """
    rows = arrange(arrows)
    columns = max(len(row) for row in rows)
    places = {
        name: (COLUMN * (i + (columns - len(row)) / 2), ROW * level)  # left and upper edge
        for level, row in enumerate(rows)
        for i, name in enumerate(row)
    }
    size = f"{columns * COLUMN - COLUMN + WIDTH + 2:g} {len(rows) * ROW - ROW + HEIGHT + 2:g}"
    shapes = [_arrow(*places[start], *places[end]) for start, end in arrows]
    shapes += [_box(name, *place) for name, place in places.items()]
    marker = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    head = f'<defs>{marker}<path d="M0 0 8 4 0 8z"/></marker></defs>'
    label = "Folders and what they import"
    svg = f'<svg viewBox="-1 -1 {size}" role="img" aria-label="{label}">{head}{"".join(shapes)}</svg>'
    return f'<div class="folder-graph">{svg}</div>'


def arrange(arrows: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Return the names in rows, so that every arrow leads to a later row, and arrows cross little."""

    @cache
    def depth(name: str) -> int:
        return max((depth(start) + 1 for start, end in arrows if end == name), default=0)

    def row_of(name: str) -> int:
        if depth(name):
            return depth(name)
        return min(depth(end) for start, end in arrows if start == name) - 1  # near what it points to

    names = list(dict.fromkeys(name for arrow in arrows for name in arrow))
    lengths = {name: [row_of(end) - row_of(name) for start, end in arrows if start == name] for name in names}
    rows = [[name for name in names if row_of(name) == level] for level in range(max(map(row_of, names)) + 1)]
    positions: dict[str, float] = {}
    for row in rows:  # below the middle of what points to it; names with long arrows last, where these pass few boxes
        above = {name: [positions[start] for start, end in arrows if end == name] for name in row}
        row.sort(
            key=lambda name: (
                sum(above[name]) / len(above[name]) if above[name] else 0.0,
                max(lengths[name], default=0),
            )
        )
        positions |= {name: i - (len(row) - 1) / 2 for i, name in enumerate(row)}
    return rows


def _box(name: str, x: float, y: float) -> str:
    text = f'<text x="{x + WIDTH / 2:g}" y="{y + HEIGHT / 2 + 5:g}">{name}</text>'
    return f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>{text}'


def _arrow(x: float, y: float, end_x: float, end_y: float) -> str:
    x, y, end_x = x + WIDTH / 2, y + HEIGHT, end_x + WIDTH / 2
    middle = (y + end_y) / 2
    return f'<path d="M{x:g} {y:g}C{x:g} {middle:g} {end_x:g} {middle:g} {end_x:g} {end_y:g}" marker-end="url(#tip)"/>'
