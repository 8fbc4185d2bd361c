"""SAN and ACmix-SAN: the released networks' logits and counts, the modules written as loops, and compilation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.golden_networks import SAN_AND_PVT, golden_input, golden_state
from support.networks import SHALLOW
from torch import nn

from acmix_zoo import create_model, load_weights
from acmix_zoo.layers.complexity import complexity
from acmix_zoo.layers.san_attention import PairwiseSAM, PatchwiseSAM
from acmix_zoo.models.acmix_san import LAYERS, SAN

SANS = [entry for entry in SAN_AND_PVT if entry["family"] == "san"]
# Parameters as the released networks have them (those of 15 and patchwise 19 are published to the nearest thousand).
COUNTS = {
    (10, "pairwise"): 10_531_848, (15, "pairwise"): 14.065e6, (19, "pairwise"): 17_596_156,
    (10, "patchwise"): 11_841_124, (15, "patchwise"): 16_181_310, (19, "patchwise"): 20.518e6,
}  # fmt: skip


def small(form: str, **kwargs) -> SAN:
    return SAN((1, 1, 1), form, kernels=(3, 7, 7), widths=(32, 64, 128), num_classes=5, **kwargs)


@pytest.mark.parametrize("entry", SANS, ids=[entry["name"] for entry in SANS])
def test_logits_of_the_released_networks(entry) -> None:
    """Where the mode is "train", batch norm takes the statistics of the batch, which costs a digit."""
    network = SAN(LAYERS[int(entry["config"]["depth"])], entry["config"]["sa_type"]).train(entry["mode"] == "train")
    load_weights(network, golden_state(entry))  # strict, with the original names
    with torch.no_grad():
        logits = network(golden_input(entry))
    expected = torch.tensor(entry["logits"])
    tolerance = 1e-3 if entry["mode"] == "train" else 1e-4
    assert (logits - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(("depth", "form"), COUNTS)
def test_parameter_counts(depth: int, form: str) -> None:
    with torch.device("meta"):
        network = SAN(LAYERS[depth], form)
    count = sum(p.numel() for p in network.parameters())
    published = COUNTS[depth, form]
    assert count == published if isinstance(published, int) else round(count, -3) == published


@pytest.mark.parametrize("form", ["pairwise", "patchwise"])
class TestNetwork:
    def test_every_parameter_has_a_gradient(self, form: str) -> None:
        """Except for biases that a batch norm or the difference of positions cancels."""
        network = small(form)
        network(torch.randn(4, 3, 64, 48)).logsumexp(1).sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.any() or name.endswith("conv_p.bias"), name

    def test_gradient_checkpointing_gives_the_same_logits(self, form: str) -> None:
        network, x = small(form).eval(), torch.randn(2, 3, 32, 32)
        expected = network(x)
        network.set_grad_checkpointing()
        assert torch.equal(network(x), expected)

    def test_maps_and_sizes(self, form: str) -> None:
        network = small(form).eval()
        for size in ((64, 64), (33, 57), (8, 8)):
            maps = network.forward_intermediates(torch.randn(1, 3, *size), intermediates_only=True)
            assert [tuple(m.shape) for m in maps] == [
                (1, info["num_chs"], *(-(-side // info["reduction"]) for side in size))  # rounded up
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


@pytest.mark.parametrize(("depth", "published"), [(10, 1.865e9), (15, 2.583e9), (19, 3.259e9)])
def test_macs(depth: int, published: float) -> None:
    """Our counts equal the published ones to the last digit if we count what they do.

    They add two operations per output of a batch norm, and one per output of a ReLU, input of a pooling and bias.
    """
    with torch.device("meta"):
        network = SAN(LAYERS[depth], "patchwise").eval()
    macs, others = complexity(network, (3, 224, 224)).macs, 0

    def add(module: nn.Module, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        nonlocal others
        if isinstance(module, nn.BatchNorm2d):
            others += 2 * out.numel()
        elif isinstance(module, nn.MaxPool2d):
            others += inputs[0].numel()
        elif isinstance(module, nn.ReLU) or getattr(module, "bias", None) is not None:
            others += out.numel()

    for module in network.modules():
        module.register_forward_hook(add)
    with torch.no_grad():
        network(torch.empty(1, 3, 224, 224, device="meta"))
    assert round((macs + others) / 1e9, 3) == published / 1e9
    assert macs == pytest.approx(published, rel=0.05)


def by_loops(layer: PairwiseSAM | PatchwiseSAM, x: torch.Tensor) -> torch.Tensor:
    """Compute a module in eval mode with loops over positions, channels and neighbours."""
    b, _, h, w = x.shape
    q, k, v = layer.conv1(x), layer.conv2(x), layer.conv3(x)
    pairwise, reach = isinstance(layer, PairwiseSAM), layer.kernel // 2
    offsets = [(y, z) for y in range(-reach, reach + 1) for z in range(-reach, reach + 1)]

    def at(i: int, size: int) -> int:  # reflection
        return size - 1 - abs(i % (2 * size - 2) - (size - 1))

    def place(y: int, z: int) -> torch.Tensor:
        spot = torch.stack([torch.linspace(-1, 1, n, dtype=x.dtype)[i] for n, i in ((w, z), (h, y))])
        return layer.conv_p(spot.view(1, 2, 1, 1)).flatten()

    rows = []
    for y in range(h):
        for z in range(w):
            near = [(at(y + dy, h), at(z + dz, w)) for dy, dz in offsets]
            if pairwise:
                of = [torch.cat([q[:, :, y, z] - k[:, :, i, j], (place(y, z) - place(i, j)).expand(b, 2)], 1)
                      for i, j in near]  # fmt: skip
                weights = layer.conv_w(torch.stack(of, 2).unsqueeze(3))[..., 0].softmax(2)  # (B, wc, k²)
            else:
                patch = torch.stack([k[:, :, i, j] for i, j in near], 2).flatten(1)  # (B, rel·k²)
                found = layer.conv_w(torch.cat([q[:, :, y, z], patch], 1)[:, :, None, None])
                weights = found.view(b, layer.shared, -1)  # (B, wc, k²)
            sums = [
                sum(weights[:, c % layer.shared, n] * v[:, c, i, j] for n, (i, j) in enumerate(near))
                for c in range(layer.out)
            ]
            attention = torch.stack(sums, 1)
            if layer.paths == "attention":
                rows.append(attention)
                continue
            convolution = torch.zeros_like(attention)
            for dy in (-1, 0, 1):
                for dz in (-1, 0, 1):
                    if 0 <= y + dy < h and 0 <= z + dz < w:
                        here = torch.cat([t[:, :, y + dy, z + dz] for t in (q, k)], 1)
                        mixed = v[:, :, y + dy, z + dz] + F.linear(here, layer.lift.weight[..., 0, 0], layer.lift.bias)
                        taps = layer.static_weight[:, 0, dy + 1, dz + 1]  # (wc,): channel c has c mod wc
                        convolution = convolution + mixed * taps.repeat(layer.out // layer.shared)
            rows.append(layer.alpha * attention + layer.beta * convolution)
    return torch.stack(rows, 2).view(b, -1, h, w)


@pytest.mark.parametrize("paths", ["attention", "both"])
@pytest.mark.parametrize(("kind", "kernel", "size"), [(PairwiseSAM, 3, (4, 3)), (PatchwiseSAM, 5, (4, 5))])
def test_modules_equal_loops(kind, kernel: int, size: tuple[int, int], paths: str) -> None:
    layer = kind(64, kernel, paths=paths).double().eval()
    for tensor in layer.state_dict().values():
        if tensor.dtype.is_floating_point:
            tensor.mul_(1 + 0.2 * torch.rand_like(tensor))
    results = []
    for f in (layer, lambda x: by_loops(layer, x)):
        torch.manual_seed(1)
        x = torch.randn(2, 64, *size, dtype=torch.float64, requires_grad=True)
        out = f(x)
        grads = torch.autograd.grad((out * torch.randn_like(out)).sum(), [x, *layer.parameters()])
        results.append((out, *grads))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("depth", [10, 15, 19])
def test_published_costs(depth: int) -> None:
    """The reconstruction's parameters and MACs, counted like those of the baselines, round to the published ones."""
    published = {10: (12.1, 1.9, 1.865), 15: (16.6, 2.7, 2.583), 19: (21.2, 3.4, 3.259)}[depth]
    with torch.device("meta"):
        acmix, plain = (complexity(create_model(name)) for name in (f"acmix_san{depth}", f"san{depth}_patchwise"))
    assert round(acmix.params / 1e6, 1) == published[0]
    assert round(published[2] + (acmix.macs - plain.macs) / 1e9, 1) == published[1]
    assert 0.25e6 < acmix.params - plain.params < 0.69e6


@pytest.mark.parametrize("paths", ["both", "convolution"])
def test_convolution_alone(paths: str) -> None:
    layer = PatchwiseSAM(64, 5, paths=paths).eval()
    x = torch.randn(1, 64, 9, 7)
    if paths == "both":
        with torch.no_grad():
            layer.alpha.zero_()
            layer.beta.fill_(1)
        alone = PatchwiseSAM(64, 5, paths="convolution").eval()
        alone.load_state_dict(layer.state_dict(), strict=False)
        torch.testing.assert_close(layer(x), alone(x))
    else:
        assert layer(x).shape == (1, 16, 9, 7)


def test_module_errors() -> None:
    with pytest.raises(ValueError, match=r"channels=48, .* Expected channels to be a multiple of 16 and of 4·share=32"):
        PatchwiseSAM(48, 7)
    with pytest.raises(ValueError, match=r"SAN: paths must be .*, got 'none'"):
        create_model("acmix_san_pico", paths="none")
    with pytest.raises(ValueError, match="kernel=4"):
        PairwiseSAM(64, 4)


@pytest.fixture
def pairwise_network() -> nn.Module:
    """Return a shallow pairwise SAN in eval mode."""
    arguments = {"form": "pairwise", "paths": "attention", **SHALLOW["acmix_san_pico"]}
    return create_model("acmix_san_pico", **arguments).eval()


@pytest.mark.slow
def test_pairwise_networks_compile_and_export(pairwise_network: nn.Module) -> None:
    """test_compilation.py tests the same for patchwise networks."""
    network, x = pairwise_network, torch.randn(2, 3, 32, 32)
    expected = network(x)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
    exported = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("b")},)).module()
    torch.testing.assert_close(exported(torch.cat([x, x]))[:2], expected, rtol=1e-4, atol=1e-5)


def test_pairwise_networks_run_in_half_precision(pairwise_network: nn.Module) -> None:
    network, x = pairwise_network, torch.randn(2, 3, 32, 32)
    expected = network(x)
    for dtype in (torch.bfloat16, torch.float16):
        out = network.to(dtype)(x.to(dtype))
        assert out.dtype == dtype and (out.float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("kernels", [(3,), pytest.param((3, 5), marks=pytest.mark.slow)], ids=["1 stage", "2 stages"])
def test_compiled_training_gives_the_same_gradients(kernels: tuple[int, ...]) -> None:
    stages = len(kernels)
    network = SAN((1,) * stages, "patchwise", paths="both", kernels=kernels, widths=(32, 64)[:stages], num_classes=5)
    x = torch.randn(2, 3, 16, 16)
    results = []
    for run in (network, torch.compile(network, fullgraph=True, backend="aot_eager")):
        network.zero_grad()
        run(x).square().sum().backward()
        results.append([p.grad.clone() for p in network.parameters()])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_small_and_odd_images() -> None:
    network = create_model("acmix_san10", num_classes=5, layers=(1, 1, 1, 1, 1)).eval()
    with torch.no_grad():
        for size in ((65, 97), (8, 3), (1, 1)):
            assert network(torch.randn(1, 3, *size)).isfinite().all()


def test_an_unknown_form_is_rejected() -> None:
    with pytest.raises(ValueError, match='SAN: form must be "pairwise" or "patchwise", got \'pair-wise\''):
        create_model("acmix_san_pico", form="pair-wise")
