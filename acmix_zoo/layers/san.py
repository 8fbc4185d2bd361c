"""SAN's self-attention module in its two forms: weights made of differences of two positions, or of a whole patch.

Source: "Exploring Self-attention for Image Recognition", CVPR 2020, and its released code, whose names these modules
have. There the sums run in CUDA kernels; here they are plain operators, on any device.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix_zoo.ops.aggregation import aggregate, reflect_pad
from acmix_zoo.ops.attention_forms import positions


class _SAM(nn.Module):
    """What both forms have: three projections of a map, and the number of channels that share a weight.

    Args:
        channels: P, in. The projections have P/16, P/16 and P/4 channels; out are P/4.
        kernel: odd side of the neighbourhood.
        share: channels of the value that share a weight.

    Shape: (B, P, H, W) → (B, P/4, H, W).
    """

    def __init__(self, channels: int, kernel: int, share: int = 8) -> None:
        super().__init__()
        if channels % 16 or channels // 4 % share or kernel % 2 == 0:
            raise ValueError(
                f"SAN: channels={channels} must be a multiple of 16 and of 4·share={4 * share}, kernel={kernel} odd"
            )
        self.kernel, self.relation, self.out = kernel, channels // 16, channels // 4
        self.shared = self.out // share
        self.conv1 = nn.Conv2d(channels, self.relation, 1)
        self.conv2 = nn.Conv2d(channels, self.relation, 1)
        self.conv3 = nn.Conv2d(channels, self.out, 1)

    def macs(self, x: Tensor) -> int:
        """Multiply-accumulates for the input x: projections, weights, and the sums, which no counter sees."""
        b, channels, h, w = x.shape
        pixel = channels * (2 * self.relation + self.out) + self.kernel**2 * self.out + self._weight_macs()
        return b * h * w * pixel

    def _weight_macs(self) -> int:
        """Of the weights of one position."""
        raise NotImplementedError


class PairwiseSAM(_SAM):
    """Weights from the differences to each neighbour, in features and in position; softmax over the neighbours."""

    def __init__(self, channels: int, kernel: int, share: int = 8) -> None:
        super().__init__(channels, kernel, share)
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

    def _weight_macs(self) -> int:
        return self.kernel**2 * self.relation * (self.relation + 2 + self.shared)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        assert self.conv_p.bias is not None
        place = positions(self.conv_p.weight.flatten(1), h, w) + self.conv_p.bias  # (H, W, 2)
        place = place.permute(2, 0, 1).unsqueeze(0)  # (1, 2, H, W)
        place = self._differences(place, place).expand(b, -1, -1, -1)  # (B, 2, k², H·W)
        features = torch.cat([self._differences(self.conv1(x), self.conv2(x)), place.to(x.dtype)], 1)
        weight = self.conv_w(features).softmax(2)  # (B, wc, k², H·W)
        weight = weight.transpose(1, 2).reshape(b, -1, h, w)  # (B, k²·wc, H, W)
        return aggregate(self.conv3(x), weight, self.kernel)

    def _differences(self, here: Tensor, there: Tensor) -> Tensor:
        """(B, C, H, W) twice → (B, C, k², H·W): here, minus there at every offset."""
        columns = F.unfold(reflect_pad(there, self.kernel // 2), self.kernel)  # (B, C·k², H·W)
        difference: Tensor = here.flatten(2).unsqueeze(2) - columns.unflatten(1, (here.shape[1], -1))
        return difference


class PatchwiseSAM(_SAM):
    """Weights from all features of the neighbourhood together; no softmax, no positions."""

    def __init__(self, channels: int, kernel: int, share: int = 8) -> None:
        super().__init__(channels, kernel, share)
        features = self.relation * (kernel**2 + 1)
        self.conv_w = nn.Sequential(
            nn.BatchNorm2d(features),
            nn.ReLU(inplace=True),
            nn.Conv2d(features, self.shared, 1, bias=False),
            nn.BatchNorm2d(self.shared),
            nn.ReLU(inplace=True),
            nn.Conv2d(self.shared, kernel**2 * self.shared, 1),
        )

    def _weight_macs(self) -> int:
        return self.shared * (self.relation * (self.kernel**2 + 1) + self.kernel**2 * self.shared)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        columns = F.unfold(reflect_pad(self.conv2(x), self.kernel // 2), self.kernel)  # (B, rel·k², H·W)
        weight = self.conv_w[:-1](torch.cat([self.conv1(x), columns.unflatten(2, (h, w))], 1))  # (B, wc, H, W)
        last: Any = self.conv_w[-1]
        # Its rows are ordered (wc, k²); the sums take an offset after the other, so the offsets come first there.
        rows, bias = (self._offsets_first(t) for t in (last.weight, last.bias))
        return aggregate(self.conv3(x), F.conv2d(weight, rows, bias), self.kernel)

    def _offsets_first(self, rows: Tensor) -> Tensor:
        """(wc·k², …) → (k²·wc, …)."""
        return rows.unflatten(0, (self.shared, -1)).transpose(0, 1).flatten(0, 1)  # type: ignore[no-any-return]
