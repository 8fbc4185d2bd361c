"""The networks: `ACmixResNet`, `ACmixSwin`, `SAN` and `PVT`. Importing this package registers their variants with timm.

Build them by name with `acmix_zoo.create_model` or `timm.create_model`. Each file is one paper. To add a network, write
one file and import it here.
"""

from acmix_zoo.models.acmix_pvt import PVT
from acmix_zoo.models.acmix_resnet import ACmixResNet
from acmix_zoo.models.acmix_san import SAN
from acmix_zoo.models.acmix_swin import ACmixSwin

__all__ = ["PVT", "SAN", "ACmixResNet", "ACmixSwin"]
