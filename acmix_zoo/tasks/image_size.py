"""Check that a network can process images of the data's size before training starts."""

from __future__ import annotations

import torch
from torch import nn


def check_image_size(model: nn.Module, size: tuple[int, ...], name: str, is_train_size: bool = False) -> None:
    """Run the network on one black image. Its mode and its weights stay unchanged.

    Args:
        model: the network.
        size: (C, H, W) of the images.
        name: what to call the network in the message.
        is_train_size: whether the size comes from `train_sizes` instead of `image_size`.

    Raises:
        ValueError: the network cannot process images of this size. Some networks are built for a fixed size.
    """
    cfg = getattr(model, "pretrained_cfg", None) or {}
    built_for = getattr(getattr(model, "patch_embed", None), "img_size", None)
    modes = [(module, module.training) for module in model.modules()]
    parameter = next(model.parameters())
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *size, dtype=parameter.dtype, device=parameter.device))
        if cfg.get("fixed_input_size") and built_for is not None and tuple(built_for) != tuple(size[1:]):
            # it would resize its position tables at every step, and its weights would not fit a network of this size
            raise ValueError(f"it was built for {built_for[0]} × {built_for[1]}")
    except Exception as error:  # different networks raise different exceptions
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        expected = built_for[0] if built_for else cfg.get("input_size", (3, "to a different size"))[1]
        advice = f"Set --data.image_size {expected}"
        if is_train_size:
            advice = f"Remove {size[1]} from --data.train_sizes"
        elif built_for:
            advice += f", or build it for this size with --model.model_kwargs '{{img_size: {size[1]}}}'"
        raise ValueError(
            f"{name} cannot process images of {size[1]} × {size[2]} pixels ({reason}). {advice}"
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
