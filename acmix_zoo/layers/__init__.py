"""The layers, which are modules with parameters: those of ACmix, and those of networks that it is compared with.

- `ACmix2d`: the drop-in replacement for a convolution, used in ACmix-ResNet
- `WindowACmix`, `ReducedACmix`: the layers of ACmix-Swin and ACmix-PVT
- `PairwiseSAM`, `PatchwiseSAM`: the layers of SAN, plain or with ACmix
- `RelativeAttention`, `AugmentedConv2d`, `ContextAggregation`: the layers of BoTNet, AA-ResNet and Container, networks
  that combine convolution and attention in other ways
- `TwoStageLayer`: the base class of layers that state their cost. To add a layer, write one file with a subclass and
  export it here.
"""

from acmix_zoo.layers import thop_rules
from acmix_zoo.layers.acmix2d import ACmix2d
from acmix_zoo.layers.augmented_conv import AugmentedConv2d
from acmix_zoo.layers.context_aggregation import ContextAggregation
from acmix_zoo.layers.cost import TwoStageLayer
from acmix_zoo.layers.reduced_acmix import ReducedACmix
from acmix_zoo.layers.relative_attention import RelativeAttention
from acmix_zoo.layers.san_attention import PairwiseSAM, PatchwiseSAM
from acmix_zoo.layers.window_acmix import WindowACmix

__all__ = [
    "ACmix2d",
    "AugmentedConv2d",
    "ContextAggregation",
    "PairwiseSAM",
    "PatchwiseSAM",
    "ReducedACmix",
    "RelativeAttention",
    "TwoStageLayer",
    "WindowACmix",
]

thop_rules.register()
