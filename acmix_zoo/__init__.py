"""ACmix for PyTorch: layers, networks, weights and training recipes.

Importing this package registers the networks with timm. It imports torch and timm, but nothing that only training
needs. The public names are:

- `ACmix2d`: the layer, a drop-in replacement for a 3×3 convolution
- `swap_conv3x3`: replace the convolutions of any network by this layer
- `list_models`, `create_model`: find and build networks, with or without weights
- `from_pretrained`: the network of a weight folder, on this machine or on the Hugging Face Hub
- `load_weights`: read weights of almost any file or state dict into a network
- `from_resnet`, `from_swin`, `from_pvt`, `from_san`: ACmix networks that start from the weights of a plain network
- `models`: the network classes
"""

from acmix_zoo import _startup, models  # noqa: F401  # _startup has to be the first
from acmix_zoo.layers import ACmix2d
from acmix_zoo.layers.swap import swap_conv3x3
from acmix_zoo.version import __version__ as __version__
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
