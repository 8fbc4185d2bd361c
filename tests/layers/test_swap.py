"""swap_conv3x3 on networks of timm and torchvision and on our own: what it replaces, keeps and reports."""

import copy
import pickle

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, prune
from torchvision.models.feature_extraction import create_feature_extractor

from acmix_zoo import ACmix2d, swap_conv3x3


class Mixed(nn.Module):
    """One convolution of every kind that must or must not be replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.plain = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.again = self.plain  # one convolution in two places
        self.same = nn.Conv2d(8, 8, 3, padding="same")
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.valid = nn.Conv2d(8, 8, 3)
        self.reflect = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.narrow = nn.Conv2d(8, 6, 3, padding=1)
        self.point = nn.Conv2d(6, 8, 1)
        self.oblong = nn.Conv2d(8, 8, 3, (1, 2), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.stem, self.plain, self.again, self.same, self.dilated, self.grouped, self.valid):
            x = layer(x)
        return self.oblong(self.point(self.narrow(self.reflect(x))))


def test_every_kind_of_convolution() -> None:
    model = Mixed().eval()
    model.plain.train()
    kept = {name: getattr(model, name) for name in ("grouped", "valid", "reflect", "narrow", "point", "oblong")}
    shape = model(torch.zeros(2, 3, 33, 30)).shape
    report = swap_conv3x3(model, "*", input_size=(3, 33, 30), kernel_att=5, heads=4)
    assert set(report.replaced) == {"stem", "plain", "again", "same", "dilated"}
    assert set(report.skipped) == set(kept) - {"point"}
    reasons = dict(grouped="groups=2", valid="padding=(0, 0)", reflect="reflect", narrow="6 output", oblong="by axis")
    assert all(reason in report.skipped[name] for name, reason in reasons.items())
    assert all(getattr(model, name) is layer for name, layer in kept.items())
    assert model.plain is model.again is report.replaced["again"]
    assert model.dilated.dilation == 2 and model.stem.stride == 2 and model.stem.kernel_att == 5
    assert model.plain.training and not model.stem.training
    assert model(torch.zeros(2, 3, 33, 30)).shape == shape
    assert sum(p.numel() for p in model.parameters()) == report.params[1] != report.params[0]


def test_report_numbers() -> None:
    model = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, bias=False))
    report = swap_conv3x3(model, "*", input_size=(8, 9, 9))
    assert report.params[0] == 9 * 8 * 16
    assert report.params[1] == sum(p.numel() for p in model.parameters())
    assert report.macs is not None
    before, after = report.macs
    assert before == 25 * 9 * 8 * 16
    # 81 pixels: three projections and the mixing; 25 pixels: attention over 49 and 9 taps of 9 maps
    assert after == 81 * (3 * 8 * 16 + 3 * 9 * 16) + 25 * (2 * 49 + 81) * 16
    text = str(report)
    assert "replaced 1 of 1" in text and "ACmix2d(8, 16" in text and "at 8×9×9" in text and f"{after:,}" in text


def test_timm_network_trains() -> None:
    model = timm.create_model("resnet10t", num_classes=5)
    report = swap_conv3x3(model, "layer[34].*")
    assert report.replaced and all(name.startswith(("layer3", "layer4")) for name in report.replaced)
    assert report.input_size == model.pretrained_cfg["input_size"] and report.macs
    assert not any(isinstance(m, ACmix2d) for name, m in model.named_modules() if name.startswith("layer1"))
    loss = model(torch.randn(2, 3, 64, 64)).square().mean()
    loss.backward()
    for layer in report.replaced.values():
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_dtype_and_function_filter() -> None:
    model = Mixed().to(torch.bfloat16)
    report = swap_conv3x3(model, lambda name, conv: conv.stride == (1, 1) and name != "same", heads=2)
    assert set(report.replaced) == {"plain", "again", "dilated", "narrow"}  # narrow: 6 channels, 2 heads
    assert report.macs is None  # no input size given, none known
    assert str(report).endswith("no size is known that the model can process. Pass input_size=(C, H, W)")
    assert model.plain.alpha.dtype == torch.bfloat16


@pytest.mark.parametrize("kwargs", [dict(kernel_att=4), dict(paths="neither"), dict(heads=0)])
def test_rejected_arguments_change_nothing(kwargs: dict) -> None:
    model = Mixed()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError):
        swap_conv3x3(model, "*", **kwargs)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"stride": 2}, r"unknown argument stride=2\. Expected heads, kernel_att, kernel_conv or paths\. Correct"),
        ({"kernel_size": 3}, r"unknown argument kernel_size=3\. Expected kernel_conv"),
    ],
)
def test_arguments_that_follow_from_the_convolution(kwargs: dict, message: str) -> None:
    with pytest.raises(TypeError, match=f"swap_conv3x3: {message}"):
        swap_conv3x3(Mixed(), **kwargs)


def test_a_filter_without_a_match_is_rejected() -> None:
    with pytest.raises(
        ValueError, match=r"filter='layer9\.\*' matches no 3×3 convolution of Mixed.*names such as stem, plain"
    ):
        swap_conv3x3(Mixed(), "layer9.*")
    with pytest.raises(ValueError, match="has no 3×3 convolution"):
        swap_conv3x3(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"is a list. Expected a pattern such as 'layer4\.\*', or a function"):
        swap_conv3x3(Mixed(), ["layer4.*"])  # type: ignore[arg-type]


def test_lazy_modules_have_to_run_first() -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.LazyConv2d(8, 1))
    with pytest.raises(ValueError, match=r"the shape of 2.weight is not known yet.*Run it once before the swap"):
        swap_conv3x3(model)
    model(torch.randn(2, 16, 8, 8))
    assert list(swap_conv3x3(model).replaced) == ["0"]


def test_a_convolution_that_is_the_model_is_kept() -> None:
    report = swap_conv3x3(nn.Conv2d(4, 4, 3, padding=1))
    assert not report.replaced and "the model itself" in report.skipped[""]


def test_modes_and_statistics_do_not_change() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.BatchNorm2d(8)).train()
    model[2].eval()
    swap_conv3x3(model, "0", input_size=(3, 8, 8))
    assert model[1].training and not model[2].training and model[1].num_batches_tracked == 0


# ---- kept unless a filter names them

NO_WEIGHTS = {"weights": None, "weights_backbone": None}


class Segmenter(nn.Module):
    """A tiny network with the head of segmentation_models_pytorch: a 3×3 convolution with a bias and no norm."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 16, 3, 2, 1), nn.ReLU())
        self.hidden = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.normed = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.add_module(name, nn.Sequential(nn.Conv2d(16, 8, 3, padding=1), nn.Identity(), nn.Sigmoid()))


def test_default_keeps_detection_heads_and_stems() -> None:
    """The first loss of a RetinaNet is around 1 because of the prior in the bias of its last layers."""
    model = torchvision.models.detection.retinanet_resnet50_fpn(**NO_WEIGHTS)
    report = swap_conv3x3(model)
    assert len(report.replaced) == 16  # the ResNet-50's bottlenecks
    assert all(name.startswith("backbone.body.layer") for name in report.replaced)
    for level in range(3):  # all alike, although a block with "Norm" in its name follows two of them
        assert "output layer" in report.skipped[f"backbone.fpn.layer_blocks.{level}.0"]
    for head in ("classification_head.cls_logits", "regression_head.bbox_reg", "classification_head.conv.0.0"):
        assert "prediction head (head)" in report.skipped[f"head.{head}"]
    assert type(model.head.classification_head.cls_logits) is nn.Conv2d
    assert "output layer" in report.skipped["backbone.fpn.extra_blocks.p7"]
    text = str(report)
    assert "head.classification_head.cls_logits: kept, part of a prediction head" in text and "name it in the" in text


def test_default_keeps_the_rpn_unless_a_filter_names_it() -> None:
    model = torchvision.models.detection.fasterrcnn_resnet50_fpn(**NO_WEIGHTS).rpn
    with pytest.raises(ValueError, match=r"filter='nothing\.\*' matches no 3×3 convolution"):
        swap_conv3x3(model, "nothing.*")
    assert not swap_conv3x3(model).replaced
    assert set(swap_conv3x3(model, "head.conv.*").replaced) == {"head.conv.0.0"}


@pytest.mark.parametrize("name", ["segmentation_head", "last"])
def test_default_keeps_the_output_of_a_segmentation_network(name: str) -> None:
    model = Segmenter(name)
    report = swap_conv3x3(model)
    assert set(report.replaced) == {"hidden.0", "normed"}
    assert "in_channels=4" in report.skipped["stem.0"]
    expected = "prediction head (segmentation_head)" if name == "segmentation_head" else "an output layer"
    assert expected in report.skipped[f"{name}.0"]
    everything = swap_conv3x3(Segmenter(name), lambda path, conv: True)
    assert set(everything.replaced) == {"stem.0", "hidden.0", "normed", f"{name}.0"}


def test_biased_convolutions_with_an_activation_are_replaced() -> None:
    with torch.device("meta"):
        model = torchvision.models.vgg11()
    report = swap_conv3x3(model)
    assert len(report.replaced) == 7 and set(report.skipped) == {"features.0"}


# ---- always kept


def test_blocks_that_merge_their_kernels_are_kept() -> None:
    """RepVGG adds the kernels of its branches for inference. A branch without a kernel would break that."""
    model = timm.create_model("repvgg_a0", num_classes=2)
    report = swap_conv3x3(model, "*")
    assert not report.replaced and len(report.skipped) == 22
    assert all("RepVggBlock.reparameterize merges" in reason for reason in report.skipped.values())
    block = nn.ModuleDict({"fuse": nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())})  # only a name
    assert swap_conv3x3(nn.Sequential(block), "*").replaced
    levit = timm.create_model("levit_128s", num_classes=2)
    skipped = swap_conv3x3(levit, "*").skipped
    assert list(skipped.values()) == ["ConvNorm.fuse merges it with other layers"] * 4


def test_hooks_and_parametrizations_are_not_lost() -> None:
    model = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(4)))
    prune.random_unstructured(model[0], "weight", 0.5)
    parametrizations.weight_norm(model[1])
    model[2].register_forward_hook(lambda *args: None)
    report = swap_conv3x3(model, "*")
    assert set(report.replaced) == {"3"}
    assert "pruning" in report.skipped["0"] and "weight norm" in report.skipped["1"] and "hooks" in report.skipped["2"]


def test_feature_extractor_of_torchvision_traces_a_swapped_network() -> None:
    model = torchvision.models.resnet18(weights=None).eval()
    swap_conv3x3(model, "layer[34].*")
    x = torch.rand(1, 3, 64, 48)
    maps = create_feature_extractor(copy.deepcopy(model), ["layer3", "layer4", "fc"])(x)
    assert maps["layer3"].shape == (1, 256, 4, 3) and maps["layer4"].shape == (1, 512, 2, 2)
    with torch.no_grad():
        assert torch.equal(maps["fc"], model(x))


def test_replaced_forwards_and_tied_weights_are_not_lost() -> None:
    model = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(5)))
    model[0].forward = lambda x: x  # type: ignore[method-assign]
    model[1]._conv_forward = lambda x, weight, bias: x  # type: ignore[method-assign,assignment]
    model[3].weight = model[2].weight
    report = swap_conv3x3(model, "*")
    assert set(report.replaced) == {"4"}
    assert all("has its own forward" in report.skipped[name] for name in "01")
    assert all("shares its weight" in report.skipped[name] for name in "23")


def test_shared_convolution_is_kept_everywhere_or_nowhere() -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    model = nn.ModuleDict({"body": nn.Sequential(conv), "head": nn.Sequential(conv)})
    report = swap_conv3x3(model)
    assert not report.replaced and set(report.skipped) == {"body.0", "head.0"}


class FusingBlock(nn.Module):
    """A block that Ultralytics and YOLOv5 fold for inference: `bn` goes, and `forward_fuse` becomes the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.act = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.conv(x)))

    def forward_fuse(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.conv(x))


def test_blocks_that_fold_their_norm_keep_it_behind_the_layer() -> None:
    block = FusingBlock()
    model = nn.ModuleDict({"a": block, "again": block})
    norm = block.bn
    report = swap_conv3x3(model)
    layer = report.replaced["a.conv"]
    assert set(report.replaced) == {"a.conv", "again.conv"} and report.replaced["again.conv"] is layer
    assert not hasattr(block, "bn")  # fuse() of these packages looks for it, and would fold it into a kernel
    assert list(block.conv) == [layer, norm]
    x = torch.randn(2, 16, 8, 8)
    for other in (block, copy.deepcopy(block), pickle.loads(pickle.dumps(block))):  # each forward is its own
        other.eval()
        layer, norm = other.conv
        assert torch.equal(other(x), nn.functional.silu(norm(layer(x))))
        with torch.no_grad():
            norm.bias.add_(1)
        assert torch.equal(other(x), nn.functional.silu(norm(layer(x))))


def test_networks_for_other_numbers_of_channels() -> None:
    """timm's configuration states three channels for any network."""
    report = swap_conv3x3(timm.create_model("resnet18", in_chans=1), "layer4.*")
    assert report.input_size == (1, 224, 224) and report.macs is not None
    several = timm.create_model("resnet18")
    several.pretrained_cfg["first_conv"] = ["conv1", "conv2"]  # a list in config.json
    assert swap_conv3x3(several, "layer4.*").input_size == (3, 224, 224)


def test_an_impossible_size_changes_nothing() -> None:
    model = timm.create_model("resnet18")
    with pytest.raises(ValueError, match=r"cannot process an image of input_size=\(1, 32, 32\)"):
        swap_conv3x3(model, "layer4.*", input_size=(1, 32, 32))
    assert not any(isinstance(module, ACmix2d) for module in model.modules())
    model.pretrained_cfg["input_size"] = (3, 1, 0)  # a default that does not fit only costs the number of MACs
    assert swap_conv3x3(model, "layer4.*").macs is None


class ReadsWeights(nn.Module):
    """A network that uses the kernels of a convolution without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(self.first(x), self.second.weight, self.second.bias, padding=1)


def test_a_network_that_cannot_run_with_the_new_layers_is_not_changed() -> None:
    model = ReadsWeights().eval()
    x = torch.randn(1, 16, 8, 8)
    before = model(x)
    with pytest.raises(ValueError, match=r"ReadsWeights cannot run with ACmix2d in place of first, second: .*weight"):
        swap_conv3x3(model, "*", input_size=(16, 8, 8))
    assert torch.equal(model(x), before) and type(model.first) is nn.Conv2d
    assert len(list(model.parameters())) == 4
    assert list(swap_conv3x3(model, "first", input_size=(16, 8, 8)).replaced) == ["first"]
