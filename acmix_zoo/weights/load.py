"""Load weights from any source into an existing module: all of them, or none with an explanation in three lines.

- `load_weights(model, "weights/")`: a weight folder, or a run folder
- `load_weights(model, "model.safetensors")`: a safetensors file
- `load_weights(model, "last.ckpt")`: a checkpoint of Lightning, timm, torchvision, plain torch, or the authors
- `load_weights(layer, state_dict)`: tensors by name, for a whole network or a single layer
"""

from collections.abc import Mapping

from timm.models._features import FeatureDictNet, FeatureGetterNet
from torch import nn

from acmix_zoo.weights.match import copy_weights
from acmix_zoo.weights.read import Source
from acmix_zoo.weights.translate import translated, unwrapped


def load_weights(module: nn.Module, source: Source, *, strict: bool = True) -> nn.Module:
    """Load weights into `module`, in place, and return it.

    Args:
        module: a whole network or any part of one, such as a single `ACmix2d`. The weights are cast to its dtypes. For
            a backbone that timm has built with `features_only`, weights of the classifier are ignored.
        source: a weight folder, a run folder, a safetensors file, a torch checkpoint of Lightning, timm, torchvision or
            the authors (read with `weights_only`), a repository of the Hub, or a state dict. The prefixes of wrappers
            and the authors' names are translated.
        strict: require that every key and shape matches. Otherwise, those that match are loaded, with a warning.

    Raises:
        ValueError: keys or shapes differ, in which case nothing was loaded, or nothing matches at all, or the file is
            unreadable. FileNotFoundError: the source does not exist.
    """
    target = unwrapped(module)
    is_backbone = isinstance(target, FeatureDictNet | FeatureGetterNet)
    if isinstance(target, FeatureGetterNet):
        target = target.model
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    state = translated(source, target)
    if is_backbone:  # it lacks the classifier, and perhaps the last stages
        own = target.state_dict().keys()
        state = {key: value for key, value in state.items() if key in own}
    copy_weights(target, state, where, strict)
    return module
