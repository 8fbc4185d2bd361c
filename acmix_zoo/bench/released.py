"""The ACmix layer of the ResNets, computed as in the authors' released code: the baseline of `ACmix2d`.

It was written from a description of that computation, not copied: three 1×1 convolutions on (B, C, H, W), reflected
borders, k, the positions and v unfolded into kernel² copies, a mixing 1×1 convolution and a grouped convolution. Use it
only for benchmarks. Like the released code, it needs float32 and maps larger than half a window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix_zoo.layers import ACmix2d


class ReleasedACmix2d(nn.Module):
    """A layer that computes the same as an `ACmix2d`, with a copy of its weights.

    Args:
        layer: the layer to copy.

    Shape:
        (B, in, H, W) → (B, out, ceil(H/stride), ceil(W/stride)).

    Raises:
        ValueError: the layer has one path only, or a dilation, or its input is too small. The authors' code supports
            none of these.
    """

    def __init__(self, layer: ACmix2d) -> None:
        super().__init__()
        if layer.paths != "both" or layer.dilation != 1:
            raise ValueError(
                f"ReleasedACmix2d: the authors' code only supports both paths and dilation 1, got {layer}. "
                "Benchmark this layer without @released"
            )
        self.heads, self.d, self.out = layer.heads, layer.out_channels // layer.heads, layer.out_channels
        self.kernel, self.stride = layer.kernel_att, layer.stride
        self.q, self.k, self.v = (nn.Conv2d(layer.in_channels, self.out, 1) for _ in "qkv")
        with torch.no_grad():
            for i, conv in enumerate((self.q, self.k, self.v)):
                for target, source in zip(conv.parameters(), layer.qkv.parameters(), strict=True):
                    rows = source.unflatten(0, (self.d, 3, self.heads))[:, i]  # (d, heads, …)
                    target.copy_(rows.transpose(0, 1).reshape(target.shape))
        self.position_weight = nn.Parameter(layer.position_weight.detach().clone())
        self.fc = nn.Parameter(layer.shift_conv.fc_weight.detach().clone())
        self.shift = nn.Parameter(layer.shift_conv.shift_weight.detach().clone())
        self.alpha = nn.Parameter(layer.alpha.detach().clone())
        self.beta = nn.Parameter(layer.beta.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[2:]) <= self.kernel // 2:
            raise ValueError(
                f"ReleasedACmix2d: the authors' code pads by reflection, so a {x.shape[2]}×{x.shape[3]} feature map is "
                f"too small for its {self.kernel}×{self.kernel} window. Expected sides of at least "
                f"{self.kernel // 2 + 1}. Use larger images, or benchmark without the authors' code"
            )
        q, k, v = self.q(x), self.k(x), self.v(x)  # 3 × (B, heads·d, H, W)
        return torch.addcmul(self.beta * self._convolution(q, k, v), self.alpha, self._attention(q, k, v))

    def _attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        h, w = q.shape[2:]
        x, y = torch.meshgrid(torch.linspace(-1, 1, w), torch.linspace(-1, 1, h), indexing="xy")  # 2 × (H, W)
        pe = F.conv2d(torch.stack((x, y))[None], self.position_weight[:, :, None, None])  # (1, d, H, W)
        q, k, v = (t.reshape(-1, self.d, h, w) for t in (q, k, v))  # 3 × (B·heads, d, H, W)
        s = self.stride
        q_i, pe_i = q[:, :, None, ::s, ::s], pe[:, :, None, ::s, ::s]  # (B·heads, d, 1, Ho, Wo), (1, d, 1, Ho, Wo)
        logits = (q_i * self.d**-0.5 * (self._unfold(k) + pe_i - self._unfold(pe))).sum(1)  # (B·heads, k², Ho, Wo)
        out = (logits.softmax(1).unsqueeze(1) * self._unfold(v)).sum(2)  # (B·heads, d, Ho, Wo)
        result: Tensor = out.reshape(-1, self.out, *out.shape[2:])
        return result

    def _unfold(self, x: Tensor) -> Tensor:
        """Copy the window of every query, with reflected borders: (n, d, H, W) → (n, d, k², Ho, Wo)."""
        ho, wo = (-(-side // self.stride) for side in x.shape[2:])
        pad = self.kernel // 2
        padded = F.pad(x, (pad, pad, pad, pad), mode="reflect")
        return F.unfold(padded, self.kernel, stride=self.stride).view(len(x), self.d, self.kernel**2, ho, wo)

    def _convolution(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, _, h, w = q.shape
        maps = torch.cat((q, k, v), 1).view(b, 3 * self.heads, self.d, h * w)
        mixed = F.conv2d(maps, self.fc[:, :, None, None])  # (B, k², d, H·W)
        mixed = mixed.permute(0, 2, 1, 3).reshape(b, -1, h, w)  # (B, d·k², H, W)
        return F.conv2d(mixed, self.shift, None, self.stride, self.shift.shape[-1] // 2, groups=self.d)
