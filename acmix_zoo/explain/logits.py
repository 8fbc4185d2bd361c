"""Run a network for an explanation: in eval mode, on one image, with a check of what it returns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import RLock

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

_one_at_a_time = RLock()


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Within this context, a model is in eval mode and computes no gradients for its parameters. Gradients of
    other tensors are possible even if the caller is in inference mode.

    Gradient checkpointing is switched off, because recomputing a block would run the hooks of an explanation again, and
    so is compiled code, which would not run them at all. Both concern other threads, too, so one thread after the other
    enters this context.

    Raises:
        ValueError: the network was created in inference mode, or is a graph of torch.fx.
    """
    with _one_at_a_time:
        yield from _evaluation(model)


def _evaluation(model: nn.Module) -> Iterator[None]:
    if any(isinstance(module, GraphModule) for module in model.modules()):
        raise ValueError(
            "explain: this is a graph of torch.fx, which does not run hooks on layers. Expected a network. Explain the "
            "network that the graph was made from"
        )
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError(
            f"explain: {type(model).__name__} was created in inference mode, and has no gradients. Expected a network "
            "that was created outside of it. Explanations themselves may be computed in inference mode"
        )
    checkpointed = [module for module in model.modules() if vars(module).get("grad_checkpointing")]
    modes = [(module, module.training) for module in model.modules()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    try:
        for module in checkpointed:
            module.grad_checkpointing = False  # type: ignore[assignment]
        for parameter in trained:
            parameter.requires_grad_(False)
        is_inference = torch.is_inference_mode_enabled()
        with torch.compiler.set_stance("force_eager"), torch.inference_mode(False) if is_inference else nullcontext():
            yield
    finally:
        for module in checkpointed:
            module.grad_checkpointing = True  # type: ignore[assignment]
        for parameter in trained:
            parameter.requires_grad_()
        for module, training in modes:
            module.training = training


def check_image(image: Tensor) -> None:
    """Raise a ValueError if this is not one image (1, C, H, W)."""
    if image.dim() != 4 or len(image) != 1:
        raise ValueError(
            f"explain: expected one image of shape (1, C, H, W), got {tuple(image.shape)}. Add the batch dimension "
            "with image.unsqueeze(0), or pass one image at a time"
        )


def class_logits(model: nn.Module, image: Tensor, target: int | None = None) -> Tensor:
    """Return the logits (1, classes) of one image (1, C, H, W).

    Raises:
        ValueError: the image or the output does not have that shape, or `target` is not one of the classes.
    """
    check_image(image)
    with torch.no_grad():
        logits: Tensor = model(image)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or not logits.shape[1]:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"explain: {type(model).__name__} returned {found}. Expected the logits of classes, (1, classes). "
            "Pass a classification network with its classifier"
        )
    if target is not None and not 0 <= target < logits.shape[1]:
        raise ValueError(
            f"explain: there is no class {target}. Expected a number from 0 to {logits.shape[1] - 1}. Choose one"
        )
    return logits
