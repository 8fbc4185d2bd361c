"""The interface through which ACmix layers state their cost.

Stage I projects the feature map to q, k and v. Stage II is the attention and the convolution that use them. A layer
states the multiplications of the paper's table 1, not those of a particular backend. The fast backends compute the same
function with different arithmetic: each tile of queries is compared with the keys of a whole neighbourhood, and the two
matrices of the convolution path are multiplied in advance. Counting their products would give numbers that change with
the tile size and match no published table.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from torch import nn


class StageCounts(NamedTuple):
    """A number of parameters, or of multiply-accumulates.

    Attributes:
        first: count for stage I, the projections.
        second: count for stage II, the attention and the convolution.
    """

    first: int
    second: int


class TwoStageLayer(nn.Module):
    """Base class of the layers that project a feature map and then attend or convolve, and that state their own cost.

    A layer whose arithmetic depends on the backend also has `definition_macs(x)`, which FLOP counters use instead of
    counting products.
    """

    STAGE_ONE: ClassVar[tuple[str, ...]]
    """Prefixes of the names of stage I's parameters. All others belong to stage II, except for those of `proj`."""

    stage_macs: Callable[..., StageCounts]
    """Return the multiply-accumulates of both stages for the inputs of `forward`, for all images of the batch.

    The position term (2 multiplications per pixel and head channel, shared by the batch) is left out, as in the paper.
    So is `proj`, the projection after the attention of Swin and PVT, which belongs to neither stage.
    """

    def stage_params(self) -> StageCounts:
        """Return the numbers of parameters of both stages, including biases."""
        counts = {True: 0, False: 0}
        for name, parameter in self.named_parameters():
            if not name.startswith("proj."):
                counts[name.startswith(self.STAGE_ONE)] += parameter.numel()
        return StageCounts(counts[True], counts[False])


def forward_inputs(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what a hook receives as the inputs of a layer in the order of `forward`, however they were passed."""
    return inspect.signature(layer.forward).bind(*args, **kwargs).args
