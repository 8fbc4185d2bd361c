"""The tables and figures of docs/evidence.md, from the rows that finished runs have added to benchmarks/.

    python -m tools.evidence docs/images      # draw the figures; `make readme` does this, and writes the tables

Accuracies are means with the standard deviation over seeds. Differences are paired by seed, with a 95 % confidence
interval, which is wide for three seeds. p-values are corrected by Holm's method for the comparisons in the same table.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import colormaps
from matplotlib.figure import Figure  # not pyplot: no global state, no display

from acmix_zoo.layers.complexity import human
from tools import comparison, finetune_study, make_parser, read_table
from tools.seeds import Scores, holm, mean_and_spread, paired_difference, paired_p_value


class Result(NamedTuple):
    """All finished runs of one network.

    Attributes:
        case: the network.
        scores: its test accuracies.
        parameters, macs: its cost.
        minutes: mean training time of a run.
    """

    case: comparison.Case
    scores: Scores
    parameters: int
    macs: int
    minutes: float


def comparison_results(table: Path = comparison.TABLE) -> list[Result]:
    """Return the networks of the comparison that have finished runs, in the order of its cases."""
    rows = read_table(table)
    results = []
    for case in comparison.CASES:
        own = [row for row in rows if (row["group"], row["network"], row["variant"]) == case]
        if own:
            scores = {int(row["seed"]): float(row["top1"]) for row in own}
            minutes = statistics.mean(float(row["minutes"]) for row in own)
            results.append(Result(case, scores, int(own[0]["parameters"]), int(own[0]["macs"]), minutes))
    return results


def group_rows(group: str, table: Path = comparison.TABLE) -> list[list[str]]:
    """Return the rows of one group's table. The first network of a family is the one that others are compared with."""
    results = comparison_results(table)
    rows, p_values = [], []
    families = {"paths": comparison.PATH_FAMILIES, "time": comparison.FAMILIES, "upgrade": ("swin",)}.get(
        group, ("resnet",)
    )
    for family in families:
        baseline = comparison.Case("paths", f"acmix_{family}_pico", "both")
        if group == "upgrade":
            baseline = comparison.Case("upgrade", "acmix_swin_pico", "attention")
        baseline_scores: Scores = next((result.scores for result in results if result.case == baseline), {})
        for case, scores, parameters, macs, minutes in results:
            if case == baseline or (case.group == group and (len(families) == 1 or family in case.network)):
                name = f"`{case.network}`, {case.variant}" if case.variant else f"`{case.network}`"
                difference = "" if case == baseline else paired_difference(scores, baseline_scores)
                p_values.append(None if case == baseline else paired_p_value(scores, baseline_scores))
                costs = [human(parameters), human(macs), f"{minutes:.0f}"]
                rows.append([name, *costs, str(len(scores)), mean_and_spread(scores), difference])
    header = ["network", "parameters", "MACs", "minutes", "runs", "test top-1", "difference, same seeds", "p (Holm)"]
    return [
        header,
        *(
            [*row, "" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001"]
            for row, p in zip(rows, holm(p_values), strict=True)
        ),
    ]


def finetuning_results(table: Path = finetune_study.TABLE) -> dict[tuple[str, str, int], Scores]:
    """Return the test accuracies of the fine-tuning runs by (start, mode, training images per class)."""
    results: dict[tuple[str, str, int], Scores] = {}
    for row in read_table(table):
        key = (row["start"], row["mode"], int(row["per_class"]))
        results[key] = {**results.get(key, {}), int(row["seed"]): float(row["top1"])}
    return results


def finetuning_rows(table: Path = finetune_study.TABLE) -> list[list[str]]:
    """Return the rows of the fine-tuning table: one row per start and mode, one column per number of images.

    A cell is the mean accuracy with its standard deviation, and the mean training time in minutes.
    """
    results = finetuning_results(table)
    minutes: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for row in read_table(table):
        minutes[row["start"], row["mode"], int(row["per_class"])].append(float(row["minutes"]))

    def cell(start: str, mode: str, count: int) -> str:
        scores = results.get((start, mode, count))
        return f"{mean_and_spread(scores)}, {statistics.mean(minutes[start, mode, count]):.0f} min" if scores else ""

    counts = sorted(finetune_study.EPOCHS, key=lambda count: count or float("inf"))
    rows = [["start", "trained", *(f"{count or 'all'} per class" for count in counts)]]
    for start, mode in dict.fromkeys((start, mode) for start, mode, _ in results):
        rows.append([start, mode, *(cell(start, mode, count) for count in counts)])
    return rows


def draw_costs(results: Sequence[Result], path: Path) -> None:
    """Draw test accuracy against multiply-accumulates, and against measured time: Swins and SANs in their own rows."""
    families: dict[str, list[Result]] = defaultdict(list)
    for result in (result for result in results if result.case.group in ("paths", "neighbours", "time")):
        families[next((name for name in ("swin", "san") if name in result.case.network), "resnet")].append(result)
    if not families:
        return
    figure = Figure(figsize=(10, 3.5 * len(families)), layout="constrained")
    panels: Any = figure.subplots(len(families), 2, sharey="row", squeeze=False)
    for row, own in zip(panels, families.values(), strict=True):
        for axes, name in zip(row, ("MMACs per image", "minutes of training"), strict=True):
            for number, result in enumerate(own):
                x = result.macs / 1e6 if name.startswith("MMACs") else result.minutes
                mean, spread = _summary(list(result.scores.values()))
                marker = "D" if result.case.variant == "both" else "^" if result.case.group == "neighbours" else "o"
                label, colour = result.case.name.replace("_pico", ""), colormaps["tab20"](number)
                axes.errorbar(x, mean, spread, fmt=marker, color=colour, capsize=3, label=label)
            axes.set_xlabel(name)
        row[0].set_ylabel("test top-1 in %")
        row[1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8)
    figure.savefig(path, dpi=110)


def _summary(scores: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the standard deviation of scores in percent; 0 for the deviation of a single one."""
    values = [100 * score for score in scores]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


class Curve(NamedTuple):
    """The validation accuracy of a network after each epoch in percent, over its seeds."""

    case: comparison.Case
    mean: list[float]
    spread: list[float]


def curves(group: str, table: Path = comparison.EPOCHS_TABLE) -> Iterator[Curve]:
    """Return the learning curves of a group's networks."""
    rows = read_table(table)
    for case in comparison.CASES:
        if case.group == group:
            own = [row for row in rows if row["run"].rpartition("-seed")[0] == case.name]
            epochs = sorted({int(row["epoch"]) for row in own})
            scores = [[float(row["val_top1"]) for row in own if int(row["epoch"]) == epoch] for epoch in epochs]
            if scores:
                yield Curve(case, *map(list, zip(*map(_summary, scores), strict=True)))


def draw_curves(path: Path, table: Path = comparison.EPOCHS_TABLE) -> None:
    """Draw the learning curves of the paths in each family, and of the neighbours beside ACmix."""
    paths = list(curves("paths", table))
    families = {
        family: [c for c in paths if c.case.network == f"acmix_{family}_pico"] for family in comparison.PATH_FAMILIES
    }
    acmix = [curve for curve in families["resnet"] if curve.case.variant == "both"]
    groups = {**families, "neighbours": [*acmix, *curves("neighbours", table)]}
    if not any(groups.values()):
        return
    figure = Figure(figsize=(10, 8), layout="constrained")
    panels: Any = figure.subplots(2, 2, sharey=True)
    for axes, (group, lines) in zip(panels.flat, groups.items(), strict=True):
        for number, (case, mean, spread) in enumerate(lines):
            colour = "black" if case.variant == "both" else f"C{number}"
            epochs = range(1, len(mean) + 1)
            axes.plot(epochs, mean, color=colour, label=case.name.replace("_pico", ""))
            low, high = zip(*((m - s, m + s) for m, s in zip(mean, spread, strict=True)), strict=True)
            axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set(title=group, xlabel="epoch")
        axes.legend(fontsize=7, loc="upper left")
    for axes in panels[:, 0]:
        axes.set_ylabel("validation top-1 in %")
    figure.savefig(path, dpi=110)


def draw_mixing(path: Path, table: Path = comparison.EPOCHS_TABLE) -> None:
    """Draw alpha and beta of each family: over training, and over depth at the end. Means over seeds."""
    found = {}
    for family in comparison.PATH_FAMILIES:
        name = comparison.Case("paths", f"acmix_{family}_pico", "both").name
        rows = [row for row in read_table(table) if row["run"].rpartition("-seed")[0] == name]
        if rows:
            found[name] = rows
    if not found:
        return
    figure = Figure(figsize=(10, 3.6 * len(found)), layout="constrained")
    panels: Any = figure.subplots(len(found), 2, squeeze=False)
    for (over_time, over_depth), (name, rows) in zip(panels, found.items(), strict=True):
        for factor, style in (("alpha", "-"), ("beta", "--")):
            epochs = sorted({int(row["epoch"]) for row in rows})
            # [epoch][layer][seed]
            values = [
                list(zip(*(map(float, row[factor].split()) for row in rows if int(row["epoch"]) == epoch), strict=True))
                for epoch in epochs
            ]
            for layer in range(len(values[0])):
                series = [0.5, *(statistics.mean(epoch[layer]) for epoch in values)]  # the layers start at one half
                label = f"layer {layer + 1}" if factor == "alpha" else None
                over_time.plot([0, *epochs], series, style, color=f"C{layer}", label=label)
            for seed, last in enumerate(zip(*values[-1], strict=True)):  # [layer]
                colour = "black" if factor == "alpha" else "grey"
                over_depth.plot(
                    range(1, len(last) + 1), last, f"o{style}", color=colour, label=None if seed else factor
                )
        over_time.set(xlabel="epoch", ylabel="mean factor", title=f"{name}: alpha solid, beta dashed")
        over_depth.set(xlabel="layer, from the input", title="after the last epoch, each seed")
        over_depth.set_xticks(range(1, len(values[0]) + 1))
        over_time.margins(y=0.2)
        over_time.legend(fontsize=7, ncols=3, loc="upper center")
        over_depth.legend()
    figure.savefig(path, dpi=110)


def draw_finetuning(path: Path, table: Path = finetune_study.TABLE) -> None:
    """Draw test accuracy against the number of training images per class."""
    results = finetuning_results(table)
    counts = sorted(finetune_study.EPOCHS, key=lambda count: count or float("inf"))
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    for line, (start, mode) in enumerate(dict.fromkeys((start, mode) for start, mode, _ in results)):
        found = [(place, results[start, mode, n]) for place, n in enumerate(counts) if (start, mode, n) in results]
        mean, spread = zip(*(_summary(list(scores.values())) for _, scores in found), strict=True)
        places = [
            place + 0.04 * (line - 2) for place, _ in found
        ]  # beside one another, so that the bars can be told apart
        style = "-" if mode == "full" else "--"
        axes.errorbar(places, mean, spread, marker="o", capsize=3, linestyle=style, label=f"{start}, {mode}")
    axes.set_xticks(range(len(counts)), [str(count or "all") for count in counts])
    axes.set(xlabel="training images per class", ylabel="test top-1 in %")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = make_parser("evidence", __doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to write the figures")
    folder = parser.parse_args().folder
    if finished := comparison_results():
        draw_costs(finished, folder / "evidence_costs.png")
        draw_curves(folder / "evidence_curves.png")
        draw_mixing(folder / "evidence_mixing.png")
    if finetuning_results():
        draw_finetuning(folder / "evidence_finetuning.png")
