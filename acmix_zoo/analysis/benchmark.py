"""Time and memory of ACmix2d against its readable reference and a plain 3×3 convolution.

    python -m acmix_zoo.analysis.benchmark [--threads 2] [--batch 8] [--repeats 5]

Times are medians of runs interleaved in one process; peak memory is what a fresh process takes above its resting state.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

from acmix_zoo.layers import ACmix2d, acmix2d, shift_conv
from acmix_zoo.ops.local_attention import local_attention_reference
from acmix_zoo.ops.shift_conv import shift_conv_reference

SHAPES = ((64, 56), (128, 28), (256, 14), (512, 7))
FORMS = ("acmix", "reference", "convolution")


def runner(form: str, channels: int, size: int, batch: int, train: bool) -> Callable[[], None]:
    """One pass (forward, or forward and backward) over a channels_last map (batch, channels, size, size)."""
    torch.manual_seed(0)
    layer: nn.Module = (
        nn.Conv2d(channels, channels, 3, padding=1) if form == "convolution" else ACmix2d(channels, channels)
    )
    layer.to(memory_format=torch.channels_last)
    x = torch.randn(batch, channels, size, size).contiguous(memory_format=torch.channels_last)

    def once() -> Tensor:
        if form != "reference":
            return layer(x.requires_grad_(train))  # type: ignore[no-any-return]
        with (
            mock.patch.object(acmix2d, "local_attention", local_attention_reference),
            mock.patch.object(shift_conv, "shift_conv", shift_conv_reference),
        ):
            return layer(x.requires_grad_(train))  # type: ignore[no-any-return]

    def run() -> None:
        with torch.set_grad_enabled(train):
            out = once()
            if train:
                out.backward(x.detach())

    return run


def times(channels: int, size: int, batch: int, train: bool, repeats: int) -> dict[str, float]:
    """Median milliseconds of each form, interleaved, after one warm-up of each."""
    runs = {form: runner(form, channels, size, batch, train) for form in FORMS}
    spent: dict[str, list[float]] = {form: [] for form in FORMS}
    for repeat in range(repeats + 1):
        for form, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:
                spent[form].append((time.perf_counter() - start) * 1e3)
    return {form: statistics.median(values) for form, values in spent.items()}


def peak(form: str, channels: int, size: int, batch: int, train: bool) -> float:
    """MiB that one pass takes above the resting process. Only meaningful in a process that did nothing else before."""
    run = runner(form, channels, size, batch, train)
    warm = runner(form, 4, 4, 1, train)  # code, thread pools and small buffers are not the layer's
    warm()
    # Not getrusage: its maximum is inherited from the process that started this one.
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    resting = _memory("VmRSS")
    run()
    return _memory("VmHWM") - resting


def _memory(field: str) -> float:
    """MiB, from Linux's account of this process."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) / 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m acmix_zoo.analysis.benchmark", description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak", help=argparse.SUPPRESS)  # the fresh process: prints the peak of one case
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print(peak(*json.loads(options.peak)))
        return

    def fresh_peak(*case: object) -> float:
        command = [sys.executable, "-m", "acmix_zoo.analysis.benchmark", "--threads", str(options.threads)]
        return float(subprocess.run([*command, "--peak", json.dumps(case)], capture_output=True, check=True).stdout)

    print(f"batch {options.batch}, {options.threads} threads, float32; ms, and how many times the reference takes more")
    print("| map | pass | acmix | reference | 3×3 | reference ÷ acmix | acmix ÷ 3×3 | peak MiB: acmix / reference |")
    print("|---|---|---|---|---|---|---|---|")
    for channels, size in SHAPES:
        for train in (False, True):
            ms = times(channels, size, options.batch, train, options.repeats)
            memory = [fresh_peak(form, channels, size, options.batch, train) for form in FORMS[:2]]
            print(
                f"| {channels}×{size}² | {'forward + backward' if train else 'forward'} | {ms['acmix']:.1f} | "
                f"{ms['reference']:.1f} | {ms['convolution']:.1f} | {ms['reference'] / ms['acmix']:.1f}× | "
                f"{ms['acmix'] / ms['convolution']:.2f}× | {memory[0]:.0f} / {memory[1]:.0f} "
                f"({memory[1] / max(memory[0], 1e-9):.0f}×) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
