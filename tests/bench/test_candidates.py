"""Candidates of the benchmark: their names, and that baselines compute the same function."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from acmix_zoo import ACmix2d, create_model
from acmix_zoo.bench.candidates import Candidate, Variant, build, is_network, parse_name, use_candidate_backend
from acmix_zoo.bench.passes import Pass
from acmix_zoo.bench.released import ReleasedACmix2d
from acmix_zoo.ops.dispatch import choose_tile, plan_attention
from acmix_zoo.ops.sliding_window import SlidingWindow
from acmix_zoo.weights.shipped import checkpoints_root

WINDOW = SlidingWindow(7)


class TestNames:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("resnet18", Variant("resnet18", "", False, False)),
            ("resnet18+compile", Variant("resnet18", "", True, False)),
            ("acmix2d:64x56@tile8x16", Variant("acmix2d:64x56", "tile8x16", False, False)),
            ("acmix_resnet50@released+compile", Variant("acmix_resnet50", "released", True, False)),
            ("acmix_resnet50@python+deploy", Variant("acmix_resnet50", "python", False, True)),
            ("resnet18+deploy+compile", Variant("resnet18", "", True, True)),
            ("org/name@main", Variant("org/name@main", "", False, False)),
            ("hf-hub:org/name@main@reference", Variant("hf-hub:org/name@main", "reference", False, False)),
        ],
    )
    def test_parts(self, name: str, expected: Variant) -> None:
        assert parse_name(name) == expected

    def test_networks_and_layers(self) -> None:
        assert is_network("acmix_resnet50@global") and is_network("hf-hub:org/name@main")
        assert not is_network("acmix2d:64x56s2@global") and not is_network("unfold:64x56k3")

    @pytest.mark.parametrize(
        ("candidate", "message"),
        [
            (("acmix_resnet5",), "unknown model 'acmix_resnet5'.*acmix_resnet50"),
            (("acmix2:64x56",), "unknown candidate 'acmix2:64x56'.*closest name is acmix2d:CHANNELSxSIZE"),
            (("unfold:12x7",), "12 channels are not a multiple of 8.*Use 8 channels"),
            (("resnet18@fast",), "unknown backend @fast. Expected @released, @reference.* or a tile such as @tile8x16"),
            (("resnet18+deploy", 1, 0, True), r"resnet18\+deploy cannot be trained. Measure inference"),
            (("acmix2d:8x8+deploy",), r"acmix2d:8x8\+deploy is a layer without batch norms to fold. Remove \+deploy"),
            (("conv3x3:8x8@released",), "@released replaces ACmix2d layers, and conv3x3:8x8@released has none. Remove"),
            (("resnet18@released",), "@released replaces ACmix2d layers, and resnet18@released has none"),
            (("acmix2d:8x8@tile0x8",), "unknown backend @tile0x8"),
            (("acmix2d:8x0",), "unknown candidate 'acmix2d:8x0'.*closest name is acmix2d:CHANNELSxSIZE"),
            (
                ("resnet18", 1, 0, False, 1, "int8"),
                "cannot measure the dtype 'int8'. Expected one of float16, bfloat16",
            ),
        ],
    )
    def test_errors(self, candidate: tuple[object, ...], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            build(Candidate(*candidate))  # type: ignore[arg-type]


class TestWeights:
    """Everything that the command line accepts as a network can be measured."""

    def test_name_with_a_tag_and_weight_folder(self) -> None:
        name = "acmix_resnet_pico.fashion_mnist"
        assert build(Candidate(name)).input_shape == (3, 32, 32)
        module = build(Candidate(str(checkpoints_root() / name))).module
        torch.testing.assert_close(module.state_dict(), create_model(name, pretrained=True).state_dict())

    def test_weights_can_be_counted_without_memory(self) -> None:
        folder = str(checkpoints_root() / "acmix_resnet_pico.fashion_mnist")
        with torch.device("meta"):
            module = build(Candidate(folder, device="meta")).module
        assert {p.device.type for p in module.parameters()} == {"meta"}

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="missing"):
            build(Candidate(str(tmp_path / "missing")))


@pytest.mark.parametrize("name", ["acmix_resnet_pico", "test_resnet"])
def test_deployed_networks_compute_the_same_without_batch_norms(name: str) -> None:
    plain, deployed = (build(Candidate(n)) for n in (name, f"{name}+deploy"))
    x = torch.randn(2, *plain.input_shape)
    torch.testing.assert_close(deployed.module(x), plain.module(x), rtol=1e-3, atol=1e-4)
    assert not [m for m in deployed.module.modules() if isinstance(m, torch.nn.BatchNorm2d)]


class TestBaselines:
    @pytest.mark.parametrize(("stride", "size"), [(1, 9), (2, 12), (2, 13)])
    def test_authors_computation(self, stride: int, size: int) -> None:
        torch.manual_seed(0)
        layer = ACmix2d(8, 16, stride=stride)
        x = torch.randn(2, 8, size, size + 3)
        torch.testing.assert_close(ReleasedACmix2d(layer)(x), layer(x), rtol=1e-4, atol=1e-5)

    def test_what_the_authors_code_does_not_support(self) -> None:
        with pytest.raises(ValueError, match="only supports both paths and dilation 1"):
            ReleasedACmix2d(ACmix2d(4, 4, dilation=2))

    def test_layers(self) -> None:
        outs = []
        for name in ("acmix2d:16x12s2", "acmix2d:16x12s2@reference", "released:16x12s2"):
            module, shape = build(Candidate(name))
            outs.append(module(torch.linspace(-1, 1, 16 * 144).view(1, *shape)))
            Pass(Candidate(name, batch=1, train=True))()
        for out in outs[1:]:
            torch.testing.assert_close(out, outs[0], rtol=1e-4, atol=1e-4)

    def test_aggregation(self) -> None:
        fast, unfold = (build(Candidate(f"{kind}:16x9k5", batch=2)).module for kind in ("aggregate", "unfold"))
        value = torch.randn(2, 16, 9, 9)
        torch.testing.assert_close(fast(value), unfold(value), rtol=1e-4, atol=1e-5)
        assert fast.macs == 25 * 16 * 81

    def test_networks(self) -> None:
        small = dict(size=64, model_kwargs={"layers": [1, 1, 1]})  # the baseline needs maps larger than half a window
        names = ("acmix_resnet_pico", "acmix_resnet_pico@released")
        fast, released = (build(Candidate(name, **small)).module.eval() for name in names)
        x = torch.randn(1, fast.in_chans, 64, 64)
        torch.testing.assert_close(fast(x), released(x), rtol=1e-3, atol=1e-4)


class TestPass:
    def test_backend_and_tile_are_used_while_the_candidate_runs(self) -> None:
        with use_candidate_backend(Candidate("acmix2d:16x20@tile8x12")):
            assert plan_attention(20, 20, WINDOW, device="cpu").tile == (8, 12)
            assert plan_attention(14, 14, WINDOW, device="cpu").tile == (8, 12)  # instead of global
            assert plan_attention(20, 20, WINDOW, device="cuda").tile != (8, 12)
        with use_candidate_backend(Candidate("acmix2d:16x20@global")):
            assert plan_attention(20, 20, WINDOW).backend == "global"
        assert plan_attention(20, 20, WINDOW).tile == choose_tile(20, 20, WINDOW)

    def test_autocast_keeps_float32_weights(self) -> None:
        candidate = Candidate("acmix2d:16x18", batch=1, train=True, threads=1, dtype="bfloat16", autocast=True)
        one_pass, dtypes = Pass(candidate), []
        one_pass.module.register_forward_hook(lambda _, __, out: dtypes.append(out.dtype))
        one_pass()
        assert dtypes == [torch.bfloat16]
        assert {p.dtype for p in one_pass.module.parameters()} == {torch.float32}
        assert all(p.grad is not None for p in one_pass.module.parameters())
        one_pass.release()
        assert all(p.grad is None for p in one_pass.module.parameters())
