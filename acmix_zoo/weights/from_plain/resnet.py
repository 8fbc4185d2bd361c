"""An ACmix-ResNet that begins near a plain ResNet: everything but its 3×3 convolutions, and the best for those."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from acmix_zoo.layers import ACmix2d
from acmix_zoo.weights.from_plain.attention_networks import create_with, plain_state
from acmix_zoo.weights.read import Source, State

_RESNETS = {(1, 2, 4, 1): "acmix_resnet26", (2, 3, 5, 2): "acmix_resnet38", (3, 4, 6, 3): "acmix_resnet50"}


@dataclass(frozen=True)
class WarmStart:
    """What `from_resnet` did: numbers of parameters, and how well each 3×3 convolution is approximated."""

    copied: int
    """Parameters taken over as they are: stem, 1×1 convolutions, batch norms, classifier."""
    fitted: int
    """Parameters set by least squares: what of each ACmix layer its convolution path uses."""
    random: int
    """Parameters left as they were: the rows of q, k, v that the convolution path does not need, and the positions."""
    kept: dict[str, float]
    """For each ACmix layer the share of the 3×3 kernel's energy (sum of squares) that its convolution path has."""

    def __str__(self) -> str:
        lines = [f"{self.copied:,} parameters copied, {self.fitted:,} fitted, {self.random:,} random"]
        lines += [f"{name}: {100 * share:.1f} % of the 3×3 kernel" for name, share in self.kept.items()]
        return "\n".join(lines)


def from_resnet(source: nn.Module | Source, **kwargs: Any) -> tuple[nn.Module, WarmStart]:
    """An ACmix-ResNet from a plain bottleneck ResNet: all that transfers, and a report of what does not.

    Stem, 1×1 convolutions, batch norms and classifier are copied. Each 3×3 convolution becomes the convolution path's
    composed kernel nearest to it. That path sees, for every group of `heads` output channels, at most kernel_conv² (9)
    combinations of the input's channels; so the nearest kernel is, group by group, the truncated singular value
    decomposition of the (outputs · taps) × inputs matrix (Eckart and Young, 1936). alpha is 0 and beta 1: attention
    over projections that were made for a convolution says nothing yet. It wakes up as alpha's gradient is not zero.

    Args:
        source: a plain ResNet of timm or torchvision with bottlenecks and no extras, or its weights, as in `from_swin`.
        kwargs: arguments of the network that shall differ: num_classes, in_chans, drop_path_rate, ...

    Returns:
        (an `ACmixResNet` in training mode, on the CPU; what was copied, fitted and left random).

    Raises:
        ValueError: not such a ResNet.
    """
    state = plain_state(source)
    args = _resnet(state)
    name = _RESNETS.get(args["layers"], "acmix_resnet50")
    if args["layers"] in _RESNETS:
        args.pop("layers")
    model = timm.create_model(name, **args)
    fitted, kept = 0, {}
    target = model.state_dict()
    for path, layer in model.named_modules():
        if isinstance(layer, ACmix2d):
            found, kept[path], used = _fit(state.pop(f"{path}.weight"), layer)
            fitted += used
            state |= {f"{path}.{key}": value for key, value in found.items()}
    foreign = sorted(key for key in state if key not in target)
    differ = [key for key in target if key not in state or state[key].shape != target[key].shape]
    if foreign or differ:
        raise ValueError(
            f"from_resnet: not a plain ResNet of bottlenecks; it has {', '.join(foreign[:4]) or 'nothing more'}, and "
            f"lacks or differs in {', '.join(differ[:4]) or 'nothing'}"
        )
    layers = {key for path in kept for key in target if key.startswith(f"{path}.")}
    parameters = {key: value.numel() for key, value in model.named_parameters()}
    copied = sum(n for key, n in parameters.items() if key not in layers)
    random = sum(n for key, n in parameters.items() if key in layers) - fitted
    return create_with(name, state, args, kwargs), WarmStart(copied, fitted, random, kept)


def _resnet(state: State) -> dict[str, Any]:
    """Arguments of the ACmixResNet with the shapes of a plain ResNet's weights."""
    found = [match for key in state if (match := re.match(r"layer(\d+)\.(\d+)\.conv3\.weight$", key))]
    kernels = [state.get(f"layer{match[1]}.{match[2]}.conv2.weight") for match in found]
    if (
        not found
        or "conv1.weight" not in state
        or any(kernel is None or kernel.shape[2:] != (3, 3) or kernel.shape[0] != kernel.shape[1] for kernel in kernels)
    ):
        raise ValueError(
            "from_resnet: expected a ResNet of bottlenecks (1×1, dense 3×3, 1×1), such as timm's resnet50; "
            f"found keys like {', '.join(list(state)[:3])}"
        )
    stages = range(1, 1 + max(int(match[1]) for match in found))
    planes = tuple(state[f"layer{i}.0.conv3.weight"].shape[0] // 4 for i in stages)
    classifier = state.get("fc.weight")
    return {
        "layers": tuple(sum(int(match[1]) == i for match in found) for i in stages),
        **({"planes": planes} if planes != (64, 128, 256, 512) else {}),
        **_other("base_width", state["layer1.0.conv2.weight"].shape[0] * 64 // planes[0], 64),
        **_other("stem_width", len(state["conv1.weight"]), 64),
        "in_chans": state["conv1.weight"].shape[1],
        "num_classes": 0 if classifier is None else len(classifier),
    }


def _other(name: str, value: int, default: int) -> dict[str, int]:
    return {} if value == default else {name: value}


@torch.no_grad()
def _fit(kernel: Tensor, layer: ACmix2d) -> tuple[State, float, int]:
    """State of an ACmix layer whose convolution path is as near as can be to a 3×3 `kernel` (out, in, 3, 3).

    Returns:
        (the layer's state dict, the share of the kernel's energy that it keeps, how many numbers were set).
    """
    n, d, inputs = layer.heads, layer.out_channels // layer.heads, layer.in_channels
    rank = min(layer.kernel_conv**2, 3 * n, inputs)
    # Outputs are ordered (d, heads): a group's are side by side.
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
    fc = state["shift_conv.fc_weight"].zero_()  # (9, 3·n): the first `rank` projections, as they are
    fc[:rank, :rank] = torch.eye(rank)
    state["alpha"].zero_()
    state["beta"].fill_(1)
    kept = float(s[:, :rank].square().sum() / s.square().sum().clamp_min(1e-30))
    used = d * rank * inputs + state["qkv.bias"].numel() + shift.numel() + fc.numel() + 2
    return state, kept, used
