"""PairwiseSAM and PatchwiseSAM: the two self-attention modules of SAN, plain or as ACmix layers.

Their attention weights are vectors, computed from pairs of positions or from whole neighbourhoods.

Source: "Exploring Self-attention for Image Recognition", CVPR 2020, and its released code, whose parameter names these
modules have. The released code needs CUDA kernels. This one consists of PyTorch operators and runs on any device.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix_zoo.layers.argument_checks import Paths, check_dtype, check_paths
from acmix_zoo.layers.cost import StageCounts, TwoStageLayer
from acmix_zoo.layers.fx_leaf import leaf
from acmix_zoo.layers.submodule_use import can_skip_call
from acmix_zoo.ops.aggregation import aggregate
from acmix_zoo.ops.position_encoding import position_encoding
from acmix_zoo.ops.reflect import reflect_pad
from acmix_zoo.ops.tracing import unflatten


class _SAM(TwoStageLayer):
    """The base class of both modules: projections, weighted sums and the convolution path.

    As an ACmix layer, the module computes `alpha · attention + beta · convolution` on the same projections q (P/16
    channels), k (P/16) and v (P/4). This is a **reconstruction**: the authors published the cost of ACmix-SAN, but not
    its design. See docs/reconstructions.md. The convolution mixes the projections into one feature map, `v + lift([q,
    k])`. It then sums the 3×3 neighbours of each position as the attention sums those of v, but with parameters as
    weights.

    Args:
        channels: P, the number of input channels; a multiple of 16.
        kernel: side length of the neighbourhood that the attention sums over; odd.
        share: number of value channels that share an attention weight.
        paths: "attention" is the module of SAN, "both" the ACmix layer, and "convolution" the convolution path alone.
        kernel_conv: side length of the convolution; odd.

    Shape: (B, P, H, W) → (B, P/4, H, W).
    """

    STAGE_ONE = ("conv1.", "conv2.", "conv3.")

    def __init__(
        self, channels: int, kernel: int, share: int = 8, *, paths: Paths = "attention", kernel_conv: int = 3
    ) -> None:
        super().__init__()
        if channels % 16 or channels // 4 % share or kernel % 2 == 0 or kernel_conv % 2 == 0:
            raise ValueError(
                f"SAN: channels={channels}, kernel={kernel} and kernel_conv={kernel_conv} do not work. Expected "
                f"channels to be a multiple of 16 and of 4·share={4 * share}, and odd kernels"
            )
        check_paths("SAN", paths)
        self.kernel, self.relation, self.out, self.paths = kernel, channels // 16, channels // 4, paths
        self.shared = self.out // share
        self.conv1 = nn.Conv2d(channels, self.relation, 1)
        self.conv2 = nn.Conv2d(channels, self.relation, 1)
        self.conv3 = nn.Conv2d(channels, self.out, 1)
        if paths != "attention":
            self.lift = nn.Conv2d(2 * self.relation, self.out, 1)
            self.static_weight = nn.Parameter(torch.empty(self.shared, 1, kernel_conv, kernel_conv))
            nn.init.uniform_(self.static_weight, -1 / kernel_conv, 1 / kernel_conv)  # as nn.Conv2d does
        if paths == "both":
            self.alpha = nn.Parameter(torch.full((1,), 0.5))
            self.beta = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        check_dtype("SAN", x, self.conv1)
        q, k, v = self.conv1(x), self.conv2(x), self.conv3(x)
        if self.paths == "convolution":
            return self._convolution(q, k, v, self.static_weight)
        attention = aggregate(v, self.attention_weights(q, k), self.kernel)
        if self.paths == "attention":
            return attention
        convolution = self._convolution(q, k, v, self.static_weight * self.beta)
        return torch.addcmul(convolution, attention, self.alpha.to(attention.dtype))

    def weight_macs(self) -> int:
        """Return the multiply-accumulates for the attention weights of one position."""
        raise NotImplementedError

    def stage_macs(self, x: Tensor) -> StageCounts:
        """Return the multiply-accumulates of both stages for an input (B, P, H, W)."""
        b, channels, h, w = x.shape
        first, second = channels * (2 * self.relation + self.out), 0  # multiply-accumulates for one position
        if self.paths != "convolution":
            second += self.kernel**2 * self.out + self.weight_macs()
        if self.paths != "attention":
            second += self.out * (2 * self.relation + self.static_weight[0].numel())
        return StageCounts(b * h * w * first, b * h * w * second)

    def definition_macs(self, x: Tensor) -> int:
        """Return the multiply-accumulates of the whole module for an input (B, P, H, W)."""
        return sum(self.stage_macs(x))

    def attention_weights(self, q: Tensor, k: Tensor) -> Tensor:
        """Compute attention weights: q and k (B, P/16, H, W) → (B, k²·wc, H, W), with channels ordered (k², wc)."""
        raise NotImplementedError

    def _convolution(self, q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> Tensor:
        """Run the convolution path with zero padding: → (B, P/4, H, W)."""
        mixed = v + self.lift(torch.cat([q, k], 1))  # (B, P/4, H, W)
        kernels = weight.repeat(self.out // self.shared, 1, 1, 1)  # channel c has kernel c mod wc
        return F.conv2d(mixed, kernels.to(mixed.dtype), None, 1, kernels.shape[-1] // 2, groups=self.out)


@leaf
class PairwiseSAM(_SAM):
    """Attention weights from the difference to each neighbour in features and position, with a softmax."""

    def __init__(self, channels: int, kernel: int, share: int = 8, **acmix: Any) -> None:
        super().__init__(channels, kernel, share, **acmix)
        if self.paths == "convolution":
            return  # without attention, the layers below would have parameters without a gradient
        features = self.relation + 2
        self.conv_w = nn.Sequential(
            nn.BatchNorm2d(features),
            nn.ReLU(inplace=True),
            nn.Conv2d(features, self.relation, 1, bias=False),
            nn.BatchNorm2d(self.relation),
            nn.ReLU(inplace=True),
            nn.Conv2d(self.relation, self.shared, 1),
        )
        self.conv_p = nn.Conv2d(2, 2, 1)

    def weight_macs(self) -> int:
        return self.kernel**2 * self.relation * (self.relation + 2 + self.shared)

    def attention_weights(self, q: Tensor, k: Tensor) -> Tensor:
        b, _, h, w = q.shape
        if can_skip_call(self.conv_p, nn.Conv2d):
            assert self.conv_p.bias is not None
            place = position_encoding(self.conv_p.weight.flatten(1), h, w) + self.conv_p.bias  # (H, W, 2)
            place = place.permute(2, 0, 1).unsqueeze(0)  # (1, 2, H, W)
        else:
            coordinates = position_encoding(torch.eye(2, device=q.device, dtype=q.dtype), h, w)  # (H, W, 2)
            place = self.conv_p(coordinates.permute(2, 0, 1).unsqueeze(0).to(q.dtype))  # (1, 2, H, W)
        place = self._differences(place, place).expand(b, -1, -1, -1)  # (B, 2, k², H·W)
        features = torch.cat([self._differences(q, k), place.to(q.dtype)], 1)  # (B, P/16 + 2, k², H·W)
        weight = self.conv_w(features).softmax(2)  # (B, wc, k², H·W)
        return weight.transpose(1, 2).reshape(b, self.kernel**2 * self.shared, h, w)  # type: ignore[no-any-return]

    def _differences(self, here: Tensor, there: Tensor) -> Tensor:
        """Return `here` minus the neighbours of `there`: 2 × (B, C, H, W) → (B, C, k², H·W)."""
        columns = F.unfold(reflect_pad(there, self.kernel // 2), self.kernel)  # (B, C·k², H·W)
        difference: Tensor = here.flatten(2).unsqueeze(2) - unflatten(columns, 1, (here.shape[1], -1))
        return difference


@leaf
class PatchwiseSAM(_SAM):
    """Attention weights from all features of the neighbourhood together, without softmax or position encoding."""

    def __init__(self, channels: int, kernel: int, share: int = 8, **acmix: Any) -> None:
        super().__init__(channels, kernel, share, **acmix)
        if self.paths == "convolution":
            return
        features = self.relation * (kernel**2 + 1)
        self.conv_w = nn.Sequential(
            nn.BatchNorm2d(features),
            nn.ReLU(inplace=True),
            nn.Conv2d(features, self.shared, 1, bias=False),
            nn.BatchNorm2d(self.shared),
            nn.ReLU(inplace=True),
            nn.Conv2d(self.shared, kernel**2 * self.shared, 1),
        )

    def weight_macs(self) -> int:
        return self.shared * (self.relation * (self.kernel**2 + 1) + self.kernel**2 * self.shared)

    def attention_weights(self, q: Tensor, k: Tensor) -> Tensor:
        columns = F.unfold(reflect_pad(k, self.kernel // 2), self.kernel)  # (B, rel·k², H·W)
        features = torch.cat([q, unflatten(columns, 2, q.shape[2:])], 1)  # (B, P/16·(k² + 1), H, W)
        last: Any = self.conv_w[-1]
        if not can_skip_call(self.conv_w, nn.Sequential) or not can_skip_call(last, nn.Conv2d):
            weight = unflatten(self.conv_w(features), 1, (self.shared, -1))  # (B, wc, k², H, W)
            return weight.transpose(1, 2).flatten(1, 2)
        weight = self.conv_w[:-1](features)  # (B, wc, H, W)
        # The rows of this convolution are ordered (wc, k²), but the weighted sums need the offsets first.
        rows, bias = (self._reorder_rows(t) for t in (last.weight, last.bias))
        return F.conv2d(weight, rows, bias)

    def _reorder_rows(self, rows: Tensor) -> Tensor:
        """Reorder rows: (wc·k², …) → (k²·wc, …)."""
        return rows.unflatten(0, (self.shared, -1)).transpose(0, 1).flatten(0, 1)  # type: ignore[no-any-return]
