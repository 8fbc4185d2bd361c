"""Weights: what exists, reading every kind of checkpoint, and the weight folder in which weights live.

A weight folder is the same on disk, in a run's output and on the Hub: config.json, model.safetensors, README.md, test/.
"""

from acmix_zoo.weights import official
from acmix_zoo.weights.build import read_config
from acmix_zoo.weights.create import create_model, list_models
from acmix_zoo.weights.folder import write_folder
from acmix_zoo.weights.from_plain.attention_networks import from_pvt, from_san, from_swin
from acmix_zoo.weights.from_plain.resnet import from_resnet
from acmix_zoo.weights.hub import from_pretrained, pull, push
from acmix_zoo.weights.load import load_weights
from acmix_zoo.weights.official import register_official_weights
from acmix_zoo.weights.shipped import register_shipped_weights
from acmix_zoo.weights.verify import check_folder

__all__ = [
    "check_folder",
    "create_model",
    "from_pretrained",
    "from_pvt",
    "from_resnet",
    "from_san",
    "from_swin",
    "list_models",
    "load_weights",
    "official",
    "pull",
    "push",
    "read_config",
    "write_folder",
]

register_official_weights()
register_shipped_weights()
