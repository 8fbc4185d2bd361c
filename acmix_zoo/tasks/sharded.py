"""Networks whose weights are spread over processes (FSDP2), and their checkpoints."""

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
    """Spread a network over a one-dimensional mesh, in place: each of its parts is gathered when it is used.

    The parts are what is repeated in a stage, so that a stage's blocks are gathered one after the other.
    """
    if is_sharded(network):  # a second fit, or a test after it
        return
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP takes no channels_last weights; images may be
    for part in _parts(network):
        fully_shard(part, mesh=mesh)
    fully_shard(network, mesh=mesh)


def load_whole(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load whole tensors into a module, whose weights may be spread; every process has all of `state`."""
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    if not parts:
        module.load_state_dict(state)
        return
    for part in parts:
        part.reshard()  # the last ones used stay gathered
    # a copy: it puts its own parts into the dictionary
    set_model_state_dict(module, dict(state), options=StateDictOptions(full_state_dict=True))


def is_sharded(network: nn.Module) -> bool:
    """Whether a network's weights are spread over processes."""
    return isinstance(network, FSDPModule)


def _parts(module: nn.Module) -> list[nn.Module]:
    """The blocks: what stands in a list or a sequence of modules, at the lowest such level but one."""
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            inner = _parts(child)
            found += inner or [c for c in child if any(True for _ in c.parameters())]
        elif any(isinstance(m, nn.ModuleList | nn.Sequential) for m in child.children()):
            found += _parts(child)
    return found


class _Unpickler(pickle.Unpickler):
    """Makes the plain records of a checkpoint's .metadata and nothing else, so that reading it runs no code."""

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
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if dtype or name in self._KNOWN.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which no checkpoint needs")


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata: Metadata = _Unpickler(BytesIO((Path(self.path) / ".metadata").read_bytes())).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A Lightning checkpoint, from one file or from a folder with every process's part; one process reads it all.

    Of a folder: what Lightning wrote beside the weights, and "state_dict" with whole tensors; no optimiser state.

    Raises:
        Exception: what torch raises for files that are missing, damaged, or hold more than tensors and plain values.
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
        warnings.filterwarnings("ignore", message=".*load in a single process.*")  # yes
        load({"state_dict": state}, storage_reader=reader, no_dist=True)
    return {**content, "state_dict": state}
