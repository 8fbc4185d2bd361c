"""Translate the keys of stored weights into those of a module: prefixes of wrappers, names of other projects, sizes."""

import re
import sys
from collections import Counter
from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from acmix_zoo.weights.read import Source, State, read_state_dict

# Common names of the attribute that holds the network, and the prefixes that DDP and torch.compile add. A checkpoint's
# keys may start with any sequence of these words.
_WRAPPERS = re.compile(r"((module|_orig_mod|model|network|net|encoder|backbone)\.)*")
# Wrappers of single blocks, anywhere in a key: torch.compile, FSDP, activation checkpointing.
_BLOCK_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def translated(source: Source, module: nn.Module) -> State:
    """Read weights and return them under the keys of `module`, as far as the keys can be translated."""
    own = module.state_dict()
    state = _without_wrappers(read_state_dict(source), own)
    if _fits(state, own):
        return state
    from acmix_zoo.weights import authors  # imported only for checkpoints of other projects

    if authors.is_from_authors(state):
        state = authors.translate_authors(state, module)
    if not _fits(state, own):
        # By timm's convention, the file that defines a network has a filter for the network's older checkpoints.
        fallback: Callable[[State, nn.Module], State] | None = getattr(
            sys.modules[type(module).__module__], "checkpoint_filter_fn", None
        )
        if fallback is not None:
            state = fallback(dict(state), module)
    return state


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the network inside `torch.compile(network)`, or the module itself."""
    return cast(nn.Module, getattr(module, "_orig_mod", module))


def without_block_wrappers(state: State) -> State:
    """Remove what torch.compile, FSDP and activation checkpointing of single blocks add inside the keys."""
    return {_BLOCK_WRAPPERS.sub("", key): value for key, value in state.items()}


def _fits(state: State, own: State) -> bool:
    return state.keys() == own.keys() and all(state[key].shape == value.shape for key, value in own.items())


def _without_wrappers(state: State, own: State) -> State:
    """Remove what wrappers have added to the keys of `state`, guided by a module's `own` keys."""
    if not any(_BLOCK_WRAPPERS.search(key) for key in own):
        state = without_block_wrappers(state)
    prefix = _find_prefix(state, own)
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _find_prefix(state: State, own: State) -> str:
    """Return the prefix after which the keys of `state` are a module's `own` keys.

    Raises:
        ValueError: there are several networks under different prefixes.
    """
    # The number of the module's keys that are found after each prefix, including "".
    found: Counter[str] = Counter()
    for key in state:
        ends = [0, *(match.end() for match in re.finditer(r"\.", key))]
        found.update(key[:end] for end in ends if key[end:] in own)
    known = {prefix: count for prefix, count in found.items() if _WRAPPERS.fullmatch(prefix)}
    complete = [prefix for prefix, count in found.items() if count == len(own) and prefix in known] or [
        prefix for prefix, count in found.items() if count == len(own) and not known
    ]
    fitting = [p for p in complete if all(state[p + key].shape == value.shape for key, value in own.items())]
    complete = fitting or complete
    if any(not torch.equal(state[complete[0] + key], state[p + key]) for p in complete[1:] for key in own):
        raise ValueError(
            f"load_weights: there are several complete networks, under the prefixes {', '.join(sorted(complete)[:8])}. "
            "Expected one. Pass the state dict of the one that you want, without its prefix"
        )
    if complete:  # accept an unknown prefix if it is the only one with every key, or if all candidates are equal
        return complete[0]
    if known:
        return max(known, key=lambda p: (known[p], -len(p)))
    # These are the names of a different project. Drop the wrapper prefixes that all keys share.
    heads = [match[0] for key in state if (match := _WRAPPERS.match(key))]
    prefix = min(heads, key=len, default="")
    return prefix if all(key.startswith(prefix) for key in state) else ""
