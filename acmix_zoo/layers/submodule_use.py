"""Decide whether a layer can use a submodule's parameters directly instead of calling the submodule.

The fast paths read parameters such as `qkv.weight` directly. This is only correct if calling the submodule does nothing
else: LoRA, quantisation, pruning, weight norm and profilers all work by wrapping or hooking it. A layer that calls its
submodules gives the same results, but it processes the whole batch at once, and in training it keeps the projections
and the attention's intermediate results for the backward pass.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.modules import module as _globals

# Exporters replace the parameters by tensors of the last two types, which only record plain arithmetic.
_PLAIN_TENSORS = (nn.Parameter, Tensor, FakeTensor, FunctionalTensor)


def can_skip_call(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a layer can use the parameters of `module` without calling it.

    It can if `module` is plain and there are no global hooks, such as those of `torch.utils.flop_counter` and
    `register_module_forward_hook`. Global hooks have to see the call of every submodule.
    """
    if _globals._global_forward_hooks or _globals._global_forward_pre_hooks:
        return False
    if _globals._global_backward_hooks or _globals._global_backward_pre_hooks:
        return False
    return is_plain(module, kind)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether calling `module` is the same as applying a plain `kind` with its parameters.

    It is not if the module has a different class (a wrapper, a quantised or parametrized layer), has hooks of any kind,
    has its `forward` replaced on the instance, or has parameters of a tensor subclass, which may define its own
    arithmetic. Global hooks are checked by `can_skip_call` instead.
    """
    if type(module) is not kind or "forward" in module.__dict__:
        return False
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return False
    return all(p is None or type(p) in _PLAIN_TENSORS for p in module._parameters.values())
