"""ACmix2d: the drop-in replacement for a 3×3 convolution."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Literal, Never

import torch
from torch import Tensor, nn

from acmix_zoo.layers.argument_checks import (
    Paths,
    auto_heads,
    check_dtype,
    check_feature_map,
    check_heads,
    check_odd,
    check_paths,
    reject_unknown_arguments,
)
from acmix_zoo.layers.convolution_path import ShiftConv
from acmix_zoo.layers.cost import StageCounts, TwoStageLayer
from acmix_zoo.layers.fx_leaf import leaf
from acmix_zoo.layers.submodule_use import can_skip_call
from acmix_zoo.ops.acmix import Geometry, PathTensors, acmix, combine_paths
from acmix_zoo.ops.memory_format import restore_memory_format
from acmix_zoo.ops.position_encoding import position_encoding
from acmix_zoo.ops.precision import autocast_dtype, autocast_off
from acmix_zoo.ops.tracing import is_tracing, unflatten


@leaf
class ACmix2d(TwoStageLayer):
    """Self-attention and convolution on the same projections: `alpha · attention + beta · convolution`.

    A drop-in replacement for `nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)`. The feature map is projected
    once to q, k and v. On the attention path, every position attends to the kernel_att × kernel_att window around it,
    and the feature map is reflected at its border. The convolution path mixes the same projections and convolves them
    with kernels that are initialised as shifts. The output has the input's dtype and memory format. Any height and
    width works, down to 1×1.

    The first four arguments have the same order as in `nn.Conv2d`, for builders that pass arguments by position. The
    third one is the kernel size of the convolution path; it does not affect the attention window. There is no padding
    argument, because the output always has ceil(size / stride) pixels per side.

    Args:
        in_channels, out_channels: numbers of input and output channels.
        kernel_conv: side length of the convolution; odd.
        stride: stride of the queries and the convolution. Keys and values are not subsampled.
        heads: number of attention heads, a divisor of out_channels. The convolution path has out_channels/heads groups
            of `heads` outputs each. "auto" uses the largest divisor up to max(4, out_channels // 64): 4 for the usual
            widths up to 256, then heads of 64 channels.
        kernel_att: side length of the attention window; odd.
        dilation: dilation of the attention window and of the convolution.
        paths: "both", or the name of one path to use it alone, for comparison. The layer then has no alpha and beta.

    Attributes:
        qkv: Linear(in_channels, 3·out_channels) applied to every pixel; its rows are ordered (out_channels/heads,
            {q, k, v}, heads), so that the convolution path reads its groups without a copy.
        position_weight: (d, 2), position encoding of the coordinates (x, y) in −1 … 1.
        position_bias: (d,), its bias. It cancels in the softmax, so it does not change the output and its gradient is
            exactly zero. It exists so that parameter counts and checkpoints agree with the authors' code.
        shift_conv: the convolution path, see `ShiftConv`.
        alpha, beta: (1,), initialised as one half.

    Shape:
        (B, in_channels, H, W) → (B, out_channels, ceil(H/stride), ceil(W/stride)). As with `nn.Conv2d`, a single
        feature map may come without a batch dimension: (in_channels, H, W) → (out_channels, …).

    Raises:
        ValueError: out_channels is not divisible by heads, a kernel is even, or the input does not have one of these
            shapes and the dtype of the weights.
        TypeError: there are other arguments, for example those of `nn.Conv2d` that this layer does not have.

    Note:
        If `qkv` or `shift_conv` is wrapped or hooked (LoRA, pruning, a profiler with hooks on all modules), the layer
        calls it like any module. The results are the same, but the batch is not processed in chunks, and training keeps
        the projections and the attention's intermediate results in memory.

        After `import acmix_zoo.integrations.ultralytics`, the layer can be used in the model yamls of Ultralytics.

    Source: "On the Integration of Self-Attention and Convolution", CVPR 2022, and the ResNet of its released code.
    """

    STAGE_ONE = ("qkv.",)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_conv: int = 3,
        stride: int = 1,
        *positional: Never,
        heads: int | Literal["auto"] = "auto",
        kernel_att: int = 7,
        dilation: int = 1,
        paths: Paths = "both",
        **keywords: Never,
    ) -> None:
        super().__init__()
        known = "in_channels, out_channels, kernel_conv, stride, heads, kernel_att, dilation or paths"
        reject_unknown_arguments("ACmix2d", known, positional, keywords)
        for name, value in dict(
            in_channels=in_channels, out_channels=out_channels, heads=1 if heads == "auto" else heads,
            kernel_att=kernel_att, kernel_conv=kernel_conv, stride=stride, dilation=dilation,
        ).items():  # fmt: skip
            if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
                expected = 'a positive integer or "auto"' if name == "heads" else "a positive integer"
                raise ValueError(f"ACmix2d: {name} must be {expected}, got {value!r}")
        in_channels, out_channels, kernel_att = int(in_channels), int(out_channels), int(kernel_att)  # maybe NumPy's
        kernel_conv, stride, dilation = int(kernel_conv), int(stride), int(dilation)
        heads = auto_heads(out_channels) if heads == "auto" else int(heads)
        check_heads("ACmix2d", "out_channels", out_channels, heads, auto=True)
        check_odd("ACmix2d", kernel_att=kernel_att, kernel_conv=kernel_conv)
        check_paths("ACmix2d", paths)
        self.in_channels, self.out_channels, self.heads = in_channels, out_channels, heads
        self.kernel_att, self.kernel_conv, self.stride, self.dilation = kernel_att, kernel_conv, stride, dilation
        self.paths: Paths = paths

        self.qkv = nn.Linear(in_channels, 3 * out_channels)
        if paths != "convolution":
            self.position_weight = nn.Parameter(torch.empty(out_channels // heads, 2))
            self.position_bias = nn.Parameter(torch.empty(out_channels // heads))
        if paths != "attention":
            self.shift_conv = ShiftConv(out_channels, heads, kernel_conv, stride, dilation)
        if paths == "both":
            self.alpha = nn.Parameter(torch.empty(1))
            self.beta = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the projections as PyTorch does, the convolution as shifts, and alpha and beta as one half."""
        self.qkv.reset_parameters()
        if self.paths != "convolution":
            bound = 2**-0.5  # as in PyTorch's 1×1 convolution with two inputs
            nn.init.uniform_(self.position_weight, -bound, bound)
            nn.init.uniform_(self.position_bias, -bound, bound)
        if self.paths != "attention":
            self.shift_conv.reset_parameters()
        if self.paths == "both":
            nn.init.constant_(self.alpha, 0.5)
            nn.init.constant_(self.beta, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map("ACmix2d", x, self.in_channels)
        check_dtype("ACmix2d", x, self.qkv)
        if is_single := x.dim() == 3:
            x = x.unsqueeze(0)  # (1, C, H, W)
        geometry = Geometry(self.heads, self.kernel_att, self.stride, self.dilation)
        pe = None
        if self.paths != "convolution":
            pe = position_encoding(self.position_weight, *x.shape[2:])
            if torch.is_grad_enabled() and not is_tracing():  # a trace must not depend on the grad mode
                pe = pe + 0 * self.position_bias  # its gradient is zero, not missing
        qkv, both = self.qkv, self.paths == "both"
        if can_skip_call(qkv, nn.Linear) and (self.paths == "attention" or can_skip_call(self.shift_conv, ShiftConv)):
            dtype = autocast_dtype(x)
            weight, bias, inputs = (t if t is None else t.to(dtype) for t in (qkv.weight, qkv.bias, x))
            # Cast here, once: a chunk that is recomputed for its gradient must not have a different dtype.
            with autocast_off(x):
                fc = kernels = None
                if self.paths != "attention":
                    fc, kernels = self.shift_conv.factors(self.beta if both else None)
                out = acmix(inputs, weight, bias, PathTensors(pe, fc, kernels, self.alpha if both else None), geometry)
        else:  # a wrapped or hooked submodule must be called, because its parameters alone do not define its output
            out = self._call_submodules(x, pe, geometry)
        out = restore_memory_format(out, x)
        return out.squeeze(0) if is_single else out

    def _call_submodules(self, x: Tensor, pe: Tensor | None, geometry: Geometry) -> Tensor:
        """Compute the same by calling the modules `qkv` and `shift_conv`: → (B, out_channels, Ho, Wo)."""
        projections = self.qkv(x.permute(0, 2, 3, 1))  # (B, H, W, 3·out)
        parts: list[Tensor] = []
        if self.paths != "attention":
            groups = unflatten(projections, 3, (-1, 3 * self.heads))  # (B, H, W, d, 3·heads)
            maps = self.shift_conv(groups, self.beta if self.paths == "both" else None)  # (B, Ho, Wo, out)
            parts.append(maps.permute(0, 3, 1, 2))  # (B, out, Ho, Wo)
        if pe is not None:
            with autocast_off(x):
                parts.append(combine_paths(projections, PathTensors(pe), geometry))  # (B, out, Ho, Wo)
        if len(parts) == 1:
            return parts[0]
        with autocast_off(x):
            return torch.addcmul(parts[0].to(parts[1].dtype), parts[1], self.alpha.to(parts[1].dtype))

    def stage_macs(self, x: Tensor) -> StageCounts:
        """Return the multiply-accumulates of both stages for an input of `forward`.

        The attention and the shifts run on the strided feature map, the projections and the mixing on the full one.
        """
        *batch, _, h, w = x.shape
        b = math.prod(batch)
        strided = -(-h // self.stride) * -(-w // self.stride)
        second = 0
        if self.paths != "convolution":
            second += strided * 2 * self.kernel_att**2 * self.out_channels
        if self.paths != "attention":
            second += self.shift_conv.macs(h, w)
        return StageCounts(b * h * w * 3 * self.in_channels * self.out_channels, b * second)

    def definition_macs(self, x: Tensor) -> int:
        """Return the multiply-accumulates of the whole layer for an input of `forward`."""
        return sum(self.stage_macs(x))

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, heads={self.heads}, kernel_att={self.kernel_att}, "
            f"kernel_conv={self.kernel_conv}, stride={self.stride}"
            + (f", dilation={self.dilation}" if self.dilation != 1 else "")
            + (f", paths={self.paths!r}" if self.paths != "both" else "")
        )
