"""`from_pvt` and `from_san`: ACmix networks that give exactly the logits of plain ones, and can be trained further."""

import pytest
import timm
import torch
from support.plain_networks import is_close, with_random_parameters

from acmix_zoo import create_model, from_pvt, from_san, load_weights

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
    def test_logits_equal_those_of_the_plain_network(self, name, make, kwargs) -> None:
        plain = with_random_parameters(timm.create_model(name, **kwargs))
        for source in (plain, {f"module.{key}": value for key, value in plain.state_dict().items()}):
            converted = make(source)
            assert converted.training and sum(key.endswith("beta") for key, _ in converted.named_parameters()) >= 3
            side = kwargs.get("img_size", 64)
            x = torch.randn(2, kwargs.get("in_chans", 3), side, side)
            expected = plain(x)
            assert is_close(converted.eval()(x), expected) and expected.std() > 0.01

    @pytest.mark.parametrize(
        ("name", "make", "kwargs"),
        [
            ("pvt_tiny", from_pvt, {**PVT, "num_heads": (2, 4, 5, 8), "global_pool": "avg"}),
            ("pvt_tiny", from_pvt, {**PVT, "img_size": (32, 64), "reductions": (4, 4, 2, 1)}),
            ("pvt_tiny", from_pvt, {**PVT, "patch_size": 8, "global_pool": "avg"}),
            ("san10_pairwise", from_san, {**SAN, "kernels": (5, 3, 5), "global_pool": "max"}),
        ],
        ids=["heads", "reductions", "patches", "kernels"],
    )
    def test_a_network_states_what_its_weights_do_not_show(self, name, make, kwargs) -> None:
        plain = with_random_parameters(timm.create_model(name, **kwargs))
        x = torch.randn(2, 3, 32, 64)
        for source in (plain, torch.nn.DataParallel(plain)):
            assert is_close(make(source).eval()(x), plain(x))

    def test_positions_of_oblong_images_are_interpolated(self) -> None:
        """As by the network itself, which interpolates them for each image."""
        plain = with_random_parameters(timm.create_model("pvt_tiny", **{**PVT, "img_size": (32, 128)}))
        converted = from_pvt(plain, img_size=64).eval()
        assert converted.grids[0] == (16, 16) and converted.pretrained_cfg["input_size"] == (3, 64, 64)
        x = torch.randn(2, 3, 64, 64)
        assert is_close(converted(x), plain(x))

    @pytest.mark.parametrize(
        ("name", "make", "kwargs"), [("pvt_tiny", from_pvt, PVT), ("san10_patchwise", from_san, SAN)]
    )
    def test_the_convolution_path_is_trained(self, name, make, kwargs) -> None:
        """An exception is PVT's last block, where only the class token is used, which the convolution leaves out."""
        converted = make(timm.create_model(name, **kwargs))
        converted(torch.randn(4, 3, 64, 64)).square().sum().backward()
        betas = [p for key, p in converted.named_parameters() if key.endswith("beta")]
        betas = betas[:-1] if name == "pvt_tiny" else betas
        assert betas and all(p.grad.abs() > 0 and p == 0 for p in betas)

    def test_networks_of_published_shapes_get_their_names(self) -> None:
        for plain, make, name in (("pvt_small", from_pvt, "acmix_pvt_s"), ("san15_patchwise", from_san, "acmix_san15")):
            source = timm.create_model(plain, num_classes=3).state_dict()
            assert make(source).pretrained_cfg["architecture"] == name
        assert from_pvt(timm.create_model("pvt_tiny"), img_size=96, num_classes=5).grids[0] == (24, 24)

    def test_other_networks_are_rejected(self) -> None:
        other = timm.create_model("resnet18")
        with pytest.raises(ValueError, match=r"has keys like conv1.weight.*Expected a PVT \(version 1\)"):
            from_pvt(other)
        with pytest.raises(ValueError, match=r"has keys like conv1.weight.*Expected the weights of a SAN"):
            from_san(other)
        oblong = timm.create_model("pvt_tiny", **{**PVT, "img_size": (32, 64)}).eval()
        with pytest.raises(ValueError, match=r"has 128 entries, which is not a square.*Pass img_size"):
            from_pvt(oblong.state_dict())
        x = torch.randn(1, 3, 32, 64)
        assert is_close(from_pvt(oblong.state_dict(), img_size=(32, 64)).eval()(x), oblong(x))
        with pytest.raises(ValueError, match=r"has stages of \(64, 128\)"):
            from_pvt(create_model("acmix_pvt_pico"))
        with pytest.raises(ValueError, match=r"These are weights of a plain network.*from_pvt"):
            load_weights(timm.create_model("acmix_pvt_t"), timm.create_model("pvt_tiny").state_dict())
