"""Modules that own parameters: the drop-in layer, its forms for Swin, PVT and SAN, and what they share."""

from acmix_zoo.layers import thop_rules
from acmix_zoo.layers.acmix2d import ACmix2d
from acmix_zoo.layers.reduced_acmix import ReducedACmix
from acmix_zoo.layers.san import PairwiseSAM, PatchwiseSAM
from acmix_zoo.layers.window_acmix import WindowACmix

__all__ = ["ACmix2d", "PairwiseSAM", "PatchwiseSAM", "ReducedACmix", "WindowACmix"]

thop_rules.register()
