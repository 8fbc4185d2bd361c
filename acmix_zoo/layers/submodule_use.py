"""Whether a layer may compute with a submodule's parameters instead of calling the submodule.

The fast paths read parameters such as `qkv.weight` directly. This is only correct if calling the submodule does nothing
else: LoRA, quantisation, pruning, weight norm and profilers all work by wrapping or hooking it.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules import module as _globals


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether calling `module` is the same as applying a plain `kind` with its parameters.

    It is not if the module has another class (a wrapper, a quantised or parametrized layer), if there are hooks of any
    kind on it or on all modules, if its `forward` was replaced on the instance, or if its parameters are tensor
    subclasses, which may define their own arithmetic.
    """
    if type(module) is not kind or "forward" in module.__dict__:
        return False
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return False
    if _globals._global_forward_hooks or _globals._global_forward_pre_hooks:
        return False
    if _globals._global_backward_hooks or _globals._global_backward_pre_hooks:
        return False
    return all(p is None or type(p) in (nn.Parameter, Tensor) for p in module._parameters.values())
