"""Read weights from any source into a module: all of them, or none and three lines that say why.

- `load_weights(model, "weights/")`: a weight folder
- `load_weights(model, "model.safetensors")`: a safetensors file
- `load_weights(model, "last.ckpt")`: a checkpoint of Lightning, timm, torchvision, plain torch, or the authors
- `load_weights(layer, state_dict)`: tensors by name, for a whole network or a single layer
"""

import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import cast

import torch
from torch import nn

from acmix_zoo.models.plain_swin import is_plain_swin
from acmix_zoo.models.silent_convolution import lacks_only_convolution
from acmix_zoo.weights.read import Source, State, read_state_dict

# Common names of the attribute that holds the network, and the prefixes that DDP and torch.compile add. A checkpoint's
# keys may start with any sequence of these words.
_WRAPPERS = re.compile(r"((module|_orig_mod|model|network|net|encoder|backbone)\.)*")
# Wrappers of single blocks, anywhere in a key: torch.compile, FSDP, activation checkpointing.
_BLOCK_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def _fits(state: State, own: State) -> bool:
    return state.keys() == own.keys() and all(state[key].shape == value.shape for key, value in own.items())


def translated(source: Source, module: nn.Module) -> State:
    """Read `source` and bring its keys into the module's own: prefixes, the authors' names, another window size."""
    own = module.state_dict()
    state = _without_wrappers(read_state_dict(source), own)
    if _fits(state, own):
        return state
    from acmix_zoo.weights import authors  # only foreign checkpoints pay for it

    if authors.is_authors(state):
        state = authors.convert(state, module)
    if not _fits(state, own):
        # timm's convention: the file that defines a network holds the filter for its older checkpoints.
        fallback: Callable[[State, nn.Module], State] | None = getattr(
            sys.modules[type(module).__module__], "checkpoint_filter_fn", None
        )
        if fallback is not None:
            state = fallback(dict(state), module)
    return state


def _without_wrappers(state: State, own: State) -> State:
    """Remove what wrappers have added to the keys of `state`, guided by a module's `own` keys."""
    if not any(_BLOCK_WRAPPERS.search(key) for key in own):
        state = without_block_wrappers(state)
    # The number of the module's keys that are found after each prefix, including "".
    found: Counter[str] = Counter()
    for key in state:
        ends = [0, *(match.end() for match in re.finditer(r"\.", key))]
        found.update(key[:end] for end in ends if key[end:] in own)
    known = {prefix: count for prefix, count in found.items() if _WRAPPERS.fullmatch(prefix)}
    complete = [prefix for prefix, count in found.items() if count == len(own) and prefix in known] or [
        prefix for prefix, count in found.items() if count == len(own) and not known
    ]
    if any(not torch.equal(state[complete[0] + key], state[p + key]) for p in complete[1:] for key in own):
        raise ValueError(
            f"load_weights: the prefixes {', '.join(sorted(complete)[:8])} each give a complete network. Expected one; "
            "pass the state dict of the one that you want, without its prefix"
        )
    if complete:  # accept an unknown prefix if it is the only one with every key, or if all candidates are equal
        prefix = complete[0]
    elif known:
        prefix = max(known, key=lambda p: (known[p], -len(p)))
    else:  # names from another project: drop the wrapper prefixes that all keys share
        heads = [match[0] for key in state if (match := _WRAPPERS.match(key))]
        prefix = min(heads, key=len, default="")
        prefix = prefix if all(key.startswith(prefix) for key in state) else ""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def without_block_wrappers(state: State) -> State:
    """Remove what torch.compile, FSDP and activation checkpointing of single blocks add inside the keys."""
    return {_BLOCK_WRAPPERS.sub("", key): value for key, value in state.items()}


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"


def load_weights(module: nn.Module, source: Source, *, strict: bool = True) -> nn.Module:
    """Load weights into `module`, in place, and return it.

    Args:
        module: a whole network or any part of one, a single `ACmix2d` too. Stored numbers are cast to its dtypes.
        source: a weight folder, a safetensors file, a torch checkpoint of Lightning, timm, torchvision or the authors
            (read with `weights_only`), or a state dict. Wrappers' prefixes and the authors' names are translated.
        strict: every key and shape has to match. Otherwise the ones that match are loaded, with a warning.

    Raises:
        ValueError: keys or shapes differ (nothing was loaded then), nothing matches at all, or the file is unreadable.
        FileNotFoundError: the source does not exist.
    """
    target = unwrapped(module)
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    copy_in(target, translated(source, target), where, strict)
    return module


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside `torch.compile(network)`, or the module itself."""
    return cast(nn.Module, getattr(module, "_orig_mod", module))


def mismatch(own: State, state: State, where: str, kind: str, fresh: Collection[str] = ()) -> str:
    """Describe in three lines where `state` does not fit a module's `own` state dict. Empty if everything fits.

    `fresh` are keys that keep their initial values; entries of `state` with these names are ignored.
    """
    own = {key: value for key, value in own.items() if key not in fresh}
    state = {key: value for key, value in state.items() if key not in fresh}
    missing = [key for key in own if key not in state]
    unexpected = sorted(state.keys() - own.keys())
    differ = [key for key in own if key in state and state[key].shape != own[key].shape]
    if not (missing or unexpected or differ):
        return ""
    matching = len(own) - len(missing) - len(differ)
    shapes = [f"{key} {tuple(own[key].shape)} here, {tuple(state[key].shape)} there" for key in differ]
    return (
        f"load_weights: {where} does not fit {kind} ({matching} keys match): "
        f"missing {len(missing)} of {len(own)} keys: {_some(missing)}\n"
        f"unexpected {len(unexpected)} keys: {_some(unexpected)}\n"
        f"shapes differ {len(differ)}: {_some(shapes)}"
    )


def copy_in(module: nn.Module, state: State, where: str, strict: bool = True, fresh: Collection[str] = ()) -> None:
    """Copy `state` into `module`, except for the keys `fresh`, which keep their initial values.

    Raises:
        ValueError: a key or shape does not fit. Nothing is copied in this case.
    """
    own: State = module.state_dict()
    wanted = {key: value for key, value in own.items() if key not in fresh}
    fits = {key: state[key] for key, value in wanted.items() if key in state and state[key].shape == value.shape}
    report = mismatch(own, state, where, type(module).__name__, fresh)
    if report:
        plain = is_plain_swin(state) and hasattr(module, "set_input_size")
        if plain or lacks_only_convolution(key for key in wanted if key not in state):
            report += "\nThese are a plain network's: acmix_zoo.from_swin, from_pvt and from_san make ACmix of them"
        if strict or not fits:
            raise ValueError(f"{report}; nothing was loaded")
        warnings.warn(f"{report}; the keys that match were loaded", stacklevel=3)
    module.load_state_dict(fits, strict=False)
