"""Measure what ACmix costs in the networks of other packages: the first table of docs/drop-in.md.

    python -m tools.drop_in_costs benchmarks/drop_in.csv   # a few minutes on a quiet machine; needs the extra `clients`

For each example it counts parameters and MACs, and measures inference, before and after the replacement. Both networks
take turns in one process, so that a change in the machine's speed affects both. `make readme` writes the table.
"""

from __future__ import annotations

import copy
import datetime
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from acmix_zoo import ACmix2d, swap_conv3x3
from acmix_zoo.bench.results import read_rows, write_csv
from acmix_zoo.layers.complexity import complexity, human
from tools import make_parser

NOT_MEASURED = "Not measured yet. Run `python -m tools.drop_in_costs benchmarks/drop_in.csv`.\n"


@dataclass(frozen=True)
class Cost:
    """The cost of a network before and after ACmix layers replaced some of its convolutions.

    Attributes:
        network: its name, with its package.
        replaced: what was replaced, as a filter or in words.
        layers: number of ACmix layers.
        size: side length of the square image in pixels.
        params_before, params_after: numbers of parameters.
        macs_before, macs_after: MACs of one image.
        ms_before, ms_after: medians of the milliseconds for one image.
        threads: number of CPU threads.
        date: of the measurement.
    """

    network: str
    replaced: str
    layers: int
    size: int
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    ms_before: float
    ms_after: float
    threads: int
    date: str


class Pair(NamedTuple):
    """A network before and after the replacement."""

    before: nn.Module
    after: nn.Module


class Example(NamedTuple):
    """A row of the table, see `Cost`."""

    network: str
    replaced: str
    size: int
    build: Callable[[], Pair]


def swap_copy(network: nn.Module, pattern: str) -> Pair:
    """Return the network and a copy in which the convolutions that match the pattern are replaced."""
    after = copy.deepcopy(network)
    swap_conv3x3(after, pattern)
    return Pair(network, after)


def _torchvision_resnet() -> Pair:
    from torchvision.models import resnet50

    return swap_copy(resnet50(weights=None), "layer4.*")


def _torchvision_fcos() -> Pair:
    from torchvision.models.detection import fcos_resnet50_fpn

    network = fcos_resnet50_fpn(weights=None, weights_backbone=None, min_size=320, max_size=320)
    return swap_copy(network, "head.*_head.conv.*")


def _smp_unet() -> Pair:
    from segmentation_models_pytorch import Unet

    return swap_copy(Unet("resnet34", encoder_weights=None, classes=11), "decoder.blocks.[01].*")


def _timm(name: str, pattern: str) -> Pair:
    import timm

    return swap_copy(timm.create_model(name), pattern)


def _timm_convnext() -> Pair:
    import timm

    before = timm.create_model("convnext_atto")
    after: Any = copy.deepcopy(before)
    for block in after.stages[3].blocks:
        block.conv_dw = ACmix2d(block.conv_dw.in_channels, block.conv_dw.out_channels)
    return Pair(before, after)


def _yolo(name: str) -> Pair:
    from ultralytics import YOLO

    from acmix_zoo.integrations.ultralytics import write_yaml

    with tempfile.TemporaryDirectory() as folder:
        return Pair(YOLO(f"{name}.yaml").model, YOLO(write_yaml(name, folder)).model)


EXAMPLES = (
    Example("torchvision `resnet50`", "`layer4.*`", 224, _torchvision_resnet),
    Example("torchvision `fcos_resnet50_fpn`", "`head.*_head.conv.*`", 320, _torchvision_fcos),
    Example("SMP `Unet(\"resnet34\")`", "`decoder.blocks.[01].*`", 224, _smp_unet),
    Example("timm `resnet18`", "`layer[34].*`", 224, lambda: _timm("resnet18", "layer[34].*")),
    Example("timm `convnext_pico_ols`", "`stem.1`", 224, lambda: _timm("convnext_pico_ols", "stem.1")),
    Example("timm `convnext_atto`", "depthwise convolutions of the last stage", 224, _timm_convnext),
    Example("Ultralytics `yolo11n`", "neck (`write_yaml`)", 320, lambda: _yolo("yolo11n")),
    Example("Ultralytics `yolov8n`", "neck (`write_yaml`)", 320, lambda: _yolo("yolov8n")),
)  # fmt: skip


def measure(example: Example, rounds: int = 15) -> Cost:
    """Count and measure an example."""
    pair = example.build()
    shape = (3, example.size, example.size)
    counts = [complexity(network.eval(), shape) for network in pair]
    times = measure_times(pair, torch.rand(1, *shape), rounds)
    return Cost(
        network=example.network, replaced=example.replaced, layers=count_layers(pair.after), size=example.size,
        params_before=counts[0].params, params_after=counts[1].params,
        macs_before=counts[0].macs, macs_after=counts[1].macs,
        ms_before=round(times[0], 2), ms_after=round(times[1], 2),
        threads=torch.get_num_threads(), date=datetime.date.today().isoformat(),
    )  # fmt: skip


def count_layers(network: nn.Module) -> int:
    """Return the number of ACmix layers of a network."""
    return sum(isinstance(module, ACmix2d) for module in network.modules())


@torch.inference_mode()
def measure_times(networks: Sequence[nn.Module], x: Tensor, rounds: int) -> list[float]:
    """Return the median milliseconds of each network, which take turns. The first round is not counted."""
    times: list[list[float]] = [[] for _ in networks]
    for _ in range(rounds + 1):
        for network, milliseconds in zip(networks, times, strict=True):
            start = time.perf_counter()
            network(x)
            milliseconds.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(milliseconds[1:]) for milliseconds in times]


def table(file: Path) -> list[list[str]]:
    """Return a row for each example, with what changed."""
    rows = [["network", "replaced", "ACmix layers", "image", "parameters", "MACs", "time"]]
    for cost in read_rows(file, Cost):
        counts = [
            f"{human(before)} → {human(after)}"
            for before, after in ((cost.params_before, cost.params_after), (cost.macs_before, cost.macs_after))
        ]
        ratio = f"{cost.ms_after / cost.ms_before:.2f}×"
        rows.append([cost.network, cost.replaced, str(cost.layers), f"{cost.size}×{cost.size}", *counts, ratio])
    return rows


if __name__ == "__main__":
    parser = make_parser("drop_in_costs", __doc__)
    parser.add_argument("file", type=Path, help="CSV file for the results")
    file = parser.parse_args().file
    torch.set_num_threads(1)
    torch.manual_seed(0)
    costs = []
    for example in EXAMPLES:
        costs.append(measure(example))
        print(costs[-1], flush=True)
    write_csv(costs, file)
