"""Arguments and inputs of ACmix2d: those of a convolution are understood, and wrong ones are rejected with advice."""

from __future__ import annotations

import re
from functools import partial
from inspect import signature

import numpy as np
import pytest
import torch
from torch import nn

from acmix_zoo import ACmix2d
from acmix_zoo.layers import ReducedACmix, WindowACmix


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"out_channels": 130, "heads": 4},
            'heads=4 does not divide out_channels=130. Use out_channels=128 or 132, or heads=5 or heads="auto"',
        ),
        ({"out_channels": 3, "heads": 4}, 'Use out_channels=4, or heads=3 or heads="auto"'),
        ({"heads": "four"}, "heads must be a positive integer or \"auto\", got 'four'"),
        (
            {"kernel_conv": 4},
            "kernel_conv=4 is even. Expected an odd size",
        ),
        ({"kernel_att": 6}, "kernel_att=6 is even. Expected an odd size"),
        ({"kernel_conv": 2}, "kernel_conv=2 is even"),
        ({"stride": 0}, "stride must be a positive integer, got 0"),
        ({"paths": "all"}, "paths must be"),
    ],
)
def test_impossible_arguments_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        ACmix2d(**{"in_channels": 8, "out_channels": 8, **arguments})


@pytest.mark.parametrize(
    ("channels", "heads"),
    [
        (8, 4), (16, 4), (64, 4), (96, 4), (128, 4), (256, 4), (320, 5), (384, 6), (512, 8), (1024, 16),
        (6, 3), (10, 2), (7, 1), (130, 2), (257, 1), (1, 1),
    ],
)  # fmt: skip
def test_auto_heads(channels, heads):
    """Four heads for up to 256 channels, then heads of 64 channels. Fewer if these do not divide the width."""
    layer = ACmix2d(4, channels)
    assert layer.heads == heads and f"heads={heads}" in repr(layer)
    assert ACmix2d(4, channels, heads="auto").state_dict().keys() == layer.state_dict().keys()


def test_numbers_may_be_those_of_numpy():
    """Widths are often computed with it. A layer keeps plain ones, because exporters know no others."""
    two = np.int64(2)
    layer = ACmix2d(4 * two, np.int32(16), np.int64(3), two, heads=two, kernel_att=np.int64(5), dilation=two)
    assert repr(layer) == repr(ACmix2d(8, 16, 3, 2, heads=2, kernel_att=5, dilation=2))
    assert {type(value) for name, value in vars(layer).items() if name in signature(ACmix2d).parameters} == {int, str}


@pytest.mark.parametrize("arguments", [(8, 16), (8, 16, 3), (8, 16, 5, 2), (8, 10, 1, 3)])
def test_arguments_by_position_are_those_of_a_convolution(arguments):
    """The order (in, out, kernel, stride) is that of nn.Conv2d, Ultralytics' Conv and config files."""
    inputs, outputs, kernel, stride = (*arguments, *(3, 1)[len(arguments) - 2 :])
    layer, x = ACmix2d(*arguments), torch.randn(1, 8, 11, 8)
    assert layer(x).shape == nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)(x).shape
    assert (layer.kernel_conv, layer.stride, layer.kernel_att) == (kernel, stride, 7)


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((3, 1, 1), {}, r"too many positional arguments\. Expected at most four.* Omit the padding of nn\.Conv2d"),
        (
            (),
            {"kernel_size": 3},
            r"unknown argument kernel_size=3\. Expected kernel_conv.* or kernel_att.* Pass",
        ),
        ((), {"padding": 1}, r"unknown argument padding=1\. Padding is always same-style.* Omit the argument"),
        ((), {"groups": 2}, r"unknown argument groups=2\. The layer is always dense"),
        ((), {"head": 2}, r"unknown argument head=2\. Expected in_channels, .*, heads, .* Correct or omit"),
    ],
)
def test_other_arguments_of_a_convolution_are_explained(arguments, keywords, message):
    with pytest.raises(TypeError, match=f"ACmix2d: {message}"):
        ACmix2d(8, 16, *arguments, **keywords)


@pytest.mark.parametrize(
    "build", [partial(WindowACmix, 8, window=(2, 2)), partial(ReducedACmix, 8)], ids=["window", "reduced"]
)
def test_impossible_kernels_and_heads_of_the_other_layers(build):
    """Without the check, a layer with only the convolution path would return a map of another size."""
    with pytest.raises(ValueError, match=r"kernel_conv=4 is even\. Expected an odd size"):
        build(heads=2, kernel_conv=4, paths="convolution")
    with pytest.raises(ValueError, match=r"heads=0 is not positive\. Expected a divisor of dim=8"):
        build(heads=0)


def test_inputs_of_a_wrong_shape_are_rejected():
    for shape in ((2, 4, 5, 5), (4, 5, 5), (8, 5), (1, 1, 8, 5, 5)):
        message = re.escape(f"has the shape {shape}. Expected (B, 8, H, W) or (8, H, W). Permute the dimensions")
        with pytest.raises(ValueError, match=message):
            ACmix2d(8, 8)(torch.randn(shape))


def test_script_is_rejected_with_advice():
    with pytest.raises(TypeError, match=r"Use torch\.compile or torch\.export"):
        torch.jit.script(nn.Sequential(ACmix2d(8, 8)))
