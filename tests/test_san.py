"""SAN: the logits and the parameter counts of its released networks, and what any network here can do."""

from __future__ import annotations

import pytest
import torch
from golden_networks import SAN_AND_PVT, golden_input, golden_state
from torch import nn

from acmix_zoo import load_weights
from acmix_zoo.layers.complexity import complexity
from acmix_zoo.layers.san import PatchwiseSAM
from acmix_zoo.models.acmix_san import SAN, Halve

SANS = [entry for entry in SAN_AND_PVT if entry["family"] == "san"]
LAYERS = {"10": (2, 1, 2, 4, 1), "15": (3, 2, 3, 5, 2), "19": (3, 3, 4, 6, 3)}
# Parameters as the released networks have them (those of 15 and patchwise 19 are published to the nearest thousand).
COUNTS = {
    ("10", "pairwise"): 10_531_848, ("15", "pairwise"): 14.065e6, ("19", "pairwise"): 17_596_156,
    ("10", "patchwise"): 11_841_124, ("15", "patchwise"): 16_181_310, ("19", "patchwise"): 20.518e6,
}  # fmt: skip


def small(form: str, **kwargs) -> SAN:
    return SAN((1, 1, 1), form, kernels=(3, 7, 7), widths=(32, 64, 128), num_classes=5, **kwargs)


@pytest.mark.parametrize("entry", SANS, ids=[entry["name"] for entry in SANS])
def test_logits_of_the_released_networks(entry) -> None:
    """Where the mode is "train", batch norm takes the statistics of the batch, which costs a digit."""
    network = SAN(LAYERS[entry["config"]["depth"]], entry["config"]["sa_type"]).train(entry["mode"] == "train")
    load_weights(network, golden_state(entry))  # strict, under the original names
    with torch.no_grad():
        logits = network(golden_input(entry))
    expected = torch.tensor(entry["logits"])
    tolerance = 1e-3 if entry["mode"] == "train" else 1e-4
    assert (logits - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(("depth", "form"), COUNTS)
def test_parameter_counts(depth: str, form: str) -> None:
    with torch.device("meta"):
        network = SAN(LAYERS[depth], form)
    count = sum(p.numel() for p in network.parameters())
    published = COUNTS[depth, form]
    assert count == published if isinstance(published, int) else round(count, -3) == published


@pytest.mark.parametrize("form", ["pairwise", "patchwise"])
class TestNetwork:
    def test_every_parameter_learns(self, form: str) -> None:
        """All but the biases that a batch norm or the difference of positions cancels."""
        network = small(form)
        network(torch.randn(4, 3, 64, 48)).logsumexp(1).sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.any() or name.endswith("conv_p.bias"), name

    def test_checkpointing_is_equal(self, form: str) -> None:
        network, x = small(form).eval(), torch.randn(2, 3, 32, 32)
        expected = network(x)
        network.set_grad_checkpointing()
        assert torch.equal(network(x), expected)

    def test_maps_and_sizes(self, form: str) -> None:
        network = small(form).eval()
        for size in ((64, 64), (33, 57), (8, 8)):
            maps = network.forward_intermediates(torch.randn(1, 3, *size), intermediates_only=True)
            assert [tuple(m.shape) for m in maps] == [
                (1, info["num_chs"], size[0] // info["reduction"], size[1] // info["reduction"])
                for info in network.feature_info
            ]

    def test_memory_format_and_dtypes(self, form: str) -> None:
        network, x = small(form).eval(), torch.randn(2, 3, 40, 40)
        with torch.no_grad():
            expected = network(x)
            last = network.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
            torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)
            for dtype in (torch.bfloat16, torch.float16, torch.float64):
                assert network.to(dtype)(x.to(dtype)).dtype == dtype

    def test_classifier(self, form: str) -> None:
        network = small(form)
        network.reset_classifier(3)
        assert network(torch.randn(2, 3, 32, 32)).shape == (2, 3)
        assert network.forward_head(network.forward_features(torch.randn(2, 3, 32, 32)), pre_logits=True).shape == (
            2,
            128,
        )


@pytest.mark.parametrize(("depth", "published"), [("10", 1.865e9), ("15", 2.583e9), ("19", 3.259e9)])
def test_macs(depth: str, published: float) -> None:
    """The published figures count, beside multiplications, two operations for every number that a batch norm gives and
    one for each of ReLU, pooling's inputs and biases: with those ours are the same to the last digit printed."""
    with torch.device("meta"):
        network = SAN(LAYERS[depth], "patchwise").eval()
    macs, more = complexity(network, (3, 224, 224)).macs, 0

    def add(module: nn.Module, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        nonlocal more
        if isinstance(module, nn.BatchNorm2d):
            more += 2 * out.numel()
        elif isinstance(module, Halve):
            more += inputs[0].numel()
        elif isinstance(module, nn.ReLU) or getattr(module, "bias", None) is not None:
            more += out.numel()
        elif isinstance(module, PatchwiseSAM):  # the bias of its last convolution
            more += module.kernel**2 * module.shared * out[0, 0].numel()

    for module in network.modules():
        module.register_forward_hook(add)
    with torch.no_grad():
        network(torch.empty(1, 3, 224, 224, device="meta"))
    assert round((macs + more) / 1e9, 3) == published / 1e9
    assert macs == pytest.approx(published, rel=0.05)
