"""Read the tensors of a weight folder, a safetensors file or a torch checkpoint, without running code from the file.

Trainers store weights under many names and together with many other objects. This file handles those names and
objects; `load.py` matches the tensors to a module.
"""

import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from acmix_zoo.checksum import check_sha256
from acmix_zoo.weights.fetch import fetch
from acmix_zoo.weights.locate import locate

State = dict[str, Tensor]
Source = str | PathLike[str] | Mapping[str, Any]

# Entries that hold the state dict, in order of preference: averaged weights come first, because they were evaluated.
_ENTRIES = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema"),
    *("state_dict", "model_state_dict", "model", "network", "net", "module"),
)


class _Ignored:
    """Placeholder for an object that is stored with the weights but never used, such as a numpy scalar or a path.

    Unpickling creates this object instead of the real one, so that none of the real class's code runs.
    """

    def __init__(self, *args: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


# Classes that trainers store with the weights: settings, scores, output folders. Each is read as a harmless value. All
# other classes are rejected. A CfgNode (of Swin's trainer) is filled like a dict.
_IGNORED = (
    *("argparse.Namespace", "datetime.datetime", "datetime.timedelta", "torch.torch_version.TorchVersion"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray"),
    *(f"pathlib{local}.{name}" for local in ("", "._local") for name in ("PosixPath", "WindowsPath")),
)
_SAFE_GLOBALS_LOCK = RLock()
_SAFE_GLOBALS: list[Any] = [(OrderedDict, "yacs.config.CfgNode"), *((_Ignored, name) for name in _IGNORED)]


def read_state_dict(source: Source) -> State:
    """Return the tensors of `source` by their stored names, on the CPU.

    Args:
        source: a weight folder, a run folder, a safetensors file, a torch checkpoint (.pth, .pt, .ckpt, .bin), an .npz
            file or a mapping to tensors or NumPy arrays. In checkpoints and mappings the state dict may be an entry
            such as `model_state_dict` or `net`.

    Raises:
        FileNotFoundError: `source` does not exist.
        ValueError: it is unreadable or contains no weights.
    """
    if isinstance(source, Mapping):
        return _state_dict(source, "the mapping")
    path = fetch(locate(source, prefers_paths=True))
    if path.is_dir():
        path = path / "model.safetensors"
        if not path.is_file():
            raise FileNotFoundError(f"load_weights: the weight folder {path.parent} has no model.safetensors")
    check_sha256(path)
    is_safetensors = path.suffix.lower() == ".safetensors" or _has_safetensors_header(path)
    if not is_safetensors and path.suffix.lower() != ".npz":
        return _state_dict(read_checkpoint(path), str(path))
    try:
        if is_safetensors:
            return safetensors.torch.load_file(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except OSError:
        raise  # the file itself may be fine, for example if permissions are missing or the disk fails
    except Exception as error:
        raise _damaged(path, error) from error
    return _state_dict(arrays, str(path))


def _has_safetensors_header(path: Path) -> bool:
    """Return whether a file starts like safetensors: the length of a JSON object in 8 bytes, and the object."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def read_checkpoint(path: Path) -> Any:
    """Return the content of a torch checkpoint, on the CPU.

    The file is read with `weights_only`, which creates tensors and plain containers and runs no code from the file.
    Settings and scores that trainers commonly store with the weights are read as placeholders.

    Raises:
        ValueError: the file is damaged, or contains objects of other classes.
        OSError: the file cannot be read.
    """
    # the safe globals are those of the whole process, and leaving the context removes them
    with _SAFE_GLOBALS_LOCK, torch.serialization.safe_globals(_SAFE_GLOBALS):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except pickle.UnpicklingError as error:
            raise ValueError(f"load_weights: {path} was rejected: {_rejection_reason(path, error)}") from error
        except Exception as error:  # damaged pickles raise almost any exception
            raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"load_weights: {path} ({path.stat().st_size} bytes) is damaged or not a checkpoint ({error}). "
        "Download it or save it again"
    )


def _rejection_reason(path: Path, error: pickle.UnpicklingError) -> str:
    """Explain why `weights_only` rejects a file. Must be called while the safe globals are in effect."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # torch's format before 1.6, for which only the first class is known, or not a checkpoint at all
        names = re.findall(r"\bGLOBAL (\S+)", str(error))[:1]
    if not names:
        return (
            "it is damaged or contains more than tensors. Save only the state dict: "
            "torch.save(model.state_dict(), path)"
        )
    shown = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more classes" if len(names) > 5 else "")
    return (
        f"it contains {shown}, and reading such objects would run code from the file. Expected tensors and plain "
        "values. If you trust the file, load it yourself with weights_only=False and pass the state dict"
    )


def _state_dict(checkpoint: Any, where: str) -> State:
    """Return the state dict in a checkpoint: the checkpoint itself, a known entry, or the only entry with tensors."""
    state = _find_state(checkpoint)
    if state:
        return state
    found = [str(key) for key, value in checkpoint.items() if _find_state(value)] if _is_mapping(checkpoint) else []
    if len(found) > 1:
        raise ValueError(
            f"load_weights: {where} has several entries with tensors: {', '.join(found[:8])}. Expected one. Pass the "
            "state dict that you want"
        )
    if found:
        return _find_state(checkpoint[found[0]]) or {}
    converted = _with_tensors(checkpoint)
    if converted is not checkpoint:
        return _state_dict(converted, where)
    keys = ", ".join(map(str, list(checkpoint)[:8])) if _is_mapping(checkpoint) else type(checkpoint).__name__
    if _is_mapping(checkpoint) and any(isinstance(value, _Ignored) for value in checkpoint.values()):
        keys += (
            " (not tensors). If these are NumPy arrays, save them with np.savez(PATH, **arrays) and load the .npz file"
        )
    raise ValueError(f"load_weights: {where} contains no weights. Expected named tensors, found: {keys or 'nothing'}")


def _find_state(value: Any, depth: int = 4) -> State | None:
    """Return the tensors of a mapping, or of its first known entry that has any, up to `depth` levels deep."""
    if not _is_mapping(value) or not depth:
        return None
    for entry in _ENTRIES:
        state = _find_state(value.get(entry), depth - 1)
        if state and any(tensor.dim() for tensor in state.values()):  # an entry may hold only settings such as a decay
            return state
    return {key: v for key, v in value.items() if isinstance(key, str) and isinstance(v, Tensor)} or None


def _with_tensors(value: Any) -> Any:
    """Return a nested mapping with its NumPy arrays as tensors, or `value` itself if it contains none."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))  # torch has no other byte order
    if not _is_mapping(value):
        return value
    converted = {key: _with_tensors(entry) for key, entry in value.items()}
    return converted if any(converted[key] is not value[key] for key in value) else value


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)
