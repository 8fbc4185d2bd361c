"""Whether a layer may compute with a submodule's parameters instead of calling the submodule.

The fast paths read `qkv.weight` and the like. That is only right as long as nobody has changed what calling the
submodule does: LoRA, quantisation, pruning, weight norm and profilers all work by wrapping or hooking it.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules import module as _globals


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether calling `module` does what a `kind` does with its parameters, and nothing else.

    The answer is no for another class (a wrapper, a quantised layer, a parametrized layer), for hooks of any kind on
    the module or on all modules, for a `forward` replaced on the instance, and for parameters of a tensor subclass,
    whose arithmetic is its own.
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
