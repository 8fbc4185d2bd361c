"""The tables of `acmix-zoo list` and `info`, compared with the networks."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from support.commands import run_command
from support.networks import deeper_are_slow
from support.weight_folders import SHIPPED
from torch import nn

from acmix_zoo import list_models
from acmix_zoo.cli.info import verdict
from acmix_zoo.cli.list import network_costs
from acmix_zoo.layers import ACmix2d
from acmix_zoo.layers.complexity import complexity
from acmix_zoo.layers.cost import StageCounts, TwoStageLayer
from acmix_zoo.layers.stages import StageCost, stage_table
from acmix_zoo.models.published import published


class TestList:
    def test_networks_and_their_costs(self, capsys: pytest.CaptureFixture[str]) -> None:
        *lines, note = run_command(capsys, "list").splitlines()
        assert [line.split()[0] for line in lines] == ["name", *list_models()]
        rows = {line.split()[0]: re.split("  +", line)[1:] for line in lines}
        swin = [
            "28,649,908",
            "4.65G",
            "3×224×224",
            "30M, 4.6G",
            "81.9 %",
            "official_in1k (download), swin_in1k (download)",
        ]
        assert rows["acmix_swin_t"] == swin
        assert rows["san15_patchwise"] == ["16,181,310", "2.48G", "3×224×224", "16.2M, 2.6G", "78.0 %", "none"]
        assert rows["acmix_pvt_s"][3] == "25M, 3.9G *" and note.startswith("* a reconstruction")
        assert "reconstruction" not in run_command(capsys, "list", "*swin*")

    def test_weights(self, capsys: pytest.CaptureFixture[str]) -> None:
        lines = run_command(capsys, "list", "acmix_*resnet_pico*", "--pretrained").splitlines()
        assert len(lines) == 2 and "93.87 % accuracy, fashion_mnist test  shipped" in lines[1]
        assert "81.9 % accuracy, imagenet-1k val (the authors')" in run_command(
            capsys, "list", "acmix_swin_t*", "--pretrained"
        )
        assert "It matches weights. Add --pretrained to list them" in run_command(capsys, "list", "fcos*", code=1)
        assert "% mAP, bccd test  shipped" in run_command(capsys, "list", "fcos_*", "--pretrained")
        assert "no weights match '*vit*'" in run_command(capsys, "list", "*vit*", "--pretrained", code=1)

    @pytest.mark.parametrize("name", deeper_are_slow(network_costs()))
    def test_listed_costs_are_those_of_the_networks(self, name: str) -> None:
        """`python -m tools.count_costs` writes the table. The counts are within 3 % of the published ones, or within
        the rounding of the printed digits. For Swin-T, and for ResNet's MACs, the authors' own code has less than
        they printed. SAN's published MACs include element-wise operations, see tests/models/test_acmix_san.py."""
        with torch.device("meta"):
            found = complexity(timm.create_model(name))
        assert network_costs()[name] == (found.params, found.macs, "×".join(map(str, found.input_size)))
        params, macs, _ = published(name)
        for counted, printed, tolerance in (
            (found.params / 1e6, params, 0.05 if name == "acmix_swin_t" else 0.03),
            (found.macs / 1e9, macs, 0.06 if "resnet" in name or "san" in name else 0.03),
        ):
            if printed:
                number = float(printed[:-1])
                digit = 10.0 ** -len(printed[:-1].partition(".")[2])
                assert abs(counted - number) <= max(tolerance * number, digit / 2)

    def test_every_network_has_a_cost(self) -> None:
        assert list(network_costs()) == list_models()


class TestInfo:
    def test_layers_and_their_stages(self, capsys: pytest.CaptureFixture[str]) -> None:
        lines = run_command(capsys, "info", "acmix_pvt_t").splitlines()
        assert lines[0] == "acmix_pvt_t: 13.4M parameters, 2.02G MACs at 3×224×224"
        facts = lines[1:5]
        assert (
            facts[0] == "input    3×224×224, mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225), bicubic, crop 0.875"
        )
        assert facts[1:] == ["classes  1000", "weights  none", "licence  mit"]
        lines[1:5] = []
        assert len(lines) == 2 + 8 + 3
        # 64 channels: q, k, v and the 8×8 patches; 56² positions, 7² keys.
        first, second = (64**2 + 64) * 3 + 64**2 * 64 + 3 * 64, 9 * 3 + 9 + 81 * 64 + 2
        assert re.split("  +", lines[2])[:4:3] == ["block1.0.attn", f"{second:,}"] and f"  {first:,}  " in lines[2]
        assert lines[-1] == (
            "Stage I dominates: it has 96 % of the parameters and 64 % of the MACs of both stages. In 2 of 8 layers "
            "(block1.0.attn, block1.1.attn), stage II has at least as many parameters or MACs."
        )
        assert "3×448×448" in run_command(capsys, "info", "acmix_san10", "--size", "448").splitlines()[0]

    def test_an_unknown_model_is_rejected(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "unknown model 'acmix_resnet5'" in run_command(capsys, "info", "acmix_resnet5", code=1)

    def test_any_network_of_timm(self, capsys: pytest.CaptureFixture[str]) -> None:
        lines = run_command(capsys, "info", "resnet18").splitlines()
        assert lines[0] == "resnet18: 11.7M parameters, 1.81G MACs at 3×224×224"
        assert lines[3].startswith("weights  ") and "a1_in1k" in lines[3]
        assert lines[-1].startswith("This network has no ACmix layers")

    @pytest.mark.parametrize("name", ["acmix_resnet_pico.fashion_mnist", SHIPPED])
    def test_weights(self, name: object, capsys: pytest.CaptureFixture[str]) -> None:
        lines = run_command(capsys, "info", str(name)).splitlines()
        assert lines[0] == f"{name}: 653K parameters, 10.4M MACs at 3×32×32"
        assert lines[2].startswith("classes  10: T-shirt/top, Trouser")
        assert lines[3] == "weights  acmix_resnet_pico.fashion_mnist, val top1 94.25 %, test top1 93.87 %"
        assert lines[4] == "licence  mit"

    def test_the_last_line_says_which_stage_dominates(self) -> None:
        more, less = StageCounts(5, 2), StageCounts(1, 2)
        good, bad = StageCost("a", more, more), StageCost("b", more, less)
        assert verdict([good], good).endswith("and more parameters and MACs than stage II in every layer.")
        assert verdict([good, bad], bad).startswith("Stage I does not dominate: it has 71 % of the parameters and 33 %")

    @pytest.mark.parametrize("paths", ["both", "attention", "convolution"])
    @pytest.mark.parametrize("name", ["acmix_resnet_pico", "acmix_swin_pico", "acmix_san_pico", "acmix_pvt_pico"])
    def test_stages_and_the_rest_add_up_to_the_network(self, name: str, paths: str) -> None:
        """Nothing is counted twice and nothing is left out."""
        model = timm.create_model(name, paths=paths)
        layers, total, rest = stage_table(model)
        counted = complexity(model)
        assert sum(total.params) + sum(rest.params) == counted.params
        assert total.macs == tuple(sum(row.macs[i] for row in layers) for i in (0, 1))
        assert rest.macs[0] == sum(linear_macs(m, n) for m, n in layers_outside(model))


def layers_outside(model: nn.Module) -> list[tuple[nn.Module, int]]:
    """Return every convolution and linear layer outside the two stages, with the positions that it is applied to."""
    inside = {n for n, m in model.named_modules() if isinstance(m, TwoStageLayer)}
    seen: list[tuple[nn.Module, int]] = []
    hooks = [
        module.register_forward_hook(lambda m, args, out: seen.append((m, out.numel() // output_channels(m))))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        and (name.endswith("attn.proj") or not any(name.startswith(f"{layer}.") for layer in inside))
    ]
    model.eval()(torch.zeros(1, *model.pretrained_cfg["input_size"]))
    for hook in hooks:
        hook.remove()
    return seen


def output_channels(module: nn.Module) -> int:
    return module.out_channels if isinstance(module, nn.Conv2d) else module.out_features


def linear_macs(module: nn.Module, positions: int) -> int:
    return positions * module.weight.numel()


def test_the_stages_of_a_single_layer() -> None:
    layers, total, rest = stage_table(nn.Sequential(ACmix2d(8, 16, stride=2)), (8, 9, 7))
    full, strided = 63, 5 * 4
    assert layers[0].macs == (full * 3 * 8 * 16, strided * 2 * 49 * 16 + full * 27 * 16 + strided * 81 * 16)
    assert layers[0].params == (3 * 16 * 9, 4 * 2 + 4 + 9 * 12 + 81 * 16 + 2) and rest == StageCost(
        rest.name, (0, 0), (0, 0)
    )
    assert total.params == layers[0].params
