"""ACmix: one projection, two paths. Layers, networks, weights and training recipes.

Importing this registers the networks with timm; it imports torch and timm, and nothing that only training needs.
"""

from acmix_zoo import _startup, models  # noqa: F401  # _startup has to be the first
from acmix_zoo.layers import ACmix2d
from acmix_zoo.layers.swap import swap_conv3x3
from acmix_zoo.weights import (
    create_model,
    from_pretrained,
    from_pvt,
    from_resnet,
    from_san,
    from_swin,
    list_models,
    load_weights,
)

__all__ = [
    "ACmix2d",
    "create_model",
    "from_pretrained",
    "from_pvt",
    "from_resnet",
    "from_san",
    "from_swin",
    "list_models",
    "load_weights",
    "models",
    "swap_conv3x3",
]
__version__ = "0.1.0"
