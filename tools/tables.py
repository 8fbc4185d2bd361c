"""Write the generated tables of README and docs from weight records, networks and benchmarks/ (`make readme`).

    python -m tools.tables README.md docs/*.md

This replaces the text between <!-- weights --> and <!-- /weights -->, and between the markers of the other `TABLES`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import acmix_zoo
from acmix_zoo.bench.results import read_csv
from acmix_zoo.cli.list import network_costs
from acmix_zoo.layers.complexity import complexity, human
from acmix_zoo.models.published import is_reconstruction, published
from acmix_zoo.models.task_kinds import config_task
from acmix_zoo.weights import read_config
from acmix_zoo.weights.names import list_tags
from acmix_zoo.weights.shipped import checkpoints_root
from tools import (
    detector_memory,
    drop_in_costs,
    evidence,
    final_networks,
    make_parser,
    reconstructions,
    scaling_tables,
    segmentation_study,
    yolo_study,
)
from tools.speed_table import BENCHMARKS, speed_summary, speed_table

NEIGHBOURS = (
    "acmix_resnet_pico", "resnet_pico", "series_resnet_pico", "se_resnet_pico", "cbam_resnet_pico", "bot_resnet_pico",
    "aa_resnet_pico", "container_pico", "aa_resnet50", "container_light",
)  # fmt: skip


def weights_table() -> str:
    """Return one row for each weight folder that is shipped with the package."""
    root = checkpoints_root()
    rows = [["weights", "data", "test score", "parameters", "MACs", "file", "recipe"]]
    for folder in sorted(path.parent for path in root.glob("*/config.json")) if root else []:
        config = read_config(folder)
        record, labels = config["acmix_zoo"], config_task(config).metrics
        tests = {m["name"]: m["value"] for m in record["metrics"] if m["split"] == "test"}
        rows.append(
            [
                f"`{record['name']}`",
                (record.get("dataset") or {}).get("name", ""),
                ", ".join(f"{100 * tests[name]:.2f} % {label}" for name, label in labels.items() if name in tests),
                human(record["params"]),
                human(record["macs"]),
                f"{record['file_size'] / 1e6:.1f} MB",
                f"[yaml]({record['recipe']})" if record.get("recipe") else "",
            ]
        )
    return _markdown(rows)


def models_table() -> str:
    """Return one row for each network of the paper's size: its own costs beside the published ones."""
    rows = [["model", "parameters", "published", "MACs", "published", "input", "top-1, published"]]
    for name in acmix_zoo.list_models("acmix_*"):
        if name.endswith(("_pico", "_nano")):  # they are in the table of shipped weights
            continue
        with torch.device("meta"):
            found, of = complexity(acmix_zoo.create_model(name)), published(name)
        size, mark = "×".join(map(str, found.input_size)), " *" * is_reconstruction(name)
        score = f"{of.top1} %" if of.top1 else ""
        rows.append([f"`{name}`{mark}", f"{found.params:,}", of.params, human(found.macs), of.macs, size, score])
    return _markdown(rows)


def networks_table() -> str:
    """Return one row for each network: its costs beside the published ones, and the tags of its weights."""
    costs = network_costs()
    rows = [["network", "parameters", "MACs", "input", "published", "top-1, published", "weights"]]
    for name in sorted(acmix_zoo.list_models(), key=lambda name: (not name.startswith("acmix_"), name)):
        (params, macs, size), paper = costs[name], published(name)
        rows.append(
            [
                f"`{name}`{' *' * is_reconstruction(name)}",
                f"{params:,}",
                human(macs),
                size,
                ", ".join(filter(None, (paper.params, paper.macs))),
                f"{paper.top1} %" if paper.top1 else "",
                ", ".join(f"`{tag}`" for tag in list_tags(name)),
            ]
        )
    return _markdown(rows)


def neighbours_table() -> str:
    """Return one row for each network that ACmix-ResNet is compared with, and for ACmix-ResNet itself."""
    rows = [["model", "parameters", "published", "MACs", "published", "input"]]
    for name in NEIGHBOURS:
        with torch.device("meta"):
            found, of = complexity(acmix_zoo.create_model(name)), published(name)
        size = "×".join(map(str, found.input_size))
        rows.append([f"`{name}`", f"{found.params:,}", of.params, human(found.macs), of.macs, size])
    return _markdown(rows)


def decomposition_table() -> str:
    """Return time and memory of a 3×3 convolution in two stages, relative to the convolution itself."""
    rows = read_csv(BENCHMARKS / "decomposition.csv") if (BENCHMARKS / "decomposition.csv").exists() else []
    cells = [["map, batch 8", "", "conv2d", *(f"{kind} shifts" for kind in ("tensor", "frozen", "learnable"))]]
    for mode in ("inference", "training"):
        for shape in dict.fromkeys(row.candidate.partition(":")[2] for row in rows):
            group = [row for row in rows if row.mode == mode and row.candidate.endswith(f":{shape}")]
            first, size = group[0], shape.replace("x", "×")
            times = [f"{row.ms / first.ms:.1f}×, {row.peak_mib:.0f} MiB" for row in group[1:]]
            cells.append([size, mode, f"{first.ms:.1f} ms, {first.peak_mib:.0f} MiB", *times])
    return _markdown(cells)


def warm_start_table() -> str:
    """Return what `tools.warm_start_study` measured."""
    if not (BENCHMARKS / "warm_start.csv").exists():
        return "Not measured yet. Run `python -m tools.warm_start_study benchmarks/warm_start.csv`.\n"
    with (BENCHMARKS / "warm_start.csv").open(encoding="utf-8") as file:
        head, *accuracies, (name, energies) = csv.reader(file)
    rows = [[network, f"{100 * float(top1):.2f} %"] for network, top1 in accuracies]
    return _markdown([head, *rows, [name, energies.replace(" ", ", ")]])


def distributed_table() -> str:
    """Return what `make test-distributed` showed when it was last recorded."""
    if not (BENCHMARKS / "distributed.csv").exists():
        return "Not measured yet. Run `make test-distributed`.\n"
    with (BENCHMARKS / "distributed.csv").open(encoding="utf-8") as file:
        return _markdown(list(csv.reader(file)))


def drop_in_table() -> str:
    """Return what `tools.drop_in_costs` measured."""
    file = BENCHMARKS / "drop_in.csv"
    return _markdown(drop_in_costs.table(file)) if file.exists() else drop_in_costs.NOT_MEASURED


def yolo_table() -> str:
    """Return what `tools.yolo_study` measured."""
    file = BENCHMARKS / "yolo.csv"
    return _markdown(yolo_study.table(file)) if file.exists() else yolo_study.NOT_MEASURED


def detection_table() -> str:
    """Return what `tools.detector_memory` measured."""
    file = BENCHMARKS / "detection.csv"
    return _markdown(detector_memory.table(file)) if file.exists() else detector_memory.NOT_MEASURED


def segmentation_table() -> str:
    """Return what `tools.segmentation_study` measured."""
    file = segmentation_study.TABLE
    return _markdown(segmentation_study.table(file)) if file.exists() else segmentation_study.NOT_MEASURED


TABLES: dict[str, Callable[[], str]] = {
    "weights": weights_table,
    "models": models_table,
    "networks": networks_table,
    "neighbours": neighbours_table,
    "speed_summary": speed_summary,
    "speed": speed_table,
    "decomposition": decomposition_table,
    "san_candidates": lambda: _markdown(reconstructions.san_table()),
    "pvt_candidates": lambda: _markdown(reconstructions.pvt_table()),
    "reconstructions": lambda: _markdown(reconstructions.networks_table()),
    "warm_start": warm_start_table,
    "distributed": distributed_table,
    "drop_in": drop_in_table,
    "yolo": yolo_table,
    "detection": detection_table,
    "comparison_paths": lambda: _markdown(evidence.group_rows("paths")),
    "comparison_time": lambda: _markdown(evidence.group_rows("time")),
    "comparison_upgrade": lambda: _markdown(evidence.group_rows("upgrade")),
    "comparison_neighbours": lambda: _markdown(evidence.group_rows("neighbours")),
    "comparison_neighbours_time": lambda: _markdown(evidence.group_rows("neighbours-time")),
    "comparison_ablations": lambda: _markdown(evidence.group_rows("ablations")),
    "segmentation": segmentation_table,
    "final_networks": lambda: _markdown(final_networks.table()),
    "finetuning": lambda: _markdown(evidence.finetuning_rows()),
    "scaling": lambda: _markdown(scaling_tables.scaled_batch_rows()),
    "scaling_capped": lambda: _markdown(scaling_tables.capped_batch_rows()),
    "scaling_memory": lambda: _markdown(scaling_tables.memory_rows()),
    "scaling_nvidia": lambda: _markdown(scaling_tables.nvidia_rows()),
    "scaling_check": lambda: _markdown(scaling_tables.check_rows()),
}


def render(text: str) -> str:
    """Return the text of a page with all its tables up to date.

    Raises:
        ValueError: a marker that names no table or has no end.
    """
    for name in re.findall(r"^<!-- (\w+) -->$", text, re.MULTILINE):
        if name not in TABLES or f"<!-- /{name} -->" not in text:
            raise ValueError(
                f"<!-- {name} --> is not a known table, or has no end. Expected one of {', '.join(TABLES)}, "
                f"and <!-- /NAME --> after it"
            )
        old = re.search(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", text, re.DOTALL)
        assert old
        text = text[: old.start()] + TABLES[name]() + text[old.end() :]
    return text


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose header is the first row."""
    lines = [f"| {' | '.join(row)} |\n" for row in rows]
    return "".join([lines[0], "|---" * len(rows[0]) + "|\n", *lines[1:]])


if __name__ == "__main__":
    parser = make_parser("tables", __doc__)
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE", help="Markdown file to update")
    for page in parser.parse_args().pages:
        page.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8")
