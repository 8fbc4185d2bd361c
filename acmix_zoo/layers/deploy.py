"""Fold batch norm, alpha and beta into the layers before them, for faster inference.

A folded ACmix layer stores its combined convolution kernels times beta, and alpha as a factor per channel. A folded
model can only be used for inference. To continue training, create the model again and load its weights.
"""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from acmix_zoo.layers.acmix2d import ACmix2d
from acmix_zoo.layers.argument_checks import check_dtype, check_feature_map
from acmix_zoo.layers.convolution_path import ShiftConv, shift_macs
from acmix_zoo.layers.fx_leaf import leaf
from acmix_zoo.layers.submodule_use import is_plain
from acmix_zoo.ops.acmix import Geometry, PathTensors, acmix
from acmix_zoo.ops.memory_format import restore_memory_format
from acmix_zoo.ops.position_encoding import position_encoding
from acmix_zoo.ops.precision import autocast_dtype, autocast_off
from acmix_zoo.ops.tracing import constant_size

M = TypeVar("M", bound=nn.Module)
_Norm = nn.BatchNorm2d | nn.SyncBatchNorm  # the second one replaces the first for training on several GPUs


def check_eval_mode(model: nn.Module) -> None:
    """Raise a ValueError if a layer that can be folded is in training mode, before the first one is folded."""
    for name, module in model.named_modules():
        if module.training and isinstance(module, _Norm | nn.Conv2d | ACmix2d):
            raise ValueError(
                f"deploy: {name} is in training mode, in which batch norms update their statistics. Expected a network "
                "in eval mode. Call model.eval() first"
            )


def fold(parent: nn.Module, layer: str, norm: str) -> None:
    """Fold a batch norm into the ACmix2d or Conv2d before it, and replace the norm by an identity.

    Layers with only one path are left unchanged, together with their norm. So are layers and norms that are subclasses
    or have hooks, norms without running statistics, and layers whose projection is wrapped (LoRA, quantisation),
    because their parameters alone do not define what they compute.

    Args:
        parent: the module that contains both, in eval mode.
        layer: the name of the layer in `parent`.
        norm: the name of the batch norm in `parent`.
    """
    conv, bn = parent.get_submodule(layer), parent.get_submodule(norm)
    if not isinstance(bn, _Norm) or bn.running_mean is None:  # it has already been folded, or cannot be
        return
    kind = ACmix2d if isinstance(conv, ACmix2d) else nn.Conv2d
    if not is_plain(conv, kind) or not (is_plain(bn, nn.BatchNorm2d) or is_plain(bn, nn.SyncBatchNorm)):
        return
    if isinstance(conv, ACmix2d):
        if conv.paths != "both" or not is_plain(conv.qkv, nn.Linear) or not is_plain(conv.shift_conv, ShiftConv):
            return
        folded: nn.Module = DeployedACmix2d(conv, bn)
    else:
        dtype = next(conv.parameters()).dtype
        folded = fuse_conv_bn_eval(_widened(conv, dtype), _widened(bn, dtype)).to(dtype)  # type: ignore[type-var]
    parent.set_submodule(layer, folded.eval())
    parent.set_submodule(norm, nn.Identity().eval())


def _widened(module: M, dtype: torch.dtype) -> M:
    """Return a copy in at least float32. Products of weights in half precision would be rounded at every step."""
    return copy.deepcopy(module).to(torch.promote_types(dtype, torch.float32))


@leaf
class DeployedACmix2d(nn.Module):
    """An `ACmix2d` together with the batch norm after it, for inference. Inputs and outputs have the same shapes.

    Its tensors are buffers, because there is nothing to train. All of them are in the state dict, and nothing is cached
    between calls, so that loaded or converted weights take effect immediately.
    """

    weight: Tensor
    bias: Tensor
    position_weight: Tensor
    fc: Tensor | None
    kernels: Tensor
    alpha: Tensor
    offset: Tensor

    @torch.no_grad()
    def __init__(self, layer: ACmix2d, norm: _Norm) -> None:
        super().__init__()
        self.geometry = Geometry(layer.heads, layer.kernel_att, layer.stride, layer.dilation)
        dtype = layer.alpha.dtype
        layer, norm = _widened(layer, dtype), _widened(norm, dtype)
        identity = nn.Conv2d(layer.out_channels, layer.out_channels, 1, groups=layer.out_channels, bias=False)
        nn.init.ones_(identity.weight)
        affine = fuse_conv_bn_eval(identity.to(layer.alpha).eval(), norm)  # the norm as a factor and an offset
        fc, kernels = layer.shift_conv.factors(layer.beta)
        tensors = {
            "weight": layer.qkv.weight,
            "bias": layer.qkv.bias,
            "position_weight": layer.position_weight,
            "fc": fc,
            "kernels": (kernels * affine.weight).contiguous(),  # safetensors saves no other layout
            "alpha": layer.alpha * affine.weight.flatten(),
            "offset": affine.bias,
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, None if tensor is None else tensor.detach().to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        check_feature_map("DeployedACmix2d", x, constant_size(self.weight.shape[1]))
        check_dtype("DeployedACmix2d", x, self)
        if is_single := x.dim() == 3:
            x = x.unsqueeze(0)  # (1, C, H, W)
        pe = position_encoding(self.position_weight, *x.shape[2:])
        kernels = self.kernels.contiguous(memory_format=torch.channels_last)  # faster to convolve with
        paths = PathTensors(pe, self.fc, kernels, self.alpha, self.offset)
        dtype = autocast_dtype(x)  # as in `ACmix2d`, because native code does not follow autocast
        inputs, weight, bias = (t if t is None else t.to(dtype) for t in (x, self.weight, self.bias))
        with autocast_off(x):
            out = acmix(inputs, weight, bias, paths, self.geometry)
        out = restore_memory_format(out, x)
        return out.squeeze(0) if is_single else out

    def definition_macs(self, x: Tensor) -> int:
        """Return the multiply-accumulates of the layer that this one was made from, for an input of `forward`."""
        *batch, channels, h, w = x.shape
        heads, kernel_att, stride, _ = self.geometry
        outputs = len(self.alpha)
        projections = h * w * 3 * channels * outputs
        attention = -(-h // stride) * -(-w // stride) * 2 * kernel_att**2 * outputs
        shifts = shift_macs((h, w), outputs, heads, self.kernels.shape[-1], stride)
        return math.prod(batch) * (projections + attention + shifts)
