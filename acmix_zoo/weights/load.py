"""Read weights from any source into a module: all of them, or none and three lines that say why.

- `load_weights(model, "weights/")`: a weight folder
- `load_weights(model, "model.safetensors")`: a safetensors file
- `load_weights(model, "last.ckpt")`: a checkpoint of Lightning, timm, torchvision, plain torch, or the authors
- `load_weights(layer, state_dict)`: tensors by name, for a whole network or a single layer
"""

import argparse
import pickle
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from acmix_zoo.models._plain_swin import is_plain_swin
from acmix_zoo.models._silent import lacks_convolution

State = dict[str, Tensor]
Source = str | PathLike[str] | Mapping[str, Any]

# Where trainers put the state dict; averaged weights first, because they are the ones that were evaluated.
_ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model")
# What wrappers put before each key: DDP and AveragedModel, torch.compile, a LightningModule's `self.model`.
_PREFIXES = ("", "module.", "_orig_mod.", "model.", "model._orig_mod.", "_orig_mod.module.", "module._orig_mod.")


def read_state_dict(source: Source) -> State:
    """Read the tensors of `source`, whatever it is, onto the CPU; keys stay as they are stored.

    Args:
        source: weight folder, safetensors file, torch checkpoint (.pth, .pt, .ckpt, .bin) or a mapping.

    Raises:
        FileNotFoundError: nothing there. ValueError: unreadable, or no weights inside.
    """
    if isinstance(source, Mapping):
        return _unwrap(source, "the mapping")
    path = Path(source)
    if path.is_dir():
        if not (path / "model.safetensors").is_file():
            raise FileNotFoundError(f"load_weights: the folder {path} holds no model.safetensors; give a weight folder")
        path = path / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"load_weights: {path} does not exist; give a weight folder or a checkpoint file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        # Only tensors and plain containers are unpickled: a checkpoint never runs code here. Trainers store their
        # settings beside the weights: timm's a Namespace, Swin's a CfgNode, for which a plain dict stands in.
        with torch.serialization.safe_globals([argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise  # not the file's content: permissions, a failing disk
    except pickle.UnpicklingError as error:
        raise ValueError(f"load_weights: {path} was refused, {_refusal(path)}") from error
    except Exception as error:  # damaged pickles raise nearly everything
        raise ValueError(
            f"load_weights: {path} ({path.stat().st_size} bytes) is damaged or not a checkpoint ({error}); "
            "fetch or write it again"
        ) from error
    return _unwrap(checkpoint, str(path))


def _refusal(path: Path) -> str:
    """Say what a checkpoint holds that `weights_only` does not read."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # not a zip archive: the old format cannot be looked through, and plain garbage ends here too
        names = []
    if not names:
        return (
            "it is damaged or holds more than tensors; save the state dict alone: torch.save(model.state_dict(), path)"
        )
    return (
        f"beside tensors it holds objects of {', '.join(names)}, and reading those would run code from the file; "
        "if you trust it, load it yourself with weights_only=False and pass the state dict"
    )


def _unwrap(checkpoint: Any, where: str) -> State:
    """Find the state dict in a checkpoint, which is either itself or one of its known entries."""
    if isinstance(checkpoint, Mapping):
        for entry in _ENTRIES:
            if isinstance(checkpoint.get(entry), Mapping):
                return _unwrap(checkpoint[entry], f"{where}[{entry!r}]")
        state = {str(key): value for key, value in checkpoint.items() if isinstance(value, Tensor)}
        if state:
            return state
    keys = ", ".join(map(str, list(checkpoint)[:8])) if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
    raise ValueError(f"load_weights: no weights in {where}; expected named tensors, found: {keys or 'nothing'}")


def _fits(state: State, own: State) -> bool:
    return state.keys() == own.keys() and all(state[key].shape == value.shape for key, value in own.items())


def translated(source: Source, module: nn.Module) -> State:
    """Read `source` and bring its keys into the module's own: prefixes, the authors' names, another window size."""
    state, own = read_state_dict(source), module.state_dict()
    prefix = max(_PREFIXES, key=lambda p: sum(p + key in state for key in own))
    if prefix:
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
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


def mismatch(own: State, state: State, where: str, kind: str) -> str:
    """Three lines on what of `state` does not fit a module's `own` state dict; empty when all does."""
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


def copy_in(module: nn.Module, state: State, where: str, strict: bool = True) -> None:
    """Copy `state` into `module` if every key and shape fits, else say in three lines what does not."""
    own: State = module.state_dict()
    fits = {key: state[key] for key in own if key in state and state[key].shape == own[key].shape}
    report = mismatch(own, state, where, type(module).__name__)
    if report:
        plain = is_plain_swin(state) and hasattr(module, "set_input_size")
        if plain or lacks_convolution(key for key in own if key not in state):
            report += "\nThese are a plain network's: acmix_zoo.from_swin, from_pvt and from_san make ACmix of them"
        if strict or not fits:
            raise ValueError(f"{report}; nothing was loaded")
        warnings.warn(f"{report}; the keys that match were loaded", stacklevel=3)
    module.load_state_dict(fits, strict=False)
