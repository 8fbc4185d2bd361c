"""The networks: `ACmixResNet`, `ACmixSwin`, `SAN` and `PVT`, and those that they are compared with.

`PlainResNet`, `SEResNet`, `CBAMResNet`, `SeriesResNet`, `BoTResNet`, `AAResNet` and `ContainerResNet` share the trunk
of `ACmixResNet`. `Container` is Container-Light. Importing this package registers all variants with timm.

Build them by name with `acmix_zoo.create_model` or `timm.create_model`. To add a network, write one file and import it
here.
"""

from acmix_zoo.models.acmix_pvt import PVT
from acmix_zoo.models.acmix_resnet import ACmixResNet
from acmix_zoo.models.acmix_san import SAN
from acmix_zoo.models.acmix_swin import ACmixSwin
from acmix_zoo.models.attention_resnet import AAResNet, BoTResNet
from acmix_zoo.models.container import Container, ContainerResNet
from acmix_zoo.models.plain_resnet import CBAMResNet, PlainResNet, SEResNet, SeriesResNet

__all__ = [
    "PVT",
    "SAN",
    "AAResNet",
    "ACmixResNet",
    "ACmixSwin",
    "BoTResNet",
    "CBAMResNet",
    "Container",
    "ContainerResNet",
    "PlainResNet",
    "SEResNet",
    "SeriesResNet",
]
