"""Networks whose weights are sharded over processes (FSDP2), and their checkpoints."""

from __future__ import annotations

import pickle
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a network over a one-dimensional mesh, in place.

    The weights of a block are gathered when the block is used, one block after the other.
    """
    if is_sharded(network):  # a second fit, or a test after it
        return
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP takes no channels_last weights; images may be
    for block in _find_blocks(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def load_full_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load full tensors into a module, whose weights may be sharded. Every process has all of `state`."""
    sharded = [child for child in module.modules() if isinstance(child, FSDPModule)]
    if not sharded:
        module.load_state_dict(state)
        return
    for child in sharded:
        child.reshard()  # the last ones used stay gathered
    # a copy, because torch puts the shards into the dictionary
    set_model_state_dict(module, dict(state), options=StateDictOptions(full_state_dict=True))


def is_sharded(network: nn.Module) -> bool:
    """Return whether a network's weights are sharded over processes."""
    return isinstance(network, FSDPModule)


def _find_blocks(module: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a network: the children of its innermost lists and sequences of modules."""
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            inner = _find_blocks(child)
            found += inner or [c for c in child if any(True for _ in c.parameters())]
        elif any(isinstance(m, nn.ModuleList | nn.Sequential) for m in child.children()):
            found += _find_blocks(child)
    return found


class _Unpickler(pickle.Unpickler):
    """Unpickles only the plain records of a checkpoint's .metadata, so that reading it runs no code."""

    _KNOWN: ClassVar[dict[str, set[str]]] = {
        "torch.distributed.checkpoint.metadata": {
            "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
            "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
        },
        "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
        "torch.serialization": {"_get_layout"},
        "torch": {"Size"},
        "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath"},
        "collections": {"OrderedDict"},
    }  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in self._KNOWN.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it contains {module}.{name}, which no checkpoint needs")


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata: Metadata = _Unpickler(BytesIO((Path(self.path) / ".metadata").read_bytes())).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a Lightning checkpoint in one process, from a file or from a folder with the shards of every process.

    From a folder, the result contains what Lightning saved beside the weights, and "state_dict" with full tensors, but
    no optimiser state.

    Raises:
        Exception: whatever torch raises for files that are missing, damaged, or contain more than tensors and plain
            values.
    """
    if not path.is_dir():
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return content
    content = torch.load(path / "meta.pt", map_location="cpu", weights_only=True)
    reader = _Reader(path)
    stored = reader.read_metadata().state_dict_metadata
    state = {
        name.removeprefix("state_dict."): torch.empty(tensor.size, dtype=tensor.properties.dtype)
        for name, tensor in stored.items()
        if name.startswith("state_dict.") and isinstance(tensor, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*load in a single process.*")  # as intended
        load({"state_dict": state}, storage_reader=reader, no_dist=True)
    return {**content, "state_dict": state}
