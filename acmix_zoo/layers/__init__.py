"""The ACmix layers, which are modules with parameters.

- `ACmix2d`: the drop-in replacement for a convolution, used in ACmix-ResNet
- `WindowACmix`, `ReducedACmix`: the layers of ACmix-Swin and ACmix-PVT
- `PairwiseSAM`, `PatchwiseSAM`: the layers of SAN, plain or with ACmix
- `TwoStageLayer`: their base class. To add a layer, write one file with a subclass and export it here.
"""

from acmix_zoo.layers import thop_rules
from acmix_zoo.layers.acmix2d import ACmix2d
from acmix_zoo.layers.cost import TwoStageLayer
from acmix_zoo.layers.reduced_acmix import ReducedACmix
from acmix_zoo.layers.san_attention import PairwiseSAM, PatchwiseSAM
from acmix_zoo.layers.window_acmix import WindowACmix

__all__ = ["ACmix2d", "PairwiseSAM", "PatchwiseSAM", "ReducedACmix", "TwoStageLayer", "WindowACmix"]

thop_rules.register()
