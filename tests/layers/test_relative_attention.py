"""RelativeAttention compared with timm's attention of BoTNet, with loops, and on inputs larger than its tables."""

from __future__ import annotations

import pytest
import torch
from timm.layers.bottleneck_attn import BottleneckAttn

from acmix_zoo.layers import RelativeAttention


@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
def test_same_as_timm_at_one_size(size: tuple[int, int]) -> None:
    """timm's tables fit the input exactly. Ours have entries to spare."""
    reach = 6
    theirs = BottleneckAttn(8, 12, feat_size=size, num_heads=2, dim_head=5, scale_pos_embed=True).double()
    ours = RelativeAttention(8, 10, 12, heads=2, reach=reach).double()
    with torch.no_grad():
        ours.qkv.weight.copy_(theirs.qkv.weight.flatten(1))
        for table, other, side in ((ours.rows, theirs.pos_embed.height_rel, size[0]),
                                   (ours.columns, theirs.pos_embed.width_rel, size[1])):  # fmt: skip
            table[reach + 1 - side : reach + side].copy_(other)
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)


def by_loops(layer: RelativeAttention, x: torch.Tensor) -> torch.Tensor:
    """Compute the layer query by query, for one image and one head."""
    h, w = x.shape[2:]
    d = layer.key_channels
    projections = layer.qkv(x[0].permute(1, 2, 0))  # (H, W, 2·d + out)
    q, k, v = projections.split((d, d, layer.out_channels), 2)
    out = torch.zeros(layer.out_channels, h, w, dtype=x.dtype)
    places = [(i, j) for i in range(h) for j in range(w)]

    def entry(table: torch.Tensor, distance: int) -> torch.Tensor:
        return table[min(max(distance, -layer.reach), layer.reach) + layer.reach]

    for y, z in places:
        keys = [k[i, j] + entry(layer.rows, i - y) + entry(layer.columns, j - z) for i, j in places]
        weights = torch.stack([q[y, z] @ key / d**0.5 for key in keys]).softmax(0)
        out[:, y, z] = sum(weight * v[i, j] for weight, (i, j) in zip(weights, places, strict=True))
    return out.unsqueeze(0)


@pytest.mark.parametrize("reach", [0, 1, 4])
def test_distances_beyond_the_tables_share_the_last_entry(reach: int) -> None:
    layer = RelativeAttention(6, 4, 5, heads=1, reach=reach).double()
    x = torch.randn(1, 6, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x), by_loops(layer, x), rtol=0, atol=1e-12)


def test_position_matters() -> None:
    """Without the tables, attention would give the same for every order of the positions."""
    layer = RelativeAttention(6, 4, 4, heads=2, reach=3)
    x = torch.randn(1, 6, 4, 4)
    turned = layer(x.transpose(2, 3)).transpose(2, 3)
    assert (layer(x) - turned).abs().max() > 1e-3
    torch.nn.init.zeros_(layer.rows)
    torch.nn.init.zeros_(layer.columns)
    torch.testing.assert_close(layer(x), layer(x.transpose(2, 3)).transpose(2, 3))


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"RelativeAttention: heads=4 does not divide key_channels=10"):
        RelativeAttention(8, 10, 8, heads=4, reach=3)
    with pytest.raises(ValueError, match=r"reach=-1 is negative\. Expected a distance in pixels"):
        RelativeAttention(8, 8, 8, heads=4, reach=-1)
