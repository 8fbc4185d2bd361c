"""Stage I of ACmix: project every pixel to q, k and v, with the PyTorch kernel that is faster on this CPU.

`torch.nn.functional.linear` calls MKL for float32 on x86. MKL runs its AVX2 code on AMD processors, even if they have
AVX-512. On Zen 4 this costs nothing, because a 512-bit multiplication takes twice as long there as a 256-bit one. On
Zen 5 it halves the rate: 33–56 GMAC/s per core, where oneDNN's convolution reaches 108–111.

PyTorch calls oneDNN for a 1×1 convolution only under some conditions, one of which is a dilation. A dilation does not
change a 1×1 convolution, so a convolution with dilation 2 reaches oneDNN through the documented interface, with all of
its derivatives. The choice depends on the type of the CPU and the shape alone, not on a measurement, because the two
kernels round differently: a run that is repeated or resumed on the same machine must get the same bits.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from acmix_zoo.ops.derivatives import is_transformed
from acmix_zoo.ops.tracing import is_recording

# AMD calls Zen 5 family 0x1A.
_FIRST_WIDE_AMD_FAMILY = 0x1A
# Multiply-accumulates below which the convolution's setup, about 0.1 ms, outweighs its rate.
_CONVOLUTION_FROM_MACS = 10_000_000
# A dilation does not change a 1×1 convolution, but makes PyTorch run it with oneDNN.
_DILATION = 2


@lru_cache(maxsize=1)
def prefers_convolution() -> bool:
    """Return whether this CPU runs a oneDNN convolution faster than an MKL matrix product."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    return _is_wide_amd(Path("/proc/cpuinfo"))


def _is_wide_amd(cpuinfo: Path) -> bool:
    """Return whether Linux's description of the CPU names an AMD processor with 512-bit multipliers."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").partition("\n\n")[0].splitlines()  # the first core
    except OSError:  # not Linux
        return False
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    family = fields.get("cpu family", "")
    return fields.get("vendor_id") == "AuthenticAMD" and family.isdigit() and int(family) >= _FIRST_WIDE_AMD_FAMILY


def runs_as_convolution(x: Tensor, weight: Tensor) -> bool:
    """Return whether `project(x, weight, …)` runs as a convolution rather than as a matrix product."""
    if is_recording() or not prefers_convolution() or x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    macs = x.numel() * len(weight)
    # Other memory formats would be converted first, and transforms do not support every convolution.
    return (
        macs >= _CONVOLUTION_FROM_MACS
        and not is_transformed(x, weight)
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def explain_projection(macs: int, device: str = "cpu") -> str:
    """Describe how a float32 projection with this number of multiply-accumulates runs, and why."""
    if device != "cpu":
        return "matrix product"
    if not prefers_convolution():
        return "matrix product: no faster kernel is known for this CPU"
    if macs < _CONVOLUTION_FROM_MACS:
        return "matrix product: too small for a convolution to pay off"
    return "1×1 convolution by oneDNN: MKL's matrix product does not use this CPU's 512-bit multipliers"


def project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the projection of every pixel: x (B, C, H, W), weight (N, C), bias (N,) → (B, H, W, N)."""
    if runs_as_convolution(x, weight):
        return F.conv2d(x, weight[:, :, None, None], bias, dilation=_DILATION).permute(0, 2, 3, 1)
    return F.linear(x.permute(0, 2, 3, 1), weight, bias)


def project_backward(grad: Tensor, x: Tensor, weight: Tensor, *, needs_x: bool = True) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of x, or None, and of weight, for a gradient (B, H, W, N) of `project`'s result."""
    if runs_as_convolution(x, weight) and grad.dtype == torch.float32:
        d_out, kernel = grad.permute(0, 3, 1, 2), weight[:, :, None, None]  # (B, N, H, W), (N, C, 1, 1)
        d_x = conv2d_input(x.shape, kernel, d_out, dilation=_DILATION) if needs_x else None
        return d_x, conv2d_weight(x, kernel.shape, d_out, dilation=_DILATION).flatten(1)
    rows = grad.flatten(0, 2)  # (B·H·W, N)
    d_x = (rows @ weight).unflatten(0, grad.shape[:3]).permute(0, 3, 1, 2) if needs_x else None
    return d_x, rows.T @ x.permute(0, 2, 3, 1).flatten(0, 2)
