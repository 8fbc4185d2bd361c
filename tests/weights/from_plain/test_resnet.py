"""`from_resnet` copies everything but the 3×3 convolutions, and approximates these as well as possible."""

import pytest
import timm
import torch
import torchvision
from support.plain_networks import with_random_parameters
from torch import nn

from acmix_zoo import ACmix2d, from_resnet
from acmix_zoo.weights.from_plain.resnet import fit_convolution_path


def resnet(**kwargs) -> nn.Module:
    options = {"block": timm.models.resnet.Bottleneck, "layers": (1, 2, 1, 1), "num_classes": 7, **kwargs}
    return with_random_parameters(timm.models.ResNet(**options))


class TestResNet:
    def test_the_report_counts_copied_fitted_and_random_weights(self) -> None:
        plain = resnet()
        converted, report = from_resnet(plain)
        state, plain_state = converted.state_dict(), plain.state_dict()
        shared = [key for key in state if key in plain_state]
        assert all(torch.equal(state[key], plain_state[key]) for key in shared)
        assert set(state) - set(shared) == {key for key in state if ".conv2." in key}
        assert report.copied == sum(p.numel() for key, p in converted.named_parameters() if ".conv2." not in key)
        assert report.copied + report.fitted + report.random == sum(p.numel() for p in converted.parameters())
        assert len(report.kept) == 5 and all(0.3 < share < 1 for share in report.kept.values())
        assert "layer2.1.conv2: " in str(report) and "random" in str(report)

    @pytest.mark.parametrize("stride", [1, 2])
    def test_a_kernel_of_low_rank_is_reproduced_exactly(self, stride: int) -> None:
        """Its rank is 9 in every group of four outputs, which the convolution path can represent."""
        layer, conv = ACmix2d(16, 12, stride=stride).double(), nn.Conv2d(16, 12, 3, stride, 1, bias=False).double()
        with torch.no_grad():
            low = torch.randn(3, 36, 9, dtype=torch.float64) @ torch.randn(3, 9, 16, dtype=torch.float64)
            conv.weight.copy_(low.view(3, 4, 3, 3, 16).permute(0, 1, 4, 2, 3).flatten(0, 1))
        state, kept, _ = fit_convolution_path(conv.weight, layer)
        layer.load_state_dict(state)
        assert kept == pytest.approx(1)
        x = torch.randn(2, 16, 11, 9, dtype=torch.float64)
        torch.testing.assert_close(layer(x), conv(x))

    def test_the_fitted_kernel_is_the_nearest_one(self) -> None:
        """Gradient descent from the fitted or from random weights does not find a smaller error."""
        conv = nn.Conv2d(16, 8, 3, padding=1, bias=False).double()
        fitted = ACmix2d(16, 8, paths="both").double()
        state, kept, _ = fit_convolution_path(conv.weight.detach(), fitted)
        x = torch.eye(16 * 9, dtype=torch.float64).view(-1, 16, 3, 3)  # one input per tap, so it returns the kernel
        energy = conv(x)[:, :, 1, 1].square().sum().item()

        def error(layer: ACmix2d) -> torch.Tensor:
            return (layer(x)[:, :, 1, 1] - conv(x)[:, :, 1, 1]).square().sum() / energy

        fitted.load_state_dict(state)
        assert error(fitted).item() == pytest.approx(1 - kept)
        elsewhere = ACmix2d(16, 8, paths="convolution").double()
        nn.init.zeros_(elsewhere.qkv.bias)
        for start in (fitted, elsewhere):
            # The bias and the attention are not part of the kernel.
            free = [value for key, value in start.named_parameters() if key not in ("qkv.bias", "alpha")]
            optimizer = torch.optim.LBFGS(free, max_iter=60, line_search_fn="strong_wolfe")

            def closure(layer: ACmix2d = start, optimizer: torch.optim.Optimizer = optimizer) -> torch.Tensor:
                optimizer.zero_grad()
                loss = error(layer)
                loss.backward()
                return loss

            optimizer.step(closure)
            assert error(start).item() > (1 - kept) * (1 - 1e-9)

    def test_alpha_is_trained(self) -> None:
        converted, _ = from_resnet(resnet())
        nn.functional.cross_entropy(converted(torch.randn(4, 3, 64, 64)), torch.arange(4)).backward()
        layer = converted.layer1[0].conv2
        assert layer.alpha.item() == 0 and layer.alpha.grad.abs() > 1e-8

    def test_model_arguments_are_passed_on(self) -> None:
        converted, _ = from_resnet(resnet(in_chans=1), num_classes=3, drop_path_rate=0.1)
        assert converted(torch.randn(2, 1, 64, 64)).shape == (2, 3)
        converted, _ = from_resnet(torchvision.models.resnet50(num_classes=2).state_dict())
        assert converted.pretrained_cfg["architecture"] == "acmix_resnet50" and converted.num_classes == 2

    def test_output_stride_and_pooling_are_those_of_the_network(self) -> None:
        source = timm.create_model("resnet50", layers=(1, 1, 1, 1), output_stride=8, global_pool="max")
        converted, _ = from_resnet(source)
        x = torch.randn(2, 3, 64, 64)
        assert converted.forward_features(x).shape == source.forward_features(x).shape == (2, 2048, 8, 8)
        assert converted.global_pool.pool_type == "max"
        dilated = torchvision.models.resnet50(num_classes=2, replace_stride_with_dilation=[False, True, True])
        assert from_resnet(nn.DataParallel(dilated))[0].forward_features(x).shape == (2, 2048, 8, 8)

    def test_other_strides_are_rejected(self) -> None:
        middle = torchvision.models.resnet50(num_classes=2, replace_stride_with_dilation=[False, True, False])
        blurred = timm.models.ResNet(timm.models.resnet.Bottleneck, (1, 1, 1, 1), aa_layer=timm.layers.BlurPool2d)
        silu = timm.create_model("resnet50", num_classes=2, act_layer="silu")
        with pytest.raises(ValueError, match=r"the source has SiLU, but ACmix networks of its kind have ReLU"):
            from_resnet(silu)
        for network, message in ((middle, r"\[1, 2, 1, 2\]\. Expected a stride of 1"), (blurred, "and blur layers")):
            with pytest.raises(ValueError, match=message):
                from_resnet(network)

    @pytest.mark.parametrize("name", ["resnet18", "resnext26ts", "resnet26d", "resnet26t", "vit_tiny_patch16_224"])
    def test_other_networks_are_rejected(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"one 7×7 convolution in its stem|not a plain ResNet"):
            from_resnet(timm.create_model(name))
