"""What all conversions share: read the weights of a plain network, and build the ACmix network with them."""

from __future__ import annotations

import re
from typing import Any, cast

import timm
from torch import nn

from acmix_zoo.weights.read import Source, State, read_state_dict
from acmix_zoo.weights.translate import unwrapped, without_block_wrappers

# The first layers of the known networks. Their keys reveal the prefix of all keys. A block has a conv1, too.
_FIRST_LAYER = re.compile(r"(?!(?:.*\.)?layer\d+\.)(.*\.)?(patch_embed1?\.proj|features\.0\.0|conv1|conv_in)\.weight$")
# What a network's pretrained_cfg states about its images and classes.
_PREPARATION = ("mean", "std", "crop_pct", "crop_mode", "interpolation", "test_input_size", "test_crop_pct", "license")
_LABELS = ("label_names", "label_descriptions")
# Defaults of the ACmix networks. Arguments that equal them are left out.
_DEFAULTS: dict[str, Any] = {"patch_size": 4, "window_size": 7, "mlp_ratio": 4.0, "in_chans": 3, "num_classes": 1000}


def plain_state(source: nn.Module | Source) -> State:
    """Return the weights of a network or of stored weights, without the key prefixes that wrappers add."""
    state = dict(unwrapped(source).state_dict()) if isinstance(source, nn.Module) else read_state_dict(source)
    state = without_block_wrappers(state)
    for key in state:
        if match := _FIRST_LAYER.match(key):
            prefix = match[1] or ""
            return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return state


def plain_network(source: nn.Module) -> nn.Module:
    """Return the plain network inside wrappers such as DataParallel, a LightningModule or torch.compile."""
    network = unwrapped(source)
    match = next(filter(None, map(_FIRST_LAYER.match, network.state_dict())), None)
    return network.get_submodule((match[1] or "").removesuffix(".")) if match else network


def recorded_arguments(source: nn.Module | Source, *names: str) -> dict[str, Any]:
    """Return those of the named arguments that timm recorded when it built the source, if it is such a network.

    Weights do not show some arguments, such as the number of heads.
    """
    recorded = getattr(plain_network(source), "_model_args", {}) if isinstance(source, nn.Module) else {}
    return {name: recorded[name] for name in names if name in recorded}


def pooling_of(source: nn.Module | Source) -> dict[str, str]:
    """Return the argument global_pool of a network of timm, which `reset_classifier` may have changed, or {}."""
    network = plain_network(source) if isinstance(source, nn.Module) else None
    pool = getattr(getattr(network, "head", None), "global_pool", getattr(network, "global_pool", None))
    kind = getattr(pool, "pool_type", None)
    return {} if kind is None else {"global_pool": kind}


def create_with_state(
    source: nn.Module | Source, name: str, state: State, arguments: dict[str, Any], overrides: dict[str, Any]
) -> nn.Module:
    """Build a registered network with weights that have its keys, as timm loads pretrained weights.

    A different number of classes or input channels is therefore handled as for every pretrained network.

    Args:
        source: where the weights come from. If it is a network, the new one states the same preparation of images.
        name: the registered network.
        state: the weights.
        arguments: the arguments of the network that the weights fit.
        overrides: arguments of the caller, which take precedence.

    Raises:
        ValueError: the source has other activations or norms than the registered network.
    """
    arguments = {
        key: value for key, value in arguments.items() if value not in (_DEFAULTS.get(key), as_pair(_DEFAULTS.get(key)))
    }
    final = {**arguments, **overrides}
    weights = {
        "state_dict": state, "url": None, "hf_hub_id": None, "file": None, "tag": None,
        "num_classes": arguments.get("num_classes", 1000),
        "input_size": (arguments.get("in_chans", 3), *as_pair(arguments.get("img_size", 224))),
    }  # fmt: skip
    network = plain_network(source) if isinstance(source, nn.Module) else None
    if network is not None:
        weights |= _described(network, final)
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=weights, **final)
    check_layers(source, model)
    cfg = cast(dict[str, Any], model.pretrained_cfg)
    cfg.pop("state_dict", None)  # otherwise memory would hold the weights twice
    cfg["input_size"] = (cfg["input_size"][0], *as_pair(final.get("img_size", 224)))
    return model


def _described(network: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what a network of timm states about its images and classes, as far as the new one has the same."""
    cfg = getattr(network, "pretrained_cfg", None) or {}
    classes = arguments.get("num_classes", 1000)
    labels = _LABELS if len(cfg.get("label_names") or ()) == classes else ()
    found = {name: cfg[name] for name in (*_PREPARATION, *labels) if cfg.get(name) is not None}
    if "test_input_size" in found:
        found["test_input_size"] = (arguments.get("in_chans", 3), *found["test_input_size"][1:])
    return found


def check_layers(source: nn.Module | Source, model: nn.Module) -> None:
    """Check that a source has no other activations and norms than the network that gets its weights.

    Raises:
        ValueError: it has, so that the outputs would differ.
    """
    expected = _layer_kinds(model)
    other = _layer_kinds(plain_network(source)) - expected if isinstance(source, nn.Module) else set()
    if other:
        raise ValueError(
            f"the source has {', '.join(sorted(other))}, but ACmix networks of its kind have "
            f"{', '.join(sorted(expected))}, so the outputs would differ. Expected a source with the same. Pass a "
            "network with the activations and norms of the paper"
        )


def _layer_kinds(network: nn.Module) -> set[str]:
    """Return the kinds of a network's activations and norms, which its weights do not show."""
    kinds = set()
    for module in network.modules():
        kind = type(module)
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d | nn.SyncBatchNorm):
            kinds.add(f"norms with eps {module.eps:g}")
        elif kind.__module__.endswith((".activation", ".activations", ".activations_me")) and kind is not nn.Softmax:
            is_tanh = getattr(module, "approximate", "none") != "none"
            kinds.add(f"{kind.__name__}{' (tanh)' * is_tanh}")
    return kinds


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
