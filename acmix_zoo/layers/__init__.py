"""Modules that own parameters: the drop-in layer, Swin's form of it, and what they share."""

from acmix_zoo.layers.acmix2d import ACmix2d
from acmix_zoo.layers.window_acmix import WindowACmix

__all__ = ["ACmix2d", "WindowACmix"]
