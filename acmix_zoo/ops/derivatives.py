"""Give fast code all derivatives that plain operators have.

Fast kernels and hand-written backward passes only support the forward pass and the first derivative. `torch.func`
transforms, forward-mode AD and second derivatives need more. All fast code in this package therefore has a plain
equivalent: the same function, written in operators that PyTorch can differentiate any number of times.

* `is_transformed` returns whether to call the plain equivalent instead of the fast code.
* `with_plain_derivatives` attaches the plain equivalent to a result that autograd recorded through a kernel without a
  second derivative. It is used only if the backward pass is itself differentiated (`create_graph=True`) or batched
  (`is_grads_batched=True`); ordinary training runs the kernel's own backward pass.
* `plain_gradients` does the same inside the backward pass of an `autograd.Function`.
* `with_autograd` runs a function that uses autograd inside an operator, also under a dispatch mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.forward_ad import make_dual, unpack_dual
from torch.func import debug_unwrap

from acmix_zoo.ops.tracing import is_recording

_Result = TypeVar("_Result")


def is_transformed(*tensors: Tensor | None) -> bool:
    """Return whether a `torch.func` transform or forward-mode AD is applied to one of the tensors.

    While a graph is being compiled, tensors do not reveal this. The result then says whether any transform is active.
    Exported graphs have none.
    """
    if torch.compiler.is_compiling():
        return not torch.compiler.is_exporting() and bool(_is_any_transform_active())
    return any(
        t is not None and (debug_unwrap(t, recurse=False) is not t or unpack_dual(t).tangent is not None)
        for t in tensors
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_any_transform_active() -> bool:
    """Return whether the caller runs inside a `torch.func` transform or a level of forward-mode AD.

    PyTorch has no public function for this. This function therefore tries one call that PyTorch refuses inside
    transforms, and another that it refuses outside forward-mode AD.
    """
    try:
        empty = _FunctionWithoutSetupContext.apply()
    except RuntimeError:
        return True
    try:
        make_dual(empty, empty)
    except RuntimeError:
        return False
    return True


class _FunctionWithoutSetupContext(torch.autograd.Function):
    """A function that PyTorch refuses to run inside a `torch.func` transform."""

    @staticmethod
    def forward(ctx: Any) -> Tensor:
        return torch.empty(0)


def needs_plain_gradients(grad: Tensor) -> bool:
    """Return whether a backward pass that received `grad` must be differentiable or take many gradients at once."""
    if torch.is_grad_enabled() or is_transformed(grad):
        return True
    try:
        grad.untyped_storage()
    except NotImplementedError:  # with `is_grads_batched=True`, `grad` is a tensor without storage
        return True
    return False


def plain_gradients(
    plain: Callable[..., Tensor], inputs: Sequence[Tensor | None], needed: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """Return the gradients of `plain(*inputs)`. They are differentiable if grad mode is enabled.

    Args:
        plain: the function, in plain operators.
        inputs: its arguments, attached to their graph.
        needed: for each argument, whether its gradient is needed. The other arguments get None.
        grad: the gradient of the result, in the result's shape.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, because one argument may have been computed from another, and the gradient must not flow through that.
        views = [t.view_as(t) if need and t is not None else t for t, need in zip(inputs, needed, strict=True)]
        out = plain(*views)
    differentiated = [v for v, need in zip(views, needed, strict=True) if need and v is not None]
    gradients = iter(torch.autograd.grad(out, differentiated, grad, create_graph=create_graph, allow_unused=True))
    return [next(gradients) if need and v is not None else None for v, need in zip(views, needed, strict=True)]


def with_autograd(compute: Callable[[], _Result]) -> _Result:
    """Return `compute()`, which uses autograd, from within an operator.

    A dispatch mode such as a FLOP counter disables autograd there, but only in its own thread.
    """
    is_recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        is_enabled = torch.empty(0, requires_grad=True).neg().requires_grad
    if is_enabled:
        return compute()

    def compute_in_thread() -> _Result:
        with torch.set_grad_enabled(is_recorded):  # a thread starts with grad mode enabled
            return compute()

    context = copy_context()  # contains the backend of `use_backend`
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(context.run, compute_in_thread).result()


def with_plain_derivatives(out: Tensor, plain: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return `out`, with second derivatives taken from `plain`.

    Args:
        out: the result of fast code, recorded by autograd.
        plain: a function in plain operators with `plain(*inputs)` equal to `out`.
        inputs: the tensors that `out` was computed from. They are saved for the backward pass.
    """
    if is_recording() or not torch.is_grad_enabled() or not out.requires_grad:
        return out
    return _PlainDerivatives.apply(plain, out, *inputs)  # type: ignore[no-any-return]


class _PlainDerivatives(torch.autograd.Function):
    """Identity on `out` whose gradient flows either into the graph of `out` or to `inputs` through `plain`."""

    generate_vmap_rule = True  # under vmap, this is only called with inputs that are not batched

    @staticmethod
    def forward(plain: Callable[..., Tensor], out: Tensor, *inputs: Tensor) -> Tensor:
        return out.detach()  # autograd would treat `out` itself as a view, which in-place operators must not modify

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.plain = inputs[0]
        ctx.save_for_backward(*inputs[2:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        needed = ctx.needs_input_grad[2:]
        if grad is None or not needs_plain_gradients(grad):
            return None, grad, *(None for _ in needed)
        return None, None, *plain_gradients(ctx.plain, ctx.saved_tensors, needed, grad)
