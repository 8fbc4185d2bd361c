"""Weights: find, read and verify them, build models with them, and publish them.

Weights are located (`locate.py`), fetched if they are on the Hub (`fetch.py`), read (`description.py`, `read.py`),
checked against their recorded hash, and built (`build_folder.py`, `build_checkpoint.py`). `create_model` in `create.py`
goes this way. A weight folder has the same layout everywhere, on disk and on the Hub: config.json, model.safetensors,
README.md and test/.
"""

from acmix_zoo.weights.create import create_model, from_pretrained
from acmix_zoo.weights.description import read_config
from acmix_zoo.weights.folder_writer import write_folder
from acmix_zoo.weights.from_plain.pvt import from_pvt
from acmix_zoo.weights.from_plain.resnet import from_resnet
from acmix_zoo.weights.from_plain.san import from_san
from acmix_zoo.weights.from_plain.swin import from_swin
from acmix_zoo.weights.hub import pull, push
from acmix_zoo.weights.load import load_weights
from acmix_zoo.weights.locate import locate
from acmix_zoo.weights.names import list_models
from acmix_zoo.weights.official_download import register_official_weights
from acmix_zoo.weights.shipped import register_shipped_weights
from acmix_zoo.weights.verification import check_folder

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
    "locate",
    "pull",
    "push",
    "read_config",
    "write_folder",
]

register_official_weights()
register_shipped_weights()
