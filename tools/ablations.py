"""The ablations of the ACmix paper, as changes of an ACmix-ResNet before its training.

    python -m tools.ablations  # print the number of trainable parameters of acmix_resnet_pico under each ablation

A study builds each network with `build(name, ablation)` and trains all of them in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from acmix_zoo import create_model
from acmix_zoo.layers import ACmix2d
from acmix_zoo.ops.acmix import Geometry, PathTensors, acmix
from acmix_zoo.ops.memory_format import restore_memory_format
from acmix_zoo.ops.position_encoding import position_encoding
from tools import make_parser


class PerHeadACmix2d(ACmix2d):
    """An `ACmix2d` with both paths whose alpha and beta are (heads,): one factor per head.

    The channels of the attention are ordered (heads, d) and those of the convolution (d, heads), so alpha and beta of a
    head do not scale the same channels. The native library does not compute gradients for a per-channel alpha, so
    training is slower than with one alpha.
    """

    def __init__(self, layer: ACmix2d) -> None:
        if layer.paths != "both":
            raise ValueError(f"PerHeadACmix2d: expected a layer with both paths, got paths={layer.paths!r}")
        super().__init__(
            layer.in_channels, layer.out_channels, layer.kernel_conv, layer.stride,
            heads=layer.heads, kernel_att=layer.kernel_att, dilation=layer.dilation,
        )  # fmt: skip
        self.load_state_dict(layer.state_dict())
        self.alpha = nn.Parameter(layer.alpha.detach().repeat(layer.heads))
        self.beta = nn.Parameter(layer.beta.detach().repeat(layer.heads))

    def forward(self, x: Tensor) -> Tensor:
        width = self.out_channels // self.heads
        positions = position_encoding(self.position_weight, *x.shape[2:]) + 0 * self.position_bias  # (H, W, d)
        fc, kernels = self.shift_conv.factors()  # the kernels are (out, inputs, k, k)
        kernels = kernels * self.beta.repeat(width).view(-1, 1, 1, 1)
        paths = PathTensors(positions, fc, kernels, self.alpha.repeat_interleave(width))
        geometry = Geometry(self.heads, self.kernel_att, self.stride, self.dilation)
        out = acmix(x, self.qkv.weight, self.qkv.bias, paths, geometry)
        return restore_memory_format(out, x)


def fix_at_one(network: nn.Module, *names: str) -> None:
    """Set alpha, beta or both to one in all layers, and exclude them from training."""
    for layer in acmix_layers(network):
        for name in names:
            parameter = layer.get_parameter(name)
            nn.init.ones_(parameter.requires_grad_(False))


def mix_per_head(network: nn.Module) -> None:
    """Give every head of every layer its own alpha and beta, initialised from the layer's values."""
    for name, layer in [(n, m) for n, m in network.named_modules() if isinstance(m, ACmix2d)]:
        network.set_submodule(name, PerHeadACmix2d(layer))


def freeze_shifts(network: nn.Module) -> None:
    """Exclude the shift kernels of all layers from training, so that they stay shifts."""
    for layer in acmix_layers(network):
        layer.shift_conv.shift_weight.requires_grad_(False)


def randomise_shifts(network: nn.Module) -> None:
    """Initialise the shift kernels of all layers as PyTorch initialises a convolution, instead of as shifts."""
    for layer in acmix_layers(network):
        nn.init.kaiming_uniform_(layer.shift_conv.shift_weight, a=5**0.5)


def acmix_layers(network: nn.Module) -> Iterator[ACmix2d]:
    """Return the ACmix layers of a network."""
    return (module for module in network.modules() if isinstance(module, ACmix2d))


class Ablation(NamedTuple):
    """One row of a study.

    Attributes:
        description: what is different from the network of the zoo.
        change: changes the built network in place.
        kernel_att: side length of the attention window.
    """

    description: str
    change: Callable[[nn.Module], None] = lambda network: None
    kernel_att: int = 7


ABLATIONS: dict[str, Ablation] = {
    "none": Ablation("alpha and beta learned, shift kernels learned from shifts, kernel_att 7"),
    "mix-one": Ablation("alpha and beta fixed at one", lambda network: fix_at_one(network, "alpha", "beta")),
    "mix-alpha": Ablation("alpha learned, beta fixed at one", lambda network: fix_at_one(network, "beta")),
    "mix-beta": Ablation("beta learned, alpha fixed at one", lambda network: fix_at_one(network, "alpha")),
    "mix-heads": Ablation("one learned alpha and beta per head", mix_per_head),
    "shift-frozen": Ablation("shift kernels frozen", freeze_shifts),
    "shift-random": Ablation("shift kernels randomly initialised", randomise_shifts),
    "att-3": Ablation("kernel_att 3", kernel_att=3),
    "att-5": Ablation("kernel_att 5", kernel_att=5),
}


def build(name: str, ablation: str, **kwargs: Any) -> nn.Module:
    """Return a new ACmix-ResNet, changed by one of `ABLATIONS`.

    Args:
        name: the name of an ACmix-ResNet.
        ablation: a key of `ABLATIONS`.
        kwargs: arguments of the network.

    Raises:
        ValueError: unknown ablation.
    """
    if ablation not in ABLATIONS:
        raise ValueError(f"unknown ablation {ablation!r}. Use one of {', '.join(ABLATIONS)}")
    row = ABLATIONS[ablation]
    network = create_model(name, kernel_att=row.kernel_att, **kwargs)
    row.change(network)
    return network


if __name__ == "__main__":
    make_parser("ablations", __doc__).parse_args()
    for key, row in ABLATIONS.items():
        learned = sum(p.numel() for p in build("acmix_resnet_pico", key).parameters() if p.requires_grad)
        print(f"{key:<13} {learned:>9,}  {row.description}")
