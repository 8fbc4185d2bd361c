"""Entry points for torch.hub, one per model: torch.hub.load("<owner>/acmix", "acmix_resnet_pico", pretrained=True).

From a clone: torch.hub.load(".", "acmix_resnet_pico", source="local", pretrained=True). torch.hub lists every public
callable of this file, so the names of everything except the models start with an underscore.
"""

import warnings as _warnings
from collections.abc import Callable as _Callable
from importlib.util import find_spec as _find_spec
from inspect import getdoc as _getdoc
from pathlib import Path as _Path

dependencies = ["torch", "torchvision", "timm", "safetensors", "huggingface_hub"]
# torch.hub checks this list only after importing this file, which would fail with a less helpful error.
if _missing := [_name for _name in dependencies if _find_spec(_name) is None]:
    raise ModuleNotFoundError(f"acmix needs {', '.join(_missing)}; install with: pip install {' '.join(_missing)}")

import timm as _timm
from torch import nn as _nn

import acmix_zoo as _acmix_zoo
from acmix_zoo.weights import create_model as _create_model
from acmix_zoo.weights import list_models as _list_models

if _Path(_acmix_zoo.__file__).resolve().parent.parent != _Path(__file__).resolve().parent:
    _warnings.warn(
        f"acmix_zoo was already imported from {_Path(_acmix_zoo.__file__).parent}, so that code is used instead of the "
        f"code next to {__file__}. To use the latter, start a new Python process",
        stacklevel=2,
    )

_ARGUMENTS = """

Args:
    pretrained: True for the default weights ({tags}), or a tag, or the path of a weight folder or checkpoint file.
    kwargs: num_classes, in_chans, drop_path_rate, features_only, ... The classifier is re-initialised if num_classes
        differs from that of the weights.

Returns:
    The model in training mode (call .eval() to classify): images (B, {channels}, {height}, {width}) -> logits
    (B, {classes}).

Example:
    model = torch.hub.load("org/acmix", "{name}", pretrained={pretrained}).eval()
    logits = model(torch.zeros(1, {channels}, {height}, {width}))
"""


def _entry_point(name: str) -> _Callable[..., _nn.Module]:
    """Return a function that builds the model `name`, with a docstring for torch.hub.help."""

    def entry(pretrained: bool | str = False, **kwargs: object) -> _nn.Module:
        return _create_model(name, pretrained, **kwargs)

    cfg = _timm.get_pretrained_cfg(name)
    channels, height, width = cfg.input_size
    tags = ", ".join(weights.partition(".")[2] for weights in _list_models(f"{name}.*", pretrained=True))
    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = (_getdoc(_timm.models.model_entrypoint(name)) or name) + _ARGUMENTS.format(
        tags=f"tags: {tags}" if tags else "there are none yet",
        name=name,
        pretrained=bool(tags),
        channels=channels,
        height=height,
        width=width,
        classes=cfg.num_classes,
    )
    return entry


globals().update({_name: _entry_point(_name) for _name in _list_models()})
