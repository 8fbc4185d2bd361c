"""Turn a plain ResNet into an ACmix-ResNet that starts close to it: its 3×3 convolutions are approximated."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from acmix_zoo.layers import ACmix2d
from acmix_zoo.weights.from_plain.shared import (
    check_layers,
    create_with_state,
    first_keys,
    plain_network,
    plain_state,
    pooling_of,
)
from acmix_zoo.weights.read import Source, State

_NAMES = {(1, 2, 4, 1): "acmix_resnet26", (2, 3, 5, 2): "acmix_resnet38", (3, 4, 6, 3): "acmix_resnet50"}  # by layers


@dataclass(frozen=True)
class WarmStart:
    """What `from_resnet` did: numbers of parameters, and how well each 3×3 convolution is approximated.

    Attributes:
        copied: parameters that were copied: stem, 1×1 convolutions, batch norms and classifier.
        fitted: parameters that were set by least squares: those that the convolution path of each ACmix layer uses.
        random: parameters that keep their random initial values: the rows of q, k and v that the convolution path does
            not use, and the position encodings.
        kept: for each ACmix layer, the fraction of the 3×3 kernel's energy (its sum of squares) that is kept.
    """

    copied: int
    fitted: int
    random: int
    kept: dict[str, float]

    def __str__(self) -> str:
        lines = [f"{self.copied:,} parameters copied, {self.fitted:,} fitted, {self.random:,} random"]
        lines += [f"{name}: {100 * fraction:.1f} % of the 3×3 kernel" for name, fraction in self.kept.items()]
        return "\n".join(lines)


class FittedLayer(NamedTuple):
    """An ACmix layer whose convolution path approximates a 3×3 convolution.

    Attributes:
        state: the state dict of the layer.
        kept: the fraction of the kernel's energy that the convolution path keeps.
        fitted: the number of parameters that were set.
    """

    state: State
    kept: float
    fitted: int


def from_resnet(source: nn.Module | Source, **kwargs: Any) -> tuple[nn.Module, WarmStart]:
    """Return an ACmix-ResNet that starts close to a plain bottleneck ResNet, and a report of what was transferred.

    Stem, 1×1 convolutions, batch norms and classifier are copied. Each 3×3 convolution is replaced by the nearest
    kernel that the convolution path can represent. For every group of `heads` output channels, that path sees at most
    kernel_conv² (9) combinations of the input channels. So the nearest kernel is, group by group, the truncated
    singular value decomposition of the (outputs · taps) × inputs matrix (Eckart and Young, 1936). alpha is 0 and beta
    1, because attention over projections that were made for a convolution is meaningless at first. The gradient of
    alpha is not zero, so training activates the attention.

    Args:
        source: a plain ResNet of timm or torchvision with bottlenecks and no extras, or its weights, as in `from_swin`.
        kwargs: arguments of the network to change: num_classes, in_chans, drop_path_rate, ….

    Returns:
        An `ACmixResNet` in training mode on the CPU, and the report.

    Raises:
        ValueError: the source is not such a ResNet, or has other activations or norms.
    """
    state = plain_state(source)
    arguments = _resnet_arguments(state) | pooling_of(source)
    if isinstance(source, nn.Module):
        arguments |= _output_stride(plain_network(source), len(arguments["layers"]))
    name = _NAMES.get(arguments["layers"], "acmix_resnet50")
    if arguments["layers"] in _NAMES:
        arguments.pop("layers")
    model = timm.create_model(name, **arguments)
    check_layers(source, model)
    fits: dict[str, FittedLayer] = {}
    for path, layer in model.named_modules():
        if isinstance(layer, ACmix2d):
            fits[path] = fit_convolution_path(state.pop(f"{path}.weight"), layer)
            state |= {f"{path}.{key}": value for key, value in fits[path].state.items()}
    _check_keys(state, model.state_dict())
    parameters = {key: value.numel() for key, value in model.named_parameters()}
    in_layers = {key for key in parameters if any(key.startswith(f"{path}.") for path in fits)}
    fitted = sum(fit.fitted for fit in fits.values())
    report = WarmStart(
        copied=sum(n for key, n in parameters.items() if key not in in_layers),
        fitted=fitted,
        random=sum(n for key, n in parameters.items() if key in in_layers) - fitted,
        kept={path: fit.kept for path, fit in fits.items()},
    )
    return create_with_state(source, name, state, arguments, kwargs), report


@torch.no_grad()
def fit_convolution_path(kernel: Tensor, layer: ACmix2d) -> FittedLayer:
    """Return weights for an ACmix layer whose convolution path is as near as possible to a 3×3 convolution.

    Args:
        kernel: (out, in, 3, 3).
        layer: the layer. It is not changed.
    """
    n, d, inputs = layer.heads, layer.out_channels // layer.heads, layer.in_channels
    rank = min(layer.kernel_conv**2, 3 * n, inputs)
    # The outputs are ordered (d, heads), so the outputs of a group are next to each other.
    matrix = kernel.to(torch.float64).unflatten(0, (d, n)).permute(0, 1, 3, 4, 2).flatten(1, 3)  # (d, n·9, in)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    scale = s[:, :rank].sqrt()
    taps = (u[:, :, :rank] * scale.unsqueeze(1)).unflatten(1, (n, 3, 3))  # (d, n, 3, 3, rank)
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    rows = state["qkv.weight"].view(d, 3 * n, inputs)
    rows[:, :rank] = (vh[:, :rank] * scale.unsqueeze(2)).to(rows)
    state["qkv.bias"].zero_()
    shift = state["shift_conv.shift_weight"]  # (d·n, 9, 3, 3)
    shift.zero_()[:, :rank] = taps.permute(0, 1, 4, 2, 3).flatten(0, 1).to(shift)
    fc = state["shift_conv.fc_weight"].zero_()  # (9, 3·n): passes on the first `rank` projections unchanged
    fc[:rank, :rank] = torch.eye(rank)
    state["alpha"].zero_()
    state["beta"].fill_(1)
    kept = float(s[:, :rank].square().sum() / s.square().sum().clamp_min(1e-30))
    fitted = d * rank * inputs + state["qkv.bias"].numel() + shift.numel() + fc.numel() + 2
    return FittedLayer(state, kept, fitted)


def _output_stride(network: nn.Module, stages: int) -> dict[str, int]:
    """Return the argument output_stride of a network whose last stages are dilated instead of strided, or {}.

    Raises:
        ValueError: earlier stages are dilated, or the network is anti-aliased.
    """
    blocks: list[Any] = [network.get_submodule(f"layer{i}.0") for i in range(1, 1 + stages)]
    strides = [int(block.conv2.stride[0]) for block in blocks]
    halved = strides.count(2)
    is_blurred = not isinstance(getattr(blocks[-1], "aa", None), nn.Identity | None)
    if is_blurred or strides != [1, *[2] * halved, *[1] * (stages - 1 - halved)]:
        raise ValueError(
            f"from_resnet: the stages have the strides {strides}{', and blur layers' * is_blurred}. Expected a stride "
            "of 1, then 2, with dilation only in the last stages, and no aa_layer. Pass such a network"
        )
    return {} if halved == stages - 1 else {"output_stride": 4 * 2**halved}


def _resnet_arguments(state: State) -> dict[str, Any]:
    """Return the arguments of the ACmixResNet that has the shapes of a plain ResNet's weights."""
    blocks = [match for key in state if (match := re.match(r"layer(\d+)\.(\d+)\.conv3\.weight$", key))]
    kernels = [state.get(f"layer{match[1]}.{match[2]}.conv2.weight") for match in blocks]
    if (
        not blocks
        or "conv1.weight" not in state
        or any(kernel is None or kernel.shape[2:] != (3, 3) or kernel.shape[0] != kernel.shape[1] for kernel in kernels)
    ):
        raise ValueError(
            f"from_resnet: the source has keys like {first_keys(state)}. Expected a ResNet with one 7×7 convolution in "
            "its stem, and bottlenecks (1×1, dense 3×3, 1×1), such as timm's resnet50"
        )
    stages = range(1, 1 + max(int(match[1]) for match in blocks))
    planes = tuple(state[f"layer{i}.0.conv3.weight"].shape[0] // 4 for i in stages)
    base_width = state["layer1.0.conv2.weight"].shape[0] * 64 // planes[0]
    stem_width = len(state["conv1.weight"])
    classifier = state.get("fc.weight")
    return {
        "layers": tuple(sum(int(match[1]) == i for match in blocks) for i in stages),
        **({"planes": planes} if planes != (64, 128, 256, 512) else {}),
        **({"base_width": base_width} if base_width != 64 else {}),
        **({"stem_width": stem_width} if stem_width != 64 else {}),
        "in_chans": state["conv1.weight"].shape[1],
        "num_classes": 0 if classifier is None else len(classifier),
    }


def _check_keys(state: State, target: State) -> None:
    """Raise a ValueError if the weights have keys or shapes that the ACmix-ResNet does not have, or lack any."""
    foreign = sorted(key for key in state if key not in target)
    differ = [key for key in target if key not in state or state[key].shape != target[key].shape]
    if foreign or differ:
        raise ValueError(
            "from_resnet: the source is not a plain ResNet of bottlenecks. Unknown keys: "
            f"{', '.join(foreign[:4]) or 'none'}. Missing keys, or different shapes: {', '.join(differ[:4]) or 'none'}"
        )
