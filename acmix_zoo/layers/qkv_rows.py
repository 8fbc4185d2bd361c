"""The order of the rows of a qkv projection, which differs between plain networks and ACmix layers."""

from __future__ import annotations

from torch import Tensor


def rows_by_channel(rows: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a plain qkv projection, (q/k/v, heads, d), to those of ACmix layers, (d, q/k/v, heads).

    Shape: (3·heads·d, …) → (3·heads·d, C), or (3·heads·d,) for a bias. If the number of rows does not fit, they are
    returned unchanged, so that loading them reports the shape.
    """
    rows = rows.flatten(1) if rows.dim() > 1 else rows
    if rows.shape[0] % (3 * heads):
        return rows
    return rows.unflatten(0, (3, heads, -1)).movedim(2, 0).flatten(0, 2).contiguous()  # type: ignore[no-any-return]
