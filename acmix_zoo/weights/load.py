"""Load weights from any source into an existing module: all of them, or none with an explanation in three lines.

- `load_weights(model, "weights/")`: a weight folder, or a run folder
- `load_weights(model, "model.safetensors")`: a safetensors file
- `load_weights(model, "last.ckpt")`: a checkpoint of Lightning, timm, torchvision, plain torch, or the authors
- `load_weights(layer, state_dict)`: tensors by name, for a whole network or a single layer
"""

import re
from collections.abc import Mapping, Sequence

from timm.models._features import FeatureDictNet, FeatureGetterNet, FeatureHookNet
from torch import nn

from acmix_zoo.weights.match import copy_weights
from acmix_zoo.weights.read import Source, State
from acmix_zoo.weights.translate import translated, unwrapped


def load_weights(module: nn.Module, source: Source, *, strict: bool = True) -> nn.Module:
    """Load weights into `module`, in place, and return it.

    Args:
        module: a whole network or any part of one, such as a single `ACmix2d`. The weights are cast to its dtypes. For
            a backbone that timm has built with `features_only`, weights of the classifier and of stages that it lacks
            are ignored.
        source: a weight folder, a run folder, a safetensors file, a torch checkpoint of Lightning, timm, torchvision or
            the authors (read with `weights_only`), a repository of the Hub, or a state dict. The prefixes of wrappers
            and the authors' names are translated.
        strict: require that every key and shape matches. Otherwise, those that match are loaded, with a warning.

    Raises:
        ValueError: keys or shapes differ, in which case nothing was loaded, or nothing matches at all, or the file is
            unreadable. FileNotFoundError: the source does not exist.
    """
    target = unwrapped(module)
    backbone = target if isinstance(target, FeatureDictNet | FeatureGetterNet | FeatureHookNet) else None
    if isinstance(target, FeatureGetterNet):
        target = target.model
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    state = translated(source, target)
    if backbone is not None:
        state = _without_end(state, target.state_dict(), backbone.feature_info.module_name())
    copy_weights(target, state, where, strict)
    return module


def _without_end(state: State, own: State, stages: Sequence[str]) -> State:
    """Leave out what a backbone lacks: the classifier, the norm before it, and perhaps the last stages.

    Other keys that it does not have, such as those of further blocks in a stage, are kept, because they show that the
    weights belong to another network.

    Args:
        state: the stored weights.
        own: the state dict of the backbone.
        stages: the names of the modules whose outputs it returns, such as "layers.0".
    """
    modules = {key[: match.start()] for key in own for match in re.finditer(r"\.", key)}
    parents = {"", *(name.rpartition(".")[0] for name in stages)}

    def is_end(key: str) -> bool:
        prefixes = [key[: match.start()] for match in re.finditer(r"\.", key)]
        missing = next((prefix for prefix in prefixes if prefix not in modules), None)
        return missing is not None and missing.rpartition(".")[0] in parents

    return {key: value for key, value in state.items() if not is_end(key)}
