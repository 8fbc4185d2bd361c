"""Measure the native CPU kernel against plain PyTorch: the layers of ResNet-50, the whole network, and Swin-T.

    python -m tools.bench_native layers --batch 8 1
    python -m tools.bench_native networks --batch 8 1 --seconds 30
    python -m tools.bench_native swin --batch 8 1 --seconds 30
    python -m tools.bench_native layers --threads 2

All candidates of a row run in one process, one after the other, round after round; figures are medians in milliseconds.
With one thread the clock is the process's CPU time, so that other programs on the machine matter little; with more
threads it is wall time, which needs a quiet machine. To measure the AVX2 code everywhere, in PyTorch's kernels as well,
set ATEN_CPU_CAPABILITY=avx2, ONEDNN_MAX_CPU_ISA=AVX2 and MKL_ENABLE_INSTRUCTIONS=AVX2.

Candidates: "native" is ACmix with the library, "python" without it, "plain" the 3×3 convolution that it replaces, or
timm's network. For "swin", the second block of each stage is measured, too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import acmix_zoo
from acmix_zoo.ops import use_backend
from acmix_zoo.ops.backends.native.library import instruction_set, library

# (channels, side of the input, stride, how often it occurs in ResNet-50)
LAYERS = [
    (64, 56, 1, 3), (128, 28, 1, 3), (256, 14, 1, 5), (512, 7, 1, 2),
    (128, 56, 2, 1), (256, 28, 2, 1), (512, 14, 2, 1),
]  # fmt: skip


def medians(candidates: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Return the median milliseconds of each candidate, measured in rounds over all of them for about `seconds`."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for run in candidates.values():
        run(), run()
    spent: dict[str, list[float]] = {name: [] for name in candidates}
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(spent[next(iter(spent))]) < 5:
        for name, run in candidates.items():
            before = clock()
            run()
            spent[name].append(clock() - before)
    return {name: statistics.median(times) * 1e3 for name, times in spent.items()}


def without_library(run: Callable[[], object]) -> Callable[[], object]:
    """Return the same call with the Python backend."""

    def call() -> object:
        with use_backend("python"):
            return run()

    return call


def inference(module: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return module(x)

    return run


def training(module: nn.Module, x: Tensor, backward: Callable[[Tensor], object]) -> Callable[[], object]:
    def run() -> object:
        module.zero_grad()
        x.grad = None
        return backward(module(x))

    return run


def report(title: str, found: dict[str, float]) -> None:
    ratios = "  ".join(f"{name} {ms:8.2f} ms {ms / found['plain']:5.2f}×" for name, ms in found.items())
    print(f"{title:34} {ratios}", flush=True)


def measure_layers(batch: int, seconds: float) -> None:
    totals: dict[str, dict[str, float]] = {"inference": {}, "training": {}}
    for channels, side, stride, count in LAYERS:
        x = torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
        layer = acmix_zoo.ACmix2d(channels, channels, stride=stride, heads=4)
        plain = nn.Conv2d(channels, channels, 3, stride, 1, bias=False).to(memory_format=torch.channels_last)
        weights = torch.randn_like(plain(x).detach())
        learned = x.clone(memory_format=torch.preserve_format).requires_grad_()
        for mode in totals:
            runs = {}
            for name, module in (("native", layer), ("plain", plain)):
                if mode == "inference":
                    runs[name] = inference(module, x)
                else:
                    runs[name] = training(module, learned, partial(torch.autograd.backward, grad_tensors=weights))
            runs["python"] = without_library(runs["native"])
            found = medians(runs, seconds)
            report(f"{mode} {batch}×{channels}×{side}²{'/2' if stride == 2 else ''}", found)
            for name, ms in found.items():
                totals[mode][name] = totals[mode].get(name, 0) + ms * count
    for mode, total in totals.items():
        report(f"{mode} {batch}× all 16 layers", total)


def folded(network: Any) -> Any:
    """Return the plain ResNet-50 in eval mode with its batch norms folded, as `deploy` does for ACmix networks."""
    for block in [network, *(m for m in network.modules() if hasattr(m, "conv3"))]:
        for i in (1, 2, 3):
            if hasattr(block, f"conv{i}") and isinstance(getattr(block, f"conv{i}"), nn.Conv2d):
                setattr(block, f"conv{i}", fuse_conv_bn_eval(getattr(block, f"conv{i}"), getattr(block, f"bn{i}")))
                setattr(block, f"bn{i}", nn.Identity())
        if isinstance(getattr(block, "downsample", None), nn.Sequential):
            block.downsample = nn.Sequential(fuse_conv_bn_eval(block.downsample[0], block.downsample[1]))
    return network


def measure_network(title: str, ours: Any, plain: Any, x: Tensor, seconds: float) -> None:
    labels = torch.randint(1000, (len(x),))
    runs = {
        name: training(net.train(), x, lambda out: F.cross_entropy(out, labels).backward())
        for name, net in (("native", ours), ("plain", plain))
    }
    report(f"training {title}", medians({**runs, "python": without_library(runs["native"])}, seconds))
    runs = {name: inference(net.eval(), x) for name, net in (("native", ours), ("plain", plain))}
    report(f"inference {title}", medians({**runs, "python": without_library(runs["native"])}, seconds))


def measure_resnet(batch: int, seconds: float) -> None:
    ours, plain = (
        timm.create_model(name).to(memory_format=torch.channels_last) for name in ("acmix_resnet50", "resnet50")
    )
    x = torch.randn(batch, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    measure_network(f"ResNet-50, batch {batch}", ours, plain, x, seconds)
    runs = {"native": inference(cast(Any, ours).deploy(), x), "plain": inference(folded(plain), x)}
    report(f"inference, norms folded, batch {batch}", medians(runs, seconds))


def measure_swin(batch: int, seconds: float) -> None:
    ours, plain = (
        cast(Any, timm.create_model(name, drop_path_rate=0.0))
        for name in ("acmix_swin_t", "swin_tiny_patch4_window7_224")
    )
    for i, (stage, plain_stage) in enumerate(zip(ours.layers, plain.layers, strict=True)):
        side, dim = 56 >> i, 96 << i
        x = torch.randn(batch, side, side, dim)
        blocks = {"native": stage.blocks[1], "plain": plain_stage.blocks[1]}
        runs = {name: inference(block, x) for name, block in blocks.items()}
        runs["python"] = without_library(runs["native"])
        report(f"inference {batch}×{side}²×{dim}", medians(runs, seconds / 4))
        learned, weights = x.clone().requires_grad_(), torch.randn_like(x)
        backward = partial(torch.autograd.backward, grad_tensors=weights)
        runs = {name: training(block, learned, backward) for name, block in blocks.items()}
        runs["python"] = without_library(runs["native"])
        report(f"training {batch}×{side}²×{dim}", medians(runs, seconds / 4))
    measure_network(f"Swin-T, batch {batch}", ours, plain, torch.randn(batch, 3, 224, 224), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m tools.bench_native", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["layers", "networks", "swin"])
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 1], help="batch sizes")
    parser.add_argument("--threads", type=int, default=1, help="number of PyTorch's threads")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds for each row")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if library() is None:
        raise SystemExit("There is no native library to measure.")
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"native: {instruction_set()}, PyTorch: {capability}, {arguments.threads} thread(s)", flush=True)
    for batch in arguments.batch:
        {"layers": measure_layers, "networks": measure_resnet, "swin": measure_swin}[arguments.what](
            batch, arguments.seconds
        )


if __name__ == "__main__":
    main()
