"""Turn a plain Swin into an ACmix-Swin that gives exactly the same logits.

alpha is 1 and beta 0, so that the convolution paths have their initial weights but contribute nothing at first.
Training activates them through beta: its gradient is the gradient of the loss times the output of the convolution,
which is not zero. After the first step of beta, the kernels receive gradients, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from acmix_zoo.models.acmix_swin import WIDTHS_AND_DEPTHS
from acmix_zoo.models.plain_swin import swin_arguments, to_timm_names
from acmix_zoo.weights.from_plain.shared import as_pair, create_with_state, plain_network, plain_state, pooling_of
from acmix_zoo.weights.read import Source, State

# The registered networks by (embed_dim, depths, num_heads).
_NAMES = {tuple(shape.values()): name for name, shape in WIDTHS_AND_DEPTHS.items()}


def from_swin(source: nn.Module | Source, **kwargs: Any) -> nn.Module:
    """Return an ACmix-Swin that gives the logits of a plain Swin, ready to be fine-tuned.

    Args:
        source: a Swin of timm or torchvision, of any size, window and image size. Or its weights under the names of
            timm, torchvision or Microsoft: a state dict, a weight folder, a safetensors file or a torch file. Weights
            alone do not state the image size; it is taken from Microsoft's masks, or else assumed to be 224.
        kwargs: arguments of the network to change: img_size or window_size (position tables are interpolated),
            num_classes, in_chans, drop_path_rate, ….

    Returns:
        An `ACmixSwin` in training mode, on the CPU.

    Raises:
        ValueError: the source is not a Swin, it is a Swin V2, or its qkv has no biases.
    """
    arguments: dict[str, Any] = {}
    if isinstance(source, nn.Module):
        network = plain_network(source)
        stored = plain_state(source)
        size = getattr(getattr(network, "patch_embed", None), "img_size", None)
        windows: list[Any] = [m.window_size for m in network.modules() if hasattr(m, "relative_position_bias_table")]
        if windows and all(isinstance(window, Sequence) for window in windows):
            arguments["window_size"] = (max(w[0] for w in windows), max(w[1] for w in windows))
    else:
        stored = plain_state(source)
        size = _image_size_of_masks(stored)
    state = to_timm_names(stored)
    arguments = swin_arguments(state) | arguments | pooling_of(source)
    if size is not None and tuple(as_pair(size)) != (224, 224):
        arguments["img_size"] = tuple(as_pair(size))
    key = (arguments["embed_dim"], arguments["depths"], arguments["num_heads"])
    if key in _NAMES:
        arguments = {k: v for k, v in arguments.items() if k not in ("embed_dim", "depths", "num_heads")}
    return create_with_state(source, _NAMES.get(key, "acmix_swin_t"), state, arguments, kwargs)


def _image_size_of_masks(state: State) -> tuple[int, int] | None:
    """Return the (square) image size that Microsoft's stored masks of the first stage were made for, or None."""
    mask, patch = state.get("layers.0.blocks.1.attn_mask"), state.get("patch_embed.proj.weight")
    if mask is None or patch is None:
        return None
    side = math.isqrt(len(mask)) * math.isqrt(mask.shape[1]) * patch.shape[2]  # windows · positions · pixels
    return side, side
