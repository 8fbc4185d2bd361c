"""`from_swin`: an ACmix-Swin that gives exactly the logits of a plain Swin, and can be trained further."""

from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from support.plain_networks import is_close, with_random_parameters
from torch import nn

from acmix_zoo import create_model, from_swin, load_weights
from acmix_zoo.models.plain_swin import from_plain_swin

SMALL = dict(img_size=64, window_size=4, embed_dim=32, depths=(2, 2, 1), num_heads=(2, 4, 8), num_classes=7)


def swin(**kwargs) -> nn.Module:
    return with_random_parameters(timm.create_model("swin_tiny_patch4_window7_224", **{**SMALL, **kwargs}))


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
    def test_logits_equal_those_of_the_plain_network(self, kwargs) -> None:
        plain = swin(**kwargs)
        converted = from_swin(plain)
        assert converted.training
        size = plain.patch_embed.img_size
        x = torch.randn(2, kwargs.get("in_chans", 3), *size)
        expected = plain(x)
        assert is_close(converted.eval()(x), expected) and expected.std() > 0.05
        x = x.double()
        torch.testing.assert_close(converted.double()(x), plain.double()(x), rtol=0, atol=1e-13)

    def test_the_pooling_is_that_of_the_network_now(self) -> None:
        """reset_classifier may have changed it."""
        for before, after in (("max", "avg"), ("avg", "max")):
            plain = swin(global_pool=before)
            plain.reset_classifier(5, after)
            x = torch.randn(2, 3, *plain.patch_embed.img_size)
            assert is_close(from_swin(plain).eval()(x), plain.eval()(x))

    def test_a_wrapped_network_states_as_much(self) -> None:
        plain = swin(img_size=128, window_size=16, global_pool="max")
        x = torch.randn(1, 3, 128, 128)
        assert is_close(from_swin(nn.DataParallel(plain)).eval()(x), plain(x))

    def test_windows_that_grow_are_rejected(self) -> None:
        """As in timm's swin_s3 networks."""
        plain = timm.create_model("swin_s3_tiny_224", embed_dim=16, depths=(1,) * 4, num_heads=(1, 1, 2, 2))
        for source in (plain, plain.state_dict()):
            with pytest.raises(ValueError, match="tables of 169, 169, 729, 169 entries, so their windows differ"):
                from_swin(source)

    def test_weights_of_ddp_and_compiled_blocks_are_converted(self) -> None:
        """They come from a training loop with DDP around the network and torch.compile around its blocks."""
        plain = swin()
        state = {f"module.{key.replace('.mlp.', '.mlp._orig_mod.')}": v for key, v in plain.state_dict().items()}
        x = torch.randn(1, 3, 64, 64)
        assert is_close(from_swin({"model_state_dict": state}, img_size=64).eval()(x), plain(x))

    @pytest.mark.parametrize("size", [(224, 224), (200, 168), (64, 96)])
    def test_weights_of_torchvision_are_converted(self, size: tuple[int, int]) -> None:
        """As in torchvision, maps whose size is not a multiple of the window are padded before the roll."""
        plain = with_random_parameters(
            torchvision.models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [7, 7], num_classes=5)
        )
        x = torch.randn(1, 3, *size)
        assert is_close(from_swin(plain).eval()(x), plain(x))

    def test_every_kind_of_source_is_converted(self, tmp_path: Path) -> None:
        plain = swin(img_size=56, window_size=7, depths=(2, 2), num_heads=(2, 4))
        x = torch.randn(1, 3, 56, 56)
        state = plain.state_dict()
        # Microsoft's names: patch merging at the end of a stage, a plain head, and masks, which give the image size.
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
            converted = from_swin(source, **kwargs).eval()
            assert converted.patch_embed.img_size == (56, 56)
            assert is_close(converted(x), plain(x))

    def test_model_arguments_may_differ(self) -> None:
        plain = swin()
        converted = from_swin(plain, num_classes=3, in_chans=1, window_size=8, img_size=96, drop_path_rate=0.1)
        assert converted(torch.randn(2, 1, 96, 96)).shape == (2, 3)
        assert converted.pretrained_cfg["num_classes"] == 3 or converted.num_classes == 3
        state, plain_state = converted.state_dict(), plain.state_dict()
        assert torch.equal(state["layers.1.blocks.0.mlp.fc1.weight"], plain_state["layers.1.blocks.0.mlp.fc1.weight"])
        table = "layers.0.blocks.0.attn.relative_position_bias_table"
        assert state[table].shape == (15 * 15, 2) and plain_state[table].shape == (7 * 7, 2)
        torch.testing.assert_close(
            state["patch_embed.proj.weight"][:, 0], plain_state["patch_embed.proj.weight"].sum(1)
        )
        assert "state_dict" not in converted.pretrained_cfg  # the weights are not stored twice

    @pytest.mark.parametrize("size", "tsb")
    def test_swins_of_published_sizes_get_the_names_of_the_zoo(self, size: str) -> None:
        """timm's builder finds every weight. The networks are on the meta device."""
        full = {"t": "tiny", "s": "small", "b": "base"}[size]
        with torch.device("meta"):
            plain = timm.create_model(f"swin_{full}_patch4_window7_224.ms_in1k")
            converted = timm.create_model(f"acmix_swin_{size}")
        cfg = timm.get_pretrained_cfg(f"acmix_swin_{size}.swin_in1k").to_dict()
        for key in ("hf_hub_id", "mean", "std", "crop_pct", "interpolation", "input_size", "classifier", "first_conv"):
            assert cfg[key] == plain.pretrained_cfg[key]
        state = converted.state_dict()
        found = from_plain_swin(plain.state_dict(), converted)
        assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in state.items()}

    def test_beta_is_trained(self) -> None:
        """Its gradient is not zero. That of the kernels is zero until beta has changed."""
        converted = from_swin(swin())
        layer = converted.layers[0].blocks[0].attn
        optimizer = torch.optim.SGD(converted.parameters(), 0.1)
        x, y = torch.randn(4, 3, 64, 64), torch.arange(4)
        nn.functional.cross_entropy(converted(x), y).backward()
        assert layer.beta.item() == 0 and layer.beta.grad.abs() > 1e-6
        assert not layer.shift_conv.shift_weight.grad.any()
        optimizer.step()
        optimizer.zero_grad()
        nn.functional.cross_entropy(converted(x), y).backward()
        assert layer.beta.item() != 0 and layer.shift_conv.shift_weight.grad.abs().max() > 0

    def test_images_are_prepared_as_for_the_plain_network(self) -> None:
        stated = {"mean": (0.4, 0.5, 0.6), "crop_pct": 1.0, "license": "mit", "label_names": tuple("abcdefg")}
        plain = swin(pretrained_cfg_overlay=stated)
        cfg = from_swin(plain).pretrained_cfg
        assert {name: cfg[name] for name in stated} == stated
        cfg = from_swin(plain, num_classes=3).pretrained_cfg
        assert cfg["mean"] == (0.4, 0.5, 0.6) and not cfg.get("label_names")

    def test_other_networks_are_rejected(self) -> None:
        for source, message in (
            (timm.create_model("resnet18"), "not the weights of a Swin"),
            ({**swin().state_dict(), "layers.0.blocks.0.attn.logit_scale": torch.ones(2, 1, 1)}, "Swin V2"),
            (swin(qkv_bias=False), "not the weights of a Swin with biases in qkv"),
            (swin(head_dim=8), "qkv has 48 outputs for 32 channels, so the network was built with a custom head_dim"),
            (
                swin(norm_layer=partial(nn.LayerNorm, eps=0.1)),
                "the source has norms with eps 0.1, but ACmix",
            ),
        ):
            with pytest.raises(ValueError, match=message):
                from_swin(source)
        with pytest.raises(ValueError, match=r"These are weights of a plain network.*use acmix_zoo\.from_swin"):
            load_weights(create_model("acmix_swin_pico"), swin().state_dict())
