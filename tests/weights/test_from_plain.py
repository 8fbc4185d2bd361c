"""ACmix networks from plain ones: a Swin's logits exactly, a ResNet's as near as the convolution path can come."""

from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from acmix_zoo import ACmix2d, create_model, from_pvt, from_resnet, from_san, from_swin, load_weights
from acmix_zoo.models.plain_swin import from_plain_swin

SMALL = dict(img_size=64, window_size=4, embed_dim=32, depths=(2, 2, 1), num_heads=(2, 4, 8), num_classes=7)


def moved(model: nn.Module) -> nn.Module:
    """Every parameter away from its start."""
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return model.eval()


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal but for the rounding of another processor's kernels; here they were equal to the bit."""
    return bool((found - expected).abs().max() <= 1e-6 * expected.abs().max())


def swin(**kwargs) -> nn.Module:
    return moved(timm.create_model("swin_tiny_patch4_window7_224", **{**SMALL, **kwargs}))


class TestSwin:
    @pytest.mark.parametrize(
        "kwargs",
        [
            {},
            {"img_size": (64, 128), "in_chans": 1},
            {"window_size": (2, 8), "num_classes": 0},
            {"img_size": 32, "window_size": 8, "mlp_ratio": 2.0},
            {"patch_size": 2},
        ],
        ids=str,
    )
    def test_logits_are_the_plain_swins(self, kwargs) -> None:
        plain = swin(**kwargs)
        ours = from_swin(plain)
        assert ours.training
        size = plain.patch_embed.img_size
        x = torch.randn(2, kwargs.get("in_chans", 3), *size)
        expected = plain(x)
        assert close(ours.eval()(x), expected) and expected.std() > 0.05
        x = x.double()
        torch.testing.assert_close(ours.double()(x), plain.double()(x), rtol=0, atol=1e-13)

    def test_wrapped_weights(self) -> None:
        """Weights from a training loop with DDP around the network and torch.compile around its blocks."""
        plain = swin()
        state = {f"module.{key.replace('.mlp.', '.mlp._orig_mod.')}": v for key, v in plain.state_dict().items()}
        x = torch.randn(1, 3, 64, 64)
        assert close(from_swin({"model_state_dict": state}, img_size=64).eval()(x), plain(x))

    @pytest.mark.parametrize("size", [(224, 224), (200, 168), (64, 96)])
    def test_torchvisions(self, size: tuple[int, int]) -> None:
        """Maps that are no multiple of the window are padded before the roll there and here; timm pads after it."""
        plain = moved(torchvision.models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [7, 7], num_classes=5))
        x = torch.randn(1, 3, *size)
        assert close(from_swin(plain).eval()(x), plain(x))

    def test_every_kind_of_source(self, tmp_path: Path) -> None:
        plain = swin(img_size=56, window_size=7, depths=(2, 2), num_heads=(2, 4))
        x = torch.randn(1, 3, 56, 56)
        state = plain.state_dict()
        # Microsoft's names: a stage's merging at its end, a bare head, and masks, which tell the image's size.
        microsoft = {key.replace("layers.1.downsample", "layers.0.downsample"): value for key, value in state.items()}
        microsoft = {key.replace("head.fc.", "head."): value for key, value in microsoft.items()}
        microsoft["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 49, 49)
        microsoft["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
        torch.save({"model": {f"module.{key}": value for key, value in microsoft.items()}}, tmp_path / "swin.pth")
        safetensors.torch.save_file(state, tmp_path / "swin.safetensors")
        for source, kwargs in (
            (state, {"img_size": 56}),
            (tmp_path / "swin.safetensors", {"img_size": 56}),
            (tmp_path / "swin.pth", {}),
            (torch.compile(plain), {}),
        ):
            ours = from_swin(source, **kwargs).eval()
            assert ours.patch_embed.img_size == (56, 56)
            assert close(ours(x), plain(x))

    def test_what_shall_differ(self) -> None:
        plain = swin()
        ours = from_swin(plain, num_classes=3, in_chans=1, window_size=8, img_size=96, drop_path_rate=0.1)
        assert ours(torch.randn(2, 1, 96, 96)).shape == (2, 3)
        assert ours.pretrained_cfg["num_classes"] == 3 or ours.num_classes == 3
        own, theirs = ours.state_dict(), plain.state_dict()
        assert torch.equal(own["layers.1.blocks.0.mlp.fc1.weight"], theirs["layers.1.blocks.0.mlp.fc1.weight"])
        table = "layers.0.blocks.0.attn.relative_position_bias_table"
        assert own[table].shape == (15 * 15, 2) and theirs[table].shape == (7 * 7, 2)
        torch.testing.assert_close(own["patch_embed.proj.weight"][:, 0], theirs["patch_embed.proj.weight"].sum(1))
        assert "state_dict" not in ours.pretrained_cfg  # the weights are not kept twice

    @pytest.mark.parametrize("size", "tsb")
    def test_the_names_of_the_zoo(self, size: str) -> None:
        """Without memory: which network is built from which Swin, and that timm's builder finds every weight."""
        full = {"t": "tiny", "s": "small", "b": "base"}[size]
        with torch.device("meta"):
            plain = timm.create_model(f"swin_{full}_patch4_window7_224.ms_in1k")
            ours = timm.create_model(f"acmix_swin_{size}")
        cfg = timm.get_pretrained_cfg(f"acmix_swin_{size}.swin_in1k").to_dict()
        for key in ("hf_hub_id", "mean", "std", "crop_pct", "interpolation", "input_size", "classifier", "first_conv"):
            assert cfg[key] == plain.pretrained_cfg[key]
        own = ours.state_dict()
        found = from_plain_swin(plain.state_dict(), ours)
        assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in own.items()}

    def test_beta_wakes_up(self) -> None:
        """Its gradient is not zero; the kernels' is, until beta has moved."""
        ours = from_swin(swin())
        layer = ours.layers[0].blocks[0].attn
        optimizer = torch.optim.SGD(ours.parameters(), 0.1)
        x, y = torch.randn(4, 3, 64, 64), torch.arange(4)
        nn.functional.cross_entropy(ours(x), y).backward()
        assert layer.beta.item() == 0 and layer.beta.grad.abs() > 1e-6
        assert not layer.shift_conv.shift_weight.grad.any()
        optimizer.step()
        optimizer.zero_grad()
        nn.functional.cross_entropy(ours(x), y).backward()
        assert layer.beta.item() != 0 and layer.shift_conv.shift_weight.grad.abs().max() > 0

    def test_what_is_no_swin(self) -> None:
        for source, message in (
            (timm.create_model("resnet18"), "not the weights of a Swin"),
            ({**swin().state_dict(), "layers.0.blocks.0.attn.logit_scale": torch.ones(2, 1, 1)}, "Swin V2"),
            (swin(qkv_bias=False), "not the weights of a Swin with biases in qkv"),
        ):
            with pytest.raises(ValueError, match=message):
                from_swin(source)
        with pytest.raises(ValueError, match=r"These are weights of a plain network.*use acmix_zoo\.from_swin"):
            load_weights(create_model("acmix_swin_pico"), swin().state_dict())


def resnet(**kwargs) -> nn.Module:
    options = {"block": timm.models.resnet.Bottleneck, "layers": (1, 2, 1, 1), "num_classes": 7, **kwargs}
    return moved(timm.models.ResNet(**options))


class TestResNet:
    def test_what_transfers(self) -> None:
        plain = resnet()
        ours, report = from_resnet(plain)
        own, theirs = ours.state_dict(), plain.state_dict()
        shared = [key for key in own if key in theirs]
        assert all(torch.equal(own[key], theirs[key]) for key in shared)
        assert set(own) - set(shared) == {key for key in own if ".conv2." in key}
        assert report.copied == sum(p.numel() for key, p in ours.named_parameters() if ".conv2." not in key)
        assert report.copied + report.fitted + report.random == sum(p.numel() for p in ours.parameters())
        assert len(report.kept) == 5 and all(0.3 < share < 1 for share in report.kept.values())
        assert "layer2.1.conv2: " in str(report) and "random" in str(report)

    @pytest.mark.parametrize("stride", [1, 2])
    def test_a_kernel_that_it_can_have_is_had_exactly(self, stride: int) -> None:
        """Of rank 9 in every group of four outputs."""
        from acmix_zoo.weights.from_plain.resnet import fit_convolution_path

        layer, conv = ACmix2d(16, 12, stride=stride).double(), nn.Conv2d(16, 12, 3, stride, 1, bias=False).double()
        with torch.no_grad():
            low = torch.randn(3, 36, 9, dtype=torch.float64) @ torch.randn(3, 9, 16, dtype=torch.float64)
            conv.weight.copy_(low.view(3, 4, 3, 3, 16).permute(0, 1, 4, 2, 3).flatten(0, 1))
        state, kept, _ = fit_convolution_path(conv.weight, layer)
        layer.load_state_dict(state)
        assert kept == pytest.approx(1)
        x = torch.randn(2, 16, 11, 9, dtype=torch.float64)
        torch.testing.assert_close(layer(x), conv(x))

    def test_no_other_kernel_of_the_path_is_nearer(self) -> None:
        """Gradient descent from the fit, and from elsewhere, does not find a smaller error."""
        from acmix_zoo.weights.from_plain.resnet import fit_convolution_path

        conv = nn.Conv2d(16, 8, 3, padding=1, bias=False).double()
        fitted = ACmix2d(16, 8, paths="both").double()
        state, kept, _ = fit_convolution_path(conv.weight.detach(), fitted)
        x = torch.eye(16 * 9, dtype=torch.float64).view(-1, 16, 3, 3)  # every tap of every channel: the kernel itself
        energy = conv(x)[:, :, 1, 1].square().sum().item()

        def error(layer: ACmix2d) -> torch.Tensor:
            return (layer(x)[:, :, 1, 1] - conv(x)[:, :, 1, 1]).square().sum() / energy

        fitted.load_state_dict(state)
        assert error(fitted).item() == pytest.approx(1 - kept)
        elsewhere = ACmix2d(16, 8, paths="convolution").double()
        nn.init.zeros_(elsewhere.qkv.bias)
        for start in (fitted, elsewhere):
            # A bias is no part of a kernel, and the attention none of the path.
            free = [value for key, value in start.named_parameters() if key not in ("qkv.bias", "alpha")]
            optimizer = torch.optim.LBFGS(free, max_iter=60, line_search_fn="strong_wolfe")

            def closure(layer: ACmix2d = start, optimizer: torch.optim.Optimizer = optimizer) -> torch.Tensor:
                optimizer.zero_grad()
                loss = error(layer)
                loss.backward()
                return loss

            optimizer.step(closure)
            assert error(start).item() > (1 - kept) * (1 - 1e-9)

    def test_alpha_wakes_up(self) -> None:
        ours, _ = from_resnet(resnet())
        nn.functional.cross_entropy(ours(torch.randn(4, 3, 64, 64)), torch.arange(4)).backward()
        layer = ours.layer1[0].conv2
        assert layer.alpha.item() == 0 and layer.alpha.grad.abs() > 1e-8

    def test_arguments(self) -> None:
        ours, _ = from_resnet(resnet(in_chans=1), num_classes=3, drop_path_rate=0.1)
        assert ours(torch.randn(2, 1, 64, 64)).shape == (2, 3)
        ours, _ = from_resnet(torchvision.models.resnet50(num_classes=2).state_dict())
        assert ours.pretrained_cfg["architecture"] == "acmix_resnet50" and ours.num_classes == 2

    @pytest.mark.parametrize("name", ["resnet18", "resnext26ts", "resnet26d", "vit_tiny_patch16_224"])
    def test_what_is_no_plain_resnet(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"from_resnet: (expected a ResNet of bottlenecks|not a plain ResNet)"):
            from_resnet(timm.create_model(name))


PVT = dict(img_size=64, depths=(1, 1, 2, 1), num_classes=7)
SAN = dict(layers=(1, 1, 1), widths=(32, 64, 128), kernels=(3, 5, 7), num_classes=7)


class TestPVTAndSAN:
    @pytest.mark.parametrize(
        ("name", "make", "kwargs"),
        [
            ("pvt_tiny", from_pvt, PVT),
            ("pvt_tiny", from_pvt, {**PVT, "img_size": 32, "in_chans": 1}),
            ("pvt_tiny", from_pvt, {"num_classes": 0}),
            ("san10_patchwise", from_san, SAN),
            ("san10_patchwise", from_san, {"layers": (1, 1, 1, 1, 1), "in_chans": 1}),
            ("san10_pairwise", from_san, {**SAN, "kernels": (3, 7, 7)}),
        ],
        ids=lambda value: getattr(value, "__name__", str(value)),
    )
    def test_logits_are_the_plain_networks(self, name, make, kwargs) -> None:
        plain = moved(timm.create_model(name, **kwargs))
        for source in (plain, {f"module.{key}": value for key, value in plain.state_dict().items()}):
            ours = make(source)
            assert ours.training and sum(key.endswith("beta") for key, _ in ours.named_parameters()) >= 3
            side = kwargs.get("img_size", 64)
            x = torch.randn(2, kwargs.get("in_chans", 3), side, side)
            expected = plain(x)
            assert close(ours.eval()(x), expected) and expected.std() > 0.01

    @pytest.mark.parametrize(
        ("name", "make", "kwargs"), [("pvt_tiny", from_pvt, PVT), ("san10_patchwise", from_san, SAN)]
    )
    def test_the_convolution_wakes_up(self, name, make, kwargs) -> None:
        """All but that of PVT's last block: it leaves the class token out, and only that one is read."""
        ours = make(timm.create_model(name, **kwargs))
        ours(torch.randn(4, 3, 64, 64)).square().sum().backward()
        betas = [p for key, p in ours.named_parameters() if key.endswith("beta")]
        betas = betas[:-1] if name == "pvt_tiny" else betas
        assert betas and all(p.grad.abs() > 0 and p == 0 for p in betas)

    def test_published_shapes_give_published_names(self) -> None:
        for plain, make, name in (("pvt_small", from_pvt, "acmix_pvt_s"), ("san15_patchwise", from_san, "acmix_san15")):
            source = timm.create_model(plain, num_classes=3).state_dict()
            assert make(source).pretrained_cfg["architecture"] == name
        assert from_pvt(timm.create_model("pvt_tiny"), img_size=96, num_classes=5).grids[0] == (24, 24)

    def test_errors(self) -> None:
        other = timm.create_model("resnet18")
        with pytest.raises(ValueError, match=r"from_pvt: expected a PVT \(version 1\).*found keys like conv1.weight"):
            from_pvt(other)
        with pytest.raises(ValueError, match=r"from_san: expected the weights of a SAN, found keys like conv1.weight"):
            from_san(other)
        oblong = timm.create_model("pvt_tiny", **{**PVT, "img_size": (32, 64)}).eval()
        with pytest.raises(ValueError, match=r"128 positions are not those of a square image; pass img_size"):
            from_pvt(oblong)
        x = torch.randn(1, 3, 32, 64)
        assert close(from_pvt(oblong, img_size=(32, 64)).eval()(x), oblong(x))
        with pytest.raises(ValueError, match=r"found stages of \(64, 128\)"):
            from_pvt(create_model("acmix_pvt_pico"))
        with pytest.raises(ValueError, match=r"These are weights of a plain network.*from_pvt"):
            load_weights(timm.create_model("acmix_pvt_t"), timm.create_model("pvt_tiny").state_dict())
