"""SAN's self-attention module in its two forms: weights made of differences of two positions, or of a whole patch.

Source: "Exploring Self-attention for Image Recognition", CVPR 2020, and its released code, whose names these modules
have. There the sums run in CUDA kernels; here they are plain operators, on any device. Both may run as ACmix.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix_zoo.layers.argument_checks import Paths, check_dtype, check_paths
from acmix_zoo.layers.fx_leaf import leaf
from acmix_zoo.layers.submodule_use import may_bypass
from acmix_zoo.ops.aggregation import aggregate
from acmix_zoo.ops.position_encoding import position_encoding
from acmix_zoo.ops.reflect import reflect_pad
from acmix_zoo.ops.tracing import unflatten


class _SAM(nn.Module):
    """What both forms have: three projections of a map, the number of channels that share a weight, and ACmix.

    As ACmix, the layer gives `alpha · attention + beta · convolution` on the same projections q (P/16 channels), k
    (P/16) and v (P/4). A **reconstruction**: the authors published what ACmix-SAN costs, not what it is; see
    docs/reconstructions.md. The convolution mixes the projections into one map, `v + lift([q, k])`, and sums its 3×3
    neighbours as the attention sums those of v, with weights that are parameters and the same at every position.

    Args:
        channels: P, in. The projections have P/16, P/16 and P/4 channels; out are P/4.
        kernel: odd side of the attention's neighbourhood.
        share: channels of the value that share a weight.
        paths: "attention" is SAN's own module; "both", or "convolution" alone.
        kernel_conv: odd side of the convolution.

    Shape: (B, P, H, W) → (B, P/4, H, W).
    """

    def __init__(
        self, channels: int, kernel: int, share: int = 8, *, paths: Paths = "attention", kernel_conv: int = 3
    ) -> None:
        super().__init__()
        if channels % 16 or channels // 4 % share or kernel % 2 == 0 or kernel_conv % 2 == 0:
            raise ValueError(
                f"SAN: channels={channels} must be a multiple of 16 and of 4·share={4 * share}, kernel={kernel} and "
                f"kernel_conv={kernel_conv} odd"
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
            nn.init.uniform_(self.static_weight, -1 / kernel_conv, 1 / kernel_conv)  # nn.Conv2d's start
        if paths == "both":
            self.alpha = nn.Parameter(torch.full((1,), 0.5))
            self.beta = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        check_dtype("SAN", x, self.conv1)
        q, k, v = self.conv1(x), self.conv2(x), self.conv3(x)
        if self.paths == "convolution":
            return self._convolution(q, k, v, self.static_weight)
        attention = aggregate(v, self._weights(q, k), self.kernel)
        if self.paths == "attention":
            return attention
        convolution = self._convolution(q, k, v, self.static_weight * self.beta)
        return torch.addcmul(convolution, attention, self.alpha.to(attention.dtype))

    def weight_macs(self) -> int:
        """Multiply-accumulates that the weights of one position cost."""
        raise NotImplementedError

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        """2 × (B, P/16, H, W) → (B, k²·wc, H, W), channels ordered (k², wc)."""
        raise NotImplementedError

    def _convolution(self, q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> Tensor:
        """(B, P/4, H, W); zeros around the map."""
        mixed = v + self.lift(torch.cat([q, k], 1))  # (B, P/4, H, W)
        kernels = weight.repeat(self.out // self.shared, 1, 1, 1)  # channel c has kernel c mod wc
        return F.conv2d(mixed, kernels.to(mixed.dtype), None, 1, kernels.shape[-1] // 2, groups=self.out)


@leaf
class PairwiseSAM(_SAM):
    """Weights from the differences to each neighbour, in features and in position; softmax over the neighbours."""

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

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        b, _, h, w = q.shape
        if may_bypass(self.conv_p, nn.Conv2d):
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
        """(B, C, H, W) twice → (B, C, k², H·W): here, minus there at every offset."""
        columns = F.unfold(reflect_pad(there, self.kernel // 2), self.kernel)  # (B, C·k², H·W)
        difference: Tensor = here.flatten(2).unsqueeze(2) - unflatten(columns, 1, (here.shape[1], -1))
        return difference


@leaf
class PatchwiseSAM(_SAM):
    """Weights from all features of the neighbourhood together; no softmax, no positions."""

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

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        columns = F.unfold(reflect_pad(k, self.kernel // 2), self.kernel)  # (B, rel·k², H·W)
        features = torch.cat([q, unflatten(columns, 2, q.shape[2:])], 1)  # (B, P/16·(k² + 1), H, W)
        last: Any = self.conv_w[-1]
        if not may_bypass(self.conv_w, nn.Sequential) or not may_bypass(last, nn.Conv2d):  # must be called
            weight = unflatten(self.conv_w(features), 1, (self.shared, -1))  # (B, wc, k², H, W)
            return weight.transpose(1, 2).flatten(1, 2)
        weight = self.conv_w[:-1](features)  # (B, wc, H, W)
        # Its rows are ordered (wc, k²); the sums take an offset after the other, so the offsets come first there.
        rows, bias = (self._offsets_first(t) for t in (last.weight, last.bias))
        return F.conv2d(weight, rows, bias)

    def _offsets_first(self, rows: Tensor) -> Tensor:
        """(wc·k², …) → (k²·wc, …)."""
        return rows.unflatten(0, (self.shared, -1)).transpose(0, 1).flatten(0, 1)  # type: ignore[no-any-return]
