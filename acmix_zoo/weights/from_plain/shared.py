"""What all conversions share: read the weights of a plain network, and build the ACmix network with them."""

from __future__ import annotations

import copy
import re
from typing import Any, cast

import timm
import torch
from torch import nn

from acmix_zoo.layers.complexity import default_input_size
from acmix_zoo.weights.read import Source, State, read_state_dict
from acmix_zoo.weights.translate import unwrapped, without_block_wrappers

# The first layers of the known networks. Their keys reveal the prefix of all keys.
_FIRST_LAYER = re.compile(r"(.*\.)?(patch_embed1?\.proj|features\.0\.0|conv1|conv_in)\.weight$")
# Defaults of the ACmix networks. Arguments that equal them are left out.
_DEFAULTS: dict[str, Any] = {"patch_size": 4, "window_size": 7, "mlp_ratio": 4.0, "in_chans": 3, "num_classes": 1000}
# Arguments with which the new network is meant to give other logits than the source.
_CHANGES = {"num_classes", "in_chans", "img_size", "window_size"}


def plain_state(source: nn.Module | Source) -> State:
    """Return the weights of a network or of stored weights, without the key prefixes that wrappers add."""
    state = dict(unwrapped(source).state_dict()) if isinstance(source, nn.Module) else read_state_dict(source)
    state = without_block_wrappers(state)
    for key in state:
        if match := _FIRST_LAYER.match(key):
            prefix = match[1] or ""
            return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return state


def create_with_state(name: str, state: State, arguments: dict[str, Any], overrides: dict[str, Any]) -> nn.Module:
    """Build a registered network with weights that have its keys, as timm loads pretrained weights.

    A different number of classes or input channels is therefore handled as for every pretrained network.

    Args:
        name: the registered network.
        state: the weights.
        arguments: the arguments of the network that the weights fit.
        overrides: arguments of the caller, which take precedence.
    """
    arguments = {
        key: value for key, value in arguments.items() if value not in (_DEFAULTS.get(key), as_pair(_DEFAULTS.get(key)))
    }
    final = {**arguments, **overrides}
    weights = {
        "state_dict": state, "url": None, "hf_hub_id": None, "file": None, "tag": None,
        "num_classes": arguments.get("num_classes", 1000),
        "input_size": (arguments.get("in_chans", 3), *as_pair(final.get("img_size", 224))),
    }  # fmt: skip
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=weights, **final)
    cast(dict[str, Any], model.pretrained_cfg).pop("state_dict", None)  # otherwise memory would hold the weights twice
    return model


def create_checked(
    function: str, name: str, state: State, arguments: dict[str, Any], overrides: dict[str, Any], source: Any
) -> nn.Module:
    """Build a network as `create_with_state` does. Check that it gives the logits of `source`, if that is a network.

    Raises:
        ValueError: the logits differ, see `check_logits`.
    """
    model = create_with_state(name, dict(state), arguments, overrides)
    if isinstance(source, nn.Module):
        same = without_changes(overrides)
        is_same = same.keys() == overrides.keys()
        check_logits(function, source, model if is_same else create_with_state(name, state, arguments, same))
    return model


@torch.no_grad()
def check_logits(function: str, source: nn.Module, rebuilt: nn.Module) -> None:
    """Check that a network that was built from the weights of another one computes the same logits.

    Pooling, activation, number of heads and the like change the logits, but not the shapes of the weights.

    Args:
        function: the name of the conversion, for the error.
        source: the network that the weights are from, in any mode, dtype and on any device. It is not changed. On the
            meta device it has no weights to compare.
        rebuilt: the other network, with the arguments that follow from the weights.

    Raises:
        ValueError: the logits differ.
    """
    if next(source.parameters()).is_meta:
        return
    size = default_input_size(rebuilt) or (cast(int, rebuilt.in_chans), 96, 96)
    x = torch.randn(1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))  # (1, C, H, W)
    # In float64 and on the CPU, where neither rounding nor TF32 hides or makes a difference.
    twins = (copy.deepcopy(unwrapped(network)).to("cpu", torch.float64).eval() for network in (source, rebuilt))
    logits = [twin(x) for twin in twins]  # (1, classes) each
    difference, largest = float((logits[0] - logits[1]).abs().max()), float(logits[0].abs().max())
    if difference > 1e-6 * largest:
        raise ValueError(
            f"{function}: with the same weights, the new network gives other logits than the source (they differ by up "
            f"to {difference:.2g}, and the largest is {largest:.2g}). The source seems to have settings that its "
            "weights do not show, such as its pooling, activation, strides or kernel sizes. Pass those that the new "
            "network has, such as global_pool='max'. To convert the weights regardless, pass source.state_dict()"
        )


def without_changes(overrides: dict[str, Any]) -> dict[str, Any]:
    """Return the caller's arguments with which the new network still has to give the logits of the source."""
    return {key: value for key, value in overrides.items() if key not in _CHANGES}


def count_keys(state: State, pattern: str) -> int:
    """Return the number of keys that match a regular expression from their start."""
    return sum(bool(re.match(pattern, key)) for key in state)


def first_keys(state: State) -> str:
    """Return the first keys as text, for an error that states what was found."""
    return ", ".join(list(state)[:3])


def outer_arguments(state: State, stem: str, classifier: str) -> dict[str, int]:
    """Return in_chans and num_classes, given the keys of the first convolution's and the classifier's weight."""
    classes = len(state[classifier]) if classifier in state else 0
    return {"in_chans": state[stem].shape[1], "num_classes": classes}


def as_pair(value: Any) -> Any:
    """Return an int as a pair, and anything else unchanged."""
    return (value, value) if isinstance(value, int) else value
