"""The networks. Importing this registers them with timm."""

from acmix_zoo.models.acmix_pvt import PVT
from acmix_zoo.models.acmix_resnet import ACmixResNet
from acmix_zoo.models.acmix_san import SAN
from acmix_zoo.models.acmix_swin import ACmixSwin

__all__ = ["PVT", "SAN", "ACmixResNet", "ACmixSwin"]
