"""The ResNet-form layer computed the way the authors' code computes it: what the fast form is measured against.

Written from a description of that computation, in this project's words: three 1×1 convolutions on (B, C, H, W),
reflected borders, k, the positions and v unfolded into kernel² copies, a mixing 1×1 convolution, a grouped convolution.
For benchmarks only: it works where that code works (float32, maps larger than half a window).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix_zoo.layers import ACmix2d


class ReleasedForm(nn.Module):
    """(B, in, H, W) → (B, out, ceil(H/stride), ceil(W/stride)), with the weights of an `ACmix2d`.

    Args:
        layer: whose function it computes; its parameters are copied.

    Raises:
        ValueError: one path alone, or a dilation: the authors' code has neither.
    """

    def __init__(self, layer: ACmix2d) -> None:
        super().__init__()
        if layer.paths != "both" or layer.dilation != 1:
            raise ValueError(f"ReleasedForm: expected both paths and dilation 1, got {layer}")
        self.heads, self.d, self.out = layer.heads, layer.out_channels // layer.heads, layer.out_channels
        self.kernel, self.stride = layer.kernel_att, layer.stride
        self.q, self.k, self.v = (nn.Conv2d(layer.in_channels, self.out, 1) for _ in "qkv")
        with torch.no_grad():
            for i, conv in enumerate((self.q, self.k, self.v)):
                for mine, theirs in zip(conv.parameters(), layer.qkv.parameters(), strict=True):
                    rows = theirs.unflatten(0, (self.d, 3, self.heads))[:, i]  # (d, heads, …)
                    mine.copy_(rows.transpose(0, 1).reshape(mine.shape))
        self.position_weight = nn.Parameter(layer.position_weight.detach().clone())
        self.fc = nn.Parameter(layer.shift_conv.fc_weight.detach().clone())
        self.shift = nn.Parameter(layer.shift_conv.shift_weight.detach().clone())
        self.alpha = nn.Parameter(layer.alpha.detach().clone())
        self.beta = nn.Parameter(layer.beta.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.q(x), self.k(x), self.v(x)  # 3 × (B, heads·d, H, W)
        convolution = self._convolution(torch.cat((q, k, v), 1), b, h, w)
        return torch.addcmul(self.beta * convolution, self.alpha, self._attention(q, k, v))

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
        """(n, d, H, W) → (n, d, k², Ho, Wo): every window's copy, the border reflected."""
        ho, wo = (-(-side // self.stride) for side in x.shape[2:])
        reach = self.kernel // 2
        padded = F.pad(x, (reach, reach, reach, reach), mode="reflect")
        return F.unfold(padded, self.kernel, stride=self.stride).view(len(x), self.d, self.kernel**2, ho, wo)

    def _convolution(self, qkv: Tensor, b: int, h: int, w: int) -> Tensor:
        maps = qkv.view(b, 3 * self.heads, self.d, h * w)
        mixed = F.conv2d(maps, self.fc[:, :, None, None])  # (B, k², d, H·W)
        mixed = mixed.permute(0, 2, 1, 3).reshape(b, -1, h, w)  # (B, d·k², H, W)
        return F.conv2d(mixed, self.shift, None, self.stride, self.shift.shape[-1] // 2, groups=self.d)
