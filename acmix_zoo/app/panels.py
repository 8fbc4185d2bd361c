"""The part of the page that explains a decision, as HTML: sums, places, and alpha and beta of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from acmix_zoo.app.decision import Decision, LoadedNetwork
from acmix_zoo.app.overlays import data_url, positive_overlay, signed_overlay
from acmix_zoo.explain.contributions import Contributions, LayerContribution, PathContribution
from acmix_zoo.explain.pixel_attention import PixelAttention

PANEL_STYLE = """
.acmix { --att: #b04a12; --conv: #24618a; --faint: rgba(128, 128, 128, .25) }
.dark .acmix { --att: #f0914f; --conv: #6cb4dd }
.acmix p { margin: .25rem 0 .75rem } .acmix .soft { opacity: .75; font-size: .9em }
.acmix .pictures { display: grid; gap: .75rem; max-width: 44rem }
.acmix .pictures { grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)) }
.acmix figure { margin: 0 } .acmix figcaption { font-size: .9em; line-height: 1.3; margin-top: .25rem }
.acmix img { width: 100%; image-rendering: pixelated; border-radius: 6px; display: block }
.acmix .attention, .acmix .attention b { color: var(--att) }
.acmix .convolution, .acmix .convolution b { color: var(--conv) }
.acmix .attention .bar { background: var(--att) } .acmix .convolution .bar { background: var(--conv) }
.acmix .bar { display: inline-block; height: .6em; border-radius: 2px; margin-right: .4em }
.acmix .scroll { overflow-x: auto }
.acmix table { border: 0 !important; border-collapse: collapse; width: auto }
.acmix table { font-size: .9em; font-variant-numeric: tabular-nums }
.acmix tr { border: 0 !important }
.acmix th, .acmix td { border: 0 !important; padding: .2rem .5rem .2rem 0; text-align: right; white-space: nowrap }
.acmix tr + tr td { border-top: 1px solid var(--faint) !important }
.acmix th:first-child, .acmix td:first-child { text-align: left }
"""
_BAR = 2.5  # em, the longest bar


def decision_html(decision: Decision) -> str:
    """Return the sums of both paths, where they contribute, and the table of layers."""
    explanation = decision.explanation
    body = [f"<p>{escape(line)}</p>" for line in explanation.missing]
    if explanation.contributions:
        body.append(_sums(explanation.contributions, decision.label))
    body.append(_pictures(decision))
    if explanation.contributions:
        body.append(_layer_table(explanation.contributions.layers))
    return f'<div class="acmix">{"".join(body)}</div>'


def knowledge(network: LoadedNetwork) -> str:
    """Return a sentence about a network and its classes, as Markdown."""
    listed = ", ".join(network.labels[:10]) + (", …" if len(network.labels) > 10 else "")
    return f"**{network.name}** knows {len(network.labels)} classes ({listed}). It assigns every image to one of them."


def attention_caption(attention: PixelAttention, head: int | None) -> str:
    """Return a sentence about the attention of a pixel."""
    weights = attention.weights if head is None else attention.weights[head : head + 1]
    who = "The class token" if attention.query is None else "The outlined position"
    which = f"mean of {len(weights)} heads" if head is None else f"head {head}"
    values = weights.mean(0)
    if values.min() < 0:
        return f"{who} adds the red positions and subtracts the blue ones ({which})."
    strongest = 100 * float(values.max())
    share = f"The strongest one receives {strongest:.0f} % of the attention."
    return f"{who} attends to the orange positions ({which}). {share}"


def _sums(parts: Contributions, label: str) -> str:
    return (
        f"<p>The score of “{escape(label)}” is <b>{parts.scores.both:.2f}</b>. "
        f'<span class="attention">Attention contributes <b>{parts.attention:+.2f}</b></span>, '
        f'<span class="convolution">convolution <b>{parts.convolution:+.2f}</b></span>, '
        f"and the rest of the network {parts.rest + parts.error:+.2f}.</p>"
    )


def _pictures(decision: Decision) -> str:
    """Return a row of pictures: where each path contributes, and Grad-CAM."""
    picture, parts, cam = decision.seen.picture, decision.explanation.contributions, decision.explanation.grad_cam
    figures = []
    if parts:
        size = (picture.shape[0], picture.shape[1])
        maps = {path: parts.picture(path, size) for path in ("attention", "convolution")}
        limit = max(float(values.abs().max()) for values in maps.values())
        for path, values in maps.items():
            caption = f'Where <span class="{path}">{path}</span> is evidence for the class (red) or against it (blue)'
            figures.append(_figure(data_url(signed_overlay(picture, values, limit)), caption))
    if cam is not None:
        figures.append(_figure(data_url(positive_overlay(picture, cam)), "Grad-CAM, for comparison"))
    return f'<div class="pictures">{"".join(figures)}</div>'


def _figure(source: str, caption: str) -> str:
    return f'<figure><img src="{source}" alt=""><figcaption>{caption}</figcaption></figure>'


def _layer_table(layers: Sequence[LayerContribution]) -> str:
    factors = [factor for layer in layers for factor in (layer.alpha, layer.beta) if factor is not None]
    longest = max(map(abs, factors), default=0.0) or 1.0
    rows = "".join(
        f"<tr><td>{escape(layer.name)}</td>"
        + _cells("attention", layer.alpha, layer.attention, longest)
        + _cells("convolution", layer.beta, layer.convolution, longest)
        + "</tr>"
        for layer in layers
    )
    return (
        '<p class="soft" style="margin-top: 1rem">Each layer adds alpha × attention and beta × convolution. “Score” is '
        "the contribution of that path to the score.</p>"
        '<div class="scroll"><table><tr><th>layer</th><th class="attention">alpha</th><th class="attention">score</th>'
        f'<th class="convolution">beta</th><th class="convolution">score</th></tr>{rows}</table></div>'
    )


def _cells(path: str, factor: float | None, part: PathContribution | None, longest: float) -> str:
    """Return the cells of one path of a layer: its factor with a bar, and its contribution."""
    if part is None:
        return "<td>–</td><td>–</td>"
    number = "–"
    if factor is not None:
        width = _BAR * abs(factor) / longest
        number = f'<span class="bar" style="width: {width:.2f}em"></span>{factor:.2f}'
    return f'<td class="{path}">{number}</td><td class="{path}">{part.total:+.2f}</td>'
