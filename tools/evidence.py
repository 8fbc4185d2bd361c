"""The tables and figures of docs/evidence.md, from the rows that finished runs have added to benchmarks/.

    python -m tools.evidence docs/images      # draw the figures; `make readme` does this, and writes the tables

Accuracies are means with the standard deviation over seeds. Differences are paired by seed, with a 95 % confidence
interval, which is wide for three seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import colormaps
from matplotlib.figure import Figure  # not pyplot: no global state, no display

from acmix_zoo.layers.complexity import human
from tools import comparison, finetune_study, make_parser, read_table
from tools.seeds import Scores, mean_and_spread, paired_difference


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
    rows = [["network", "parameters", "MACs", "minutes", "runs", "test top-1", "difference, same seeds"]]
    families = {"paths": (*comparison.FAMILIES, "san"), "time": comparison.FAMILIES, "upgrade": ("swin",)}.get(
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
                costs = [human(parameters), human(macs), f"{minutes:.0f}"]
                rows.append([name, *costs, str(len(scores)), mean_and_spread(scores), difference])
    return rows


def finetuning_results(table: Path = finetune_study.TABLE) -> dict[tuple[str, str, int], Scores]:
    """Return the test accuracies of the fine-tuning runs by (start, mode, training images per class)."""
    results: dict[tuple[str, str, int], Scores] = {}
    for row in read_table(table):
        key = (row["start"], row["mode"], int(row["per_class"]))
        results[key] = {**results.get(key, {}), int(row["seed"]): float(row["top1"])}
    return results


def finetuning_rows(table: Path = finetune_study.TABLE) -> list[list[str]]:
    """Return the rows of the fine-tuning table: one row per start and mode, one column per number of images."""
    results = finetuning_results(table)
    counts = sorted(finetune_study.EPOCHS, key=lambda count: count or float("inf"))
    rows = [["start", "trained", *(f"{count or 'all'} per class" for count in counts)]]
    for start, mode in dict.fromkeys((start, mode) for start, mode, _ in results):
        cells = [results.get((start, mode, count)) for count in counts]
        rows.append([start, mode, *(mean_and_spread(cell) if cell else "" for cell in cells)])
    return rows


def draw_costs(results: Sequence[Result], path: Path) -> None:
    """Draw test accuracy against multiply-accumulates, and against measured training time."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels: Any = figure.subplots(1, 2, sharey=True)
    shown = [result for result in results if result.case.group in ("paths", "neighbours")]
    colours = colormaps["tab20"]  # the default colours repeat after ten
    for axes, name in zip(panels, ("MMACs per image", "minutes of training"), strict=True):
        for number, result in enumerate(shown):
            x = result.macs / 1e6 if name.startswith("MMACs") else result.minutes
            values = [100 * value for value in result.scores.values()]
            spread = statistics.stdev(values) if len(values) > 1 else 0
            marker = "D" if result.case.variant == "both" else "o" if result.case.group == "paths" else "^"
            label = result.case.name.replace("_pico", "")
            axes.errorbar(x, statistics.mean(values), spread, fmt=marker, color=colours(number), capsize=3, label=label)
        axes.set_xlabel(name)
    panels[0].set_ylabel("test top-1 in %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)


def curves(group: str, table: Path = comparison.EPOCHS_TABLE) -> Iterator[tuple[str, list[float]]]:
    """Return the mean validation accuracy in percent after each epoch, for every network of a group."""
    rows = read_table(table)
    for case in comparison.CASES:
        if case.group == group:
            own = [row for row in rows if row["run"].rpartition("-seed")[0] == case.name]
            epochs = sorted({int(row["epoch"]) for row in own})
            values = [[100 * float(row["val_top1"]) for row in own if int(row["epoch"]) == epoch] for epoch in epochs]
            if values:
                yield case.name, [statistics.mean(value) for value in values]


def draw_curves(path: Path, table: Path = comparison.EPOCHS_TABLE) -> None:
    """Draw the learning curves of the paths and of the neighbours."""
    groups = {group: dict(curves(group, table)) for group in ("paths", "neighbours")}
    groups = {group: lines for group, lines in groups.items() if lines}
    figure = Figure(figsize=(5 * len(groups), 4.2), layout="constrained")
    panels: Any = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, (group, lines) in zip(panels, groups.items(), strict=True):
        for name, values in lines.items():
            axes.plot(range(1, len(values) + 1), values, label=name.replace("_pico", ""))
        axes.set(title=group, xlabel="epoch")
        axes.legend(fontsize=7)
    panels[0].set_ylabel("validation top-1 in %")
    figure.savefig(path, dpi=110)


def draw_mixing(path: Path, table: Path = comparison.EPOCHS_TABLE) -> None:
    """Draw alpha and beta of `acmix_resnet_pico` with seed 0: after each epoch, and over depth at the end."""
    rows = [row for row in read_table(table) if row["run"] == "acmix_resnet_pico-both-seed0"]
    if not rows:
        return
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    over_time, over_depth = figure.subplots(1, 2)
    for name, style in (("alpha", "-"), ("beta", "--")):
        values = [[float(value) for value in row[name].split()] for row in rows]  # [epoch][layer]
        for layer, series in enumerate(zip(*values, strict=True)):
            over_time.plot(
                range(1, len(series) + 1), series, style, color=f"C{layer}", label=f"{name}, layer {layer + 1}"
            )
        over_depth.plot(range(1, len(values[-1]) + 1), values[-1], f"o{style}", label=name)
    over_time.set(xlabel="epoch", ylabel="mean factor")
    over_depth.set(xlabel="layer, from the input", title="after the last epoch")
    over_time.legend(fontsize=6, ncols=2)
    over_depth.legend()
    figure.savefig(path, dpi=110)


def draw_finetuning(path: Path, table: Path = finetune_study.TABLE) -> None:
    """Draw test accuracy against the number of training images per class."""
    results = finetuning_results(table)
    counts = sorted(finetune_study.EPOCHS, key=lambda count: count or float("inf"))
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    for start, mode in dict.fromkeys((start, mode) for start, mode, _ in results):
        found = [(place, results[start, mode, n]) for place, n in enumerate(counts) if (start, mode, n) in results]
        values = [[100 * value for value in scores.values()] for _, scores in found]
        axes.errorbar(
            [place for place, _ in found], [statistics.mean(v) for v in values],
            [statistics.stdev(v) if len(v) > 1 else 0 for v in values],
            marker="o", capsize=3, linestyle="-" if mode == "full" else "--", label=f"{start}, {mode}",
        )  # fmt: skip
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
