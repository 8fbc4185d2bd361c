"""The HTML page of an explanation. It embeds its pictures and loads nothing, so a single file can be shared."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from acmix_zoo.explain.contributions import Contributions, LayerContribution, PathContribution
from acmix_zoo.explain.explanation import Explanation
from acmix_zoo.explain.pictures import pixel_name

_STYLE = """
:root { color-scheme: light dark; --soft: #6b7280; --line: #d8dce2; --att: #c1571a; --conv: #2a6f97; --rest: #9aa1ab }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem }
p, figcaption { max-width: 46rem } .soft, figcaption { color: var(--soft) } figure { margin: 1rem 0 }
figcaption { font-size: .9rem; margin-top: .25rem }
img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 6px }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .9rem .25rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left } th { font-weight: 600 } tr.sum td { font-weight: 600 }
.attention { color: var(--att) } .convolution { color: var(--conv) }
@media (prefers-color-scheme: dark) { :root { --soft: #9ca3af; --line: #3b4049; --att: #f0914f; --conv: #6cb4dd } }
"""


class Subject(NamedTuple):
    """What a page shows besides the explanation: names, and the attention head.

    Attributes:
        image: the name of the image.
        model: the name of the network or its weights.
        class_names: the names of all classes.
        head: the attention head to draw, or None for all of them.
    """

    image: str
    model: str
    class_names: Sequence[str]
    head: int | None = None


def html_page(explanation: Explanation, subject: Subject, pictures: dict[str, bytes]) -> str:
    """Return the page.

    Args:
        explanation: the result of `explain`.
        subject: names for titles and tables.
        pictures: PNG files by name, as `draw_pictures` returns them.
    """
    name, probability = subject.class_names[explanation.target], explanation.probabilities[explanation.target]
    best = explanation.probabilities.topk(min(5, len(explanation.probabilities)))
    classes = ", ".join(
        f"{escape(subject.class_names[i])} {100 * float(p):.2f} %"
        for p, i in zip(best.values, best.indices.tolist(), strict=True)
    )
    body = [
        f"<h1>Why {escape(subject.model)} says “{escape(name)}” ({100 * float(probability):.2f} %)</h1>"
        if explanation.target == int(best.indices[0])
        else f"<h1>How {escape(subject.model)} scores “{escape(name)}” ({100 * float(probability):.2f} %)</h1>",
        f'<p class="soft">{escape(subject.image)}. Most probable classes: {classes}.</p>',
        *(f"<p>{escape(line)}</p>" for line in explanation.missing),
    ]
    parts, attention = explanation.contributions, explanation.attention
    if parts:
        body += [_score_section(parts, name), _figure(pictures, "contributions", _summary_caption(parts))]
        body += ["<h2>Layer by layer</h2>", _layer_table(parts.layers), _figure(pictures, "layers", "")]
        body.append(
            _figure(
                pictures,
                "layer_maps",
                "Where each path contributes in each layer, in the order in which the layers run. Red is evidence for "
                "the class, blue is evidence against it. Both pictures of a layer share a scale, which differs between "
                "layers.",
            )
        )
    else:
        body.append(_figure(pictures, "contributions", "Grad-CAM at the last feature map."))
    if attention:
        body += ["<h2>Attention of one pixel</h2>", _figure(pictures, "attention", _attention_caption(explanation))]
    if explanation.kernels:
        body += ["<h2>Kernels of the convolution path</h2>", _figure(pictures, "kernels", _kernel_caption(explanation))]
    if parts:
        body += ["<h2>Method</h2>", f"<p>{_METHOD}</p>"]
    title = f"{escape(name)} – {escape(subject.model)}"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


_METHOD = (
    "The score is the logit of the class. Every ACmix layer computes alpha · attention + beta · convolution. Alpha and "
    "beta of all layers are raised together from 0 to their values. The contribution of a path at a position is the "
    "integral of what the score gains from it along the way (Aumann–Shapley values, or integrated gradients). "
    "The contributions and the score of the network without either path therefore sum to the score, up to the error of "
    "the numerical integration. Positions are those of a path's output. The path has read the positions around them."
)


def _score_section(parts: Contributions, name: str) -> str:
    rows = [
        ("attention, in all layers", parts.attention, "attention"),
        ("convolution, in all layers", parts.convolution, "convolution"),
        ("the rest of the network, without either path", parts.rest, ""),
        (f"error of the numerical integration ({parts.points} points)", parts.error, ""),
    ]
    cells = "".join(
        f'<tr><td class="{c}">{label}</td><td class="{c}">{value:+.3f}</td></tr>' for label, value, c in rows
    )
    scores = parts.scores
    return (
        f"<h2>Parts of the score of “{escape(name)}”</h2>"
        f'<table>{cells}<tr class="sum"><td>score (logit)</td><td>{scores.both:+.3f}</td></tr></table>'
        f'<p class="soft">For comparison, the score is {scores.attention:+.3f} with only attention in all layers, '
        f"{scores.convolution:+.3f} with only convolution, and {scores.neither:+.3f} with neither.</p>"
    )


def _summary_caption(parts: Contributions) -> str:
    text = (
        "Contributions of each path, summed over all layers: red is evidence for the class, blue is evidence against "
        "it. Both paths share a scale."
    )
    tokens = {path: parts.tokens(path) for path in ("attention", "convolution")}
    if any(tokens.values()):
        text += f" Attention contributes {tokens['attention']:+.3f} in the class token, which has no position."
    return text + " Grad-CAM shows where the last feature map supports the class, whichever path it came from."


def _layer_table(layers: Sequence[LayerContribution]) -> str:
    head = (
        "<th>layer</th><th>alpha</th><th>size</th><th>contribution</th><th>beta</th><th>size</th><th>contribution</th>"
    )
    rows = "".join(
        f"<tr><td>{escape(layer.name)}</td>"
        + _path_cells(layer.alpha, layer.attention, "attention")
        + _path_cells(layer.beta, layer.convolution, "convolution")
        + "</tr>"
        for layer in layers
    )
    return (
        '<div class="scroll"><table><tr><th></th><th colspan="3" class="attention">attention</th>'
        f'<th colspan="3" class="convolution">convolution</th></tr><tr>{head}</tr>{rows}</table></div>'
        '<p class="soft">Size is the root mean square of what the path adds to the output of the layer, alpha or beta '
        "included.</p>"
    )


def _path_cells(factor: float | None, part: PathContribution | None, path: str) -> str:
    if part is None:
        return "<td>–</td><td>–</td><td>–</td>"
    return (
        f"<td>{'–' if factor is None else f'{factor:.3f}'}</td><td>{part.size:.3f}</td>"
        f'<td class="{path}">{part.total:+.3f}</td>'
    )


def _attention_caption(explanation: Explanation) -> str:
    attention = explanation.attention
    assert attention is not None
    rows, columns = attention.grid
    position = "the class token" if attention.query is None else f"the position of {pixel_name(attention)} (outlined)"
    return (
        f"What {position} attends to in layer {escape(attention.layer)}, whose output has {rows}×{columns} positions. "
        "If there are many heads, the first ones are shown."
    )


def _kernel_caption(explanation: Explanation) -> str:
    text = (
        "The convolution path of a layer amounts to one convolution. Left: how strong its kernels are at each tap "
        "(dark is strong). Right: the principal patterns of its kernels, with the share of the squared weights that "
        "each explains. The sign of a pattern is arbitrary."
    )
    grouped = [name for name, kernels in explanation.kernels.items() if kernels.is_grouped]
    if grouped:
        text += (
            f" In {escape(', '.join(grouped))}, positions share keys and values, so the kernels are those on the "
            "projections q, k and v instead of the input."
        )
    return text


def _figure(pictures: dict[str, bytes], name: str, caption: str) -> str:
    data = b64encode(pictures[name]).decode()
    text = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure><img alt="{name.replace("_", " ")}" src="data:image/png;base64,{data}">{text}</figure>'
