"""Make layers leaves of torch.fx graphs, and reject torch.jit.script with a clear error."""

from __future__ import annotations

from functools import wraps
from types import CodeType
from typing import Any, TypeVar

import torch.fx
from torch import nn

_Layer = TypeVar("_Layer", bound=type[nn.Module])


def leaf(layer: _Layer) -> _Layer:
    """Decorate a layer's class so that it is a leaf of `torch.fx` graphs and rejects `torch.jit.script`.

    Our layers choose an implementation that depends on the size of their input, and fx cannot trace such decisions. Its
    graph therefore contains a call of `run_leaf` with the layer as the first argument. All fx tracers record this call
    by default, whereas a list of leaf modules would have to be passed to each of them.
    """
    forward = layer.forward

    @wraps(forward)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return run_leaf(self, *args, **kwargs)

    # Each layer class gets its own code object, because torch.compile limits the recompilations of each.
    code: CodeType = call.__code__  # type: ignore[attr-defined]
    call.__code__ = code.replace(co_name=f"{layer.__name__}_forward")  # type: ignore[attr-defined]

    layer.forward = call
    layer.leaf_forward = forward  # type: ignore[attr-defined]
    layer.__prepare_scriptable__ = reject_script  # type: ignore[attr-defined]
    return layer


def reject_script(module: nn.Module) -> nn.Module:
    """Raise a TypeError with advice. A class has this as `__prepare_scriptable__`, which torch.jit.script calls."""
    raise TypeError(
        f"{type(module).__name__} does not support torch.jit.script, which is deprecated in PyTorch. "
        "Use torch.compile or torch.export, or torch.jit.trace if you need TorchScript"
    )


@torch.fx.wrap
def run_leaf(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the forward method of a layer that is decorated with `leaf`."""
    return layer.leaf_forward(*args, **kwargs)
