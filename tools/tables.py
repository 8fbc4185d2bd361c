"""Tables of README and docs, made from the weights' records, the networks and benchmarks/: nothing is stated twice.

    python -m tools.tables README.md docs/*.md

rewrites what stands between <!-- weights --> and <!-- /weights -->, and between such marks of the other TABLES.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import acmix_zoo
from acmix_zoo.bench.table import read_csv
from acmix_zoo.layers.complexity import complexity, human
from acmix_zoo.models.published import is_reconstruction, published
from acmix_zoo.weights import read_config
from acmix_zoo.weights.shipped import checkpoints_root
from tools import reconstructions, scaling_tables
from tools.speed_table import BENCHMARKS, speed_summary, speed_table


def weights_table() -> str:
    """One row for every weight folder that ships."""
    root = checkpoints_root()
    rows = [["weights", "data", "test top-1", "test top-5", "parameters", "MACs", "file", "recipe"]]
    for folder in sorted(path.parent for path in root.glob("*/config.json")) if root else []:
        record = read_config(folder)["acmix_zoo"]
        tests = {m["name"]: f"{100 * m['value']:.2f} %" for m in record["metrics"] if m["split"] == "test"}
        rows.append(
            [
                f"`{record['name']}`",
                record["dataset"]["name"],
                tests.get("top1", ""),
                tests.get("top5", ""),
                human(record["params"]),
                human(record["macs"]),
                f"{record['file_size'] / 1e6:.1f} MB",
                f"[yaml]({record['recipe']})",
            ]
        )
    return _markdown(rows)


def models_table() -> str:
    """Return one row for each network of the paper's size: its own costs beside the published ones."""
    rows = [["model", "parameters", "published", "MACs", "published", "input", "top-1, published"]]
    for name in acmix_zoo.list_models("acmix_*"):
        if name.endswith("_pico"):  # they are in the table of shipped weights
            continue
        with torch.device("meta"):
            found, of = complexity(acmix_zoo.create_model(name)), published(name)
        size, mark = "×".join(map(str, found.input_size)), " *" * is_reconstruction(name)
        score = f"{of.top1} %" if of.top1 else ""
        rows.append([f"`{name}`{mark}", f"{found.params:,}", of.params, human(found.macs), of.macs, size, score])
    return _markdown(rows)


def decomposition_table() -> str:
    """Times and memory of a 3×3 convolution in two stages, against the convolution itself."""
    rows = read_csv(BENCHMARKS / "decomposition.csv") if (BENCHMARKS / "decomposition.csv").exists() else []
    cells = [["map, batch 8", "", "conv2d", *(f"{kind} shifts" for kind in ("tensor", "frozen", "learnable"))]]
    for mode in ("inference", "training"):
        for shape in dict.fromkeys(row.contestant.partition(":")[2] for row in rows):
            group = [row for row in rows if row.mode == mode and row.contestant.endswith(f":{shape}")]
            first, size = group[0], shape.replace("x", "×")
            times = [f"{row.ms / first.ms:.1f}×, {row.peak_mib:.0f} MiB" for row in group[1:]]
            cells.append([size, mode, f"{first.ms:.1f} ms, {first.peak_mib:.0f} MiB", *times])
    return _markdown(cells)


def warm_start_table() -> str:
    """What `warm_start_study.py` measured."""
    with (BENCHMARKS / "warm_start.csv").open(encoding="utf-8") as file:
        return _markdown(list(csv.reader(file)))


def distributed_table() -> str:
    """What `make test-distributed` showed when it was last recorded."""
    with (BENCHMARKS / "distributed.csv").open(encoding="utf-8") as file:
        return _markdown(list(csv.reader(file)))


TABLES: dict[str, Callable[[], str]] = {
    "weights": weights_table,
    "models": models_table,
    "speed_summary": speed_summary,
    "speed": speed_table,
    "decomposition": decomposition_table,
    "san_candidates": lambda: _markdown(reconstructions.san_table()),
    "pvt_candidates": lambda: _markdown(reconstructions.pvt_table()),
    "reconstructions": lambda: _markdown(reconstructions.ours_table()),
    "warm_start": warm_start_table,
    "distributed": distributed_table,
    "scaling": lambda: _markdown(scaling_tables.growing_rows()),
    "scaling_capped": lambda: _markdown(scaling_tables.capped_rows()),
    "scaling_memory": lambda: _markdown(scaling_tables.memory_rows()),
    "scaling_nvidia": lambda: _markdown(scaling_tables.nvidia_rows()),
    "scaling_check": lambda: _markdown(scaling_tables.check_rows()),
}


def render(text: str) -> str:
    """The text with every table between its marks made anew."""
    for name in re.findall(r"^<!-- (\w+) -->$", text, re.MULTILINE):
        if name not in TABLES or f"<!-- /{name} -->" not in text:
            raise ValueError(f"<!-- {name} --> begins no table; expected one of {', '.join(TABLES)}, and its end")
        place = re.search(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", text, re.DOTALL)
        assert place
        text = text[: place.start()] + TABLES[name]() + text[place.end() :]
    return text


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |\n" for row in rows]
    return "".join([lines[0], "|---" * len(rows[0]) + "|\n", *lines[1:]])


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        page.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8")
