"""WindowACmix: the ACmix layer of Swin, with window attention and convolution on the same qkv projection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix_zoo.layers.argument_checks import Paths, check_dtype, check_heads, check_odd, check_paths, check_window
from acmix_zoo.layers.bias_table import resized_bias_table, table_length
from acmix_zoo.layers.convolution_path import ShiftConv
from acmix_zoo.layers.cost import StageCounts, TwoStageLayer
from acmix_zoo.layers.fx_leaf import leaf
from acmix_zoo.layers.submodule_use import can_skip_call, is_plain
from acmix_zoo.ops.tracing import at_most, ceil_div, constant_size, is_dynamic, unflatten
from acmix_zoo.ops.window_attention import window_attention
from acmix_zoo.ops.window_paths import WindowGeometry, WindowTensors, runs_native, window_paths
from acmix_zoo.ops.windows import (
    crop,
    relative_position_index,
    roll,
    shifted_window_mask,
    window_masks,
    window_partition,
    window_reverse,
)


@leaf
class WindowACmix(TwoStageLayer):
    """`alpha · proj(window attention) + beta · convolution` on the same q, k, v.

    Args:
        dim: channels, a multiple of heads.
        heads: number of attention heads.
        window: (height, width) of the attention windows. Feature maps are padded with zeros to whole windows.
        shift: (rows, columns) by which the feature map is rolled before it is cut into windows; (0, 0) for none. Along
            a side that a single window covers, it is not rolled.
        kernel_conv: side length of the convolution; odd.
        conv_before_shift: run the convolution before the feature map is rolled. The released networks run it on the
            **rolled** feature map, where pixels at the border and at the seam have neighbours from the opposite side
            of the image. Their weights need that, so it is the default. Prefer True when you train from scratch.
        paths: "both", or the name of one path to use it alone.
        proj_drop: dropout rate after the sum.

    Attributes:
        qkv: Linear(dim, 3·dim) whose rows are ordered (dim/heads, {q, k, v}, heads).
        proj: Linear(dim, dim) behind the attention. The convolution path does not pass through it.
        relative_position_bias_table: ((2·wh−1)·(2·ww−1), heads).
        shift_conv, alpha, beta: as in `ACmix2d`.

    Shape:
        (B, H, W, dim) → (B, H, W, dim).

    Source: ACmix, CVPR 2022, and the Swin networks of its released code.
    """

    STAGE_ONE = ("qkv.",)

    relative_position_index: Tensor
    shift_mask: Tensor | None

    def __init__(
        self,
        dim: int,
        heads: int,
        window: tuple[int, int],
        shift: tuple[int, int] = (0, 0),
        *,
        kernel_conv: int = 3,
        conv_before_shift: bool = False,
        paths: Paths = "both",
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        check_heads("WindowACmix", "dim", dim, heads)
        check_paths("WindowACmix", paths)
        check_odd("WindowACmix", kernel_conv=kernel_conv)
        self.dim, self.heads, self.paths, self.conv_before_shift = dim, heads, paths, conv_before_shift
        self.qkv = nn.Linear(dim, 3 * dim)
        if paths != "convolution":
            self.relative_position_bias_table = nn.Parameter(torch.zeros(1, heads))  # of a 1×1 window
            self.proj = nn.Linear(dim, dim)
        if paths != "attention":
            self.shift_conv = ShiftConv(dim, heads, kernel_conv, bias=True)
        if paths == "both":
            self.alpha = nn.Parameter(torch.full((1,), 0.5))
            self.beta = nn.Parameter(torch.full((1,), 0.5))
        self.proj_drop = nn.Dropout(proj_drop)
        # These buffers follow from the window and the shift. `init_non_persistent_buffers` computes them.
        if paths != "convolution":
            self.register_buffer("relative_position_index", None, persistent=False)  # (L, L)
            self.register_buffer("shift_mask", None, persistent=False)  # (4, L, L), or None without a shift
        self.window = (1, 1)
        self.set_window(window, shift)

    @torch.inference_mode(False)  # inference tensors could not be used for training later
    def set_window(self, window: tuple[int, int], shift: tuple[int, int]) -> None:
        """Change the window or shift, and resize the position table to match."""
        check_window("WindowACmix", window, shift)
        before = self.window
        self.window, self.shift = window, shift
        if self.paths == "convolution":
            return
        if window != before:
            table = self.relative_position_bias_table
            resized = resized_bias_table(table.detach(), before, window)
            self.relative_position_bias_table = nn.Parameter(resized, table.requires_grad)
        self.init_non_persistent_buffers()

    @torch.inference_mode(False)
    def init_non_persistent_buffers(self) -> None:
        """Compute the buffers that are not in checkpoints, on the device of the position table.

        timm's and transformers' loaders call this after building a network on the meta device. `to_empty`, `.to()` and
        `load_state_dict` call it automatically.
        """
        if self.paths == "convolution":
            return
        table = self.relative_position_bias_table
        self.relative_position_index = relative_position_index(self.window, table.device)
        self.shift_mask = None
        if any(self.shift):
            # 2 × 2 windows: an inner one, one at the right, one at the bottom, and one in the corner.
            four = (2 * self.window[0], 2 * self.window[1])
            self.shift_mask = shifted_window_mask(four, self.window, self.shift, table.device).to(table.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WindowACmix:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.init_non_persistent_buffers()  # `to_empty` has left them without values
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.init_non_persistent_buffers()  # with assign=True, the table may have left the meta device

    def resized_table(self, table: Tensor) -> Tensor:
        """Return the position table of a checkpoint, interpolated for this layer's window unless its length fits."""
        fits = table.shape == (table_length(self.window), self.heads)
        return table if fits else resized_bias_table(table, None, self.window)

    @torch.no_grad()
    def deploy(self) -> None:
        """Fold alpha into the projection and beta into the kernels, for inference.

        Nothing else is precomputed. Looking up the position table is cheap, and a cached bias would be wrong after
        other weights are loaded.
        """
        # Scaling the parameters only scales the output of plain submodules.
        scalable = self.paths == "both" and is_plain(self.proj, nn.Linear) and is_plain(self.shift_conv, ShiftConv)
        if scalable and self.alpha is not None:
            for factor, tensors in ((self.alpha, self.proj.parameters()), (self.beta, [self.shift_conv.shift_weight])):
                for tensor in tensors:
                    tensor.mul_(factor)
            self.alpha = self.beta = None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or constant_size(x.shape[3]) != self.dim:
            raise ValueError(f"WindowACmix: expected an input of (B, H, W, {self.dim}), got {tuple(x.shape)}")
        check_dtype("WindowACmix", x, self.qkv)
        h, w = x.shape[1:3]
        rows, cols = (ceil_div(n, side) for n, side in zip((h, w), self.window, strict=True))  # of windows
        if self._runs_native(x):
            return self.proj_drop(self._forward_native(x, rows, cols))  # type: ignore[no-any-return]
        # Written this way, the padded size is a product for the compiler, too, which can then prove the reshapes.
        x = F.pad(x, (0, 0, 0, cols * self.window[1] - w, 0, rows * self.window[0] - h))  # (B, H′, W′, dim)
        opened = is_dynamic(rows, cols)
        if opened:  # the same without data-dependent branches
            shift = (self.shift[0] * at_most(rows - 1, 1), self.shift[1] * at_most(cols - 1, 1))
        else:
            shift = self.effective_shift(rows, cols)
        x = roll(x, (-shift[0], -shift[1]))
        projections = self.qkv(x)  # (B, H′, W′, 3·dim)
        projections = unflatten(projections, 3, (-1, 3 * self.heads))  # (B, H′, W′, d, 3·heads)

        def back(rolled: Tensor) -> Tensor:  # (B, H′, W′, …) → (B, H, W, …): undo the roll and the padding
            cropped = crop(roll(rolled, shift), h, w)
            # The compiler always gets a copy. Otherwise, what it compiles depends on whether there is padding.
            return cropped.clone(memory_format=torch.contiguous_format) if torch.compiler.is_compiling() else cropped

        if self.paths == "attention":
            out = back(self.proj(self._attention(projections, shift)))
        elif self.conv_before_shift or not any(self.shift if opened else shift):
            convolution = self._convolution(back(projections))
            attention = back(self.proj(self._attention(projections, shift))) if self.paths == "both" else None
            out = self._sum(attention, convolution)
        else:
            attention = self.proj(self._attention(projections, shift)) if self.paths == "both" else None
            if opened:  # a single window is not rolled, and its convolution is not padded
                bottom, right = ((1 - at_most(rows * cols - 1, 1)) * by for by in (x.shape[1] - h, x.shape[2] - w))
                convolution = self._convolution(crop(projections, x.shape[1] - bottom, x.shape[2] - right))
                convolution = F.pad(convolution, (0, 0, 0, right, 0, bottom))  # (B, H′, W′, dim)
            else:
                convolution = self._convolution(projections)
            out = back(self._sum(attention, convolution))
        return self.proj_drop(out)  # type: ignore[no-any-return]

    def effective_shift(self, rows: int, cols: int) -> tuple[int, int]:
        """Return the shift of a feature map of rows × cols windows."""
        return self.shift[0] if rows > 1 else 0, self.shift[1] if cols > 1 else 0

    def stage_macs(self, x: Tensor) -> StageCounts:
        """Return the multiply-accumulates of both stages for an input (B, H, W, dim)."""
        (b, h, w), (wh, ww) = x.shape[:3], self.window
        shift = self.effective_shift(-(-h // wh), -(-w // ww))
        rows, columns = -(-h // wh) * wh, -(-w // ww) * ww  # of the padded feature map
        second = 0
        if self.paths != "convolution":
            second += rows * columns * 2 * wh * ww * self.dim
        if self.paths != "attention":  # on the padded feature map, if it is rolled
            is_rolled = any(shift) and not self.conv_before_shift
            second += self.shift_conv.macs(rows, columns) if is_rolled else self.shift_conv.macs(h, w)
        return StageCounts(b * rows * columns * 3 * self.dim**2, b * second)

    def _runs_native(self, x: Tensor) -> bool:
        """Return whether the native library runs the layer, which reads the parameters of the convolution directly."""
        if self.paths != "attention" and not can_skip_call(self.shift_conv, ShiftConv):
            return False
        return runs_native(x, *self.parameters())

    def _forward_native(self, x: Tensor, rows: int, cols: int) -> Tensor:
        """Run the layer up to the dropout in the native library, for rows × cols windows: (B, H, W, dim) → the same."""
        (b, h, w), (wh, ww) = x.shape[:3], self.window
        shift = self.effective_shift(rows, cols)
        if torch.compiler.is_compiling() or (h, w) != (rows * wh, cols * ww):  # one graph, with or without padding
            x = F.pad(x, (0, 0, 0, cols * ww - w, 0, rows * wh - h))  # (B, H′, W′, dim)
        bias = mask = fc = kernels = None
        offset: Tensor | None = None
        adds_in_place = self.paths == "both" and can_skip_call(self.proj, nn.Linear) and self.proj.bias is not None
        if self.paths != "convolution":
            bias, mask = self.position_bias()[0], self.shift_mask if any(shift) else None
        if adds_in_place:  # the projection is added to the convolution, which already contains its bias
            offset = self.proj.bias if self.alpha is None else self.proj.bias * self.alpha
        if self.paths != "attention":
            fc, kernels = self.shift_conv.mixing_and_kernels(self.beta if self.paths == "both" else None)
        geometry = WindowGeometry(self.heads, self.window, shift, (h, w), not self.conv_before_shift and any(shift))
        tensors = WindowTensors(bias, mask, fc, kernels, offset)
        attention, convolution = window_paths(self.qkv(x), tensors, geometry)  # (B·H·W, dim), or empty
        if adds_in_place:
            weight = self.proj.weight
            if self.alpha is not None:  # multiply the smaller factor; a compiler would make a graph for each case
                if not torch.compiler.is_compiling() and len(attention) < self.dim:
                    attention = attention * self.alpha
                else:
                    weight = weight * self.alpha
            out = convolution.addmm_(attention, weight.mT)
        elif self.paths == "both":
            out = self._sum(self.proj(attention), convolution)
        else:
            out = convolution if self.paths == "convolution" else self.proj(attention)
        return out.view(b, h, w, self.dim)

    def _convolution(self, projections: Tensor) -> Tensor:
        """Run the convolution path, scaled by beta: (B, H, W, d, 3·heads) → (B, H, W, dim)."""
        return self.shift_conv(projections, self.beta if self.paths == "both" else None)  # type: ignore[no-any-return]

    def position_bias(self) -> Tensor:
        """Return the position bias of a window, (1, heads, L, L)."""
        length = self.window[0] * self.window[1]
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]  # (L·L, heads)
        return bias.unflatten(0, (length, length)).permute(2, 0, 1).unsqueeze(0)  # type: ignore[no-any-return]

    def _sum(self, attention: Tensor | None, convolution: Tensor) -> Tensor:
        if attention is None:
            return convolution
        if self.alpha is None:
            return convolution + attention
        return torch.addcmul(convolution, attention, self.alpha.to(attention.dtype))

    def _attention(self, projections: Tensor, shift: tuple[int, int]) -> Tensor:
        """Run the attention path up to `proj`: (B, H, W, d, 3·heads) → (B, H, W, heads·d)."""
        b, h, w = projections.shape[:3]
        wh, ww = self.window
        if is_dynamic(h, w):
            windows = window_partition(projections, self.window)  # (B·n, L, d, 3·heads)
            windows = unflatten(windows, 3, (3, self.heads)).permute(3, 0, 4, 1, 2)  # (3, B·n, heads, L, d)
        else:
            windows = projections.unflatten(4, (3, self.heads)).unflatten(2, (-1, ww)).unflatten(1, (-1, wh))
            windows = windows.permute(6, 0, 1, 3, 7, 2, 4, 5)  # (3, B, H/wh, W/ww, heads, wh, ww, d)
            # Copy explicitly, because whether `flatten` copies depends on the number of windows.
            windows = windows.clone(memory_format=torch.contiguous_format)
            windows = windows.view(3, -1, self.heads, wh * ww, self.dim // self.heads)  # (3, B·n, heads, L, d)
        out = self._attend(windows, (h, w), shift)  # (B·n, heads, L, d)
        return window_reverse(out.transpose(1, 2).flatten(2), self.window, (b, h, w))  # (B, H, W, heads·d)

    def _attend(self, windows: Tensor, size: tuple[int, int], shift: tuple[int, int]) -> Tensor:
        """Attend within the n windows of each image: q, k, v (3, B·n, heads, L, d) → (B·n, heads, L, d)."""
        q, k, v = windows.unbind(0)  # 3 × (B·n, heads, L, d)
        bias = self.position_bias().to(q.dtype)
        opened = is_dynamic(*shift)
        if any(self.shift if opened else shift):
            assert self.shift_mask is not None
            rows, cols = (n // side for n, side in zip(size, self.window, strict=True))
            # An export whose example has a single window would make n constant, and B·n only if B is 1 as well.
            images = q.shape[0] // (rows * cols) if opened else 1
            bias = bias + window_masks(self.shift_mask, rows, cols, images).to(q.dtype)  # (n or B·n, heads, L, L)
        return window_attention(q, k, v, bias)
