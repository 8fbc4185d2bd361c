"""swap_conv3x3 on networks of timm, torchvision and our own: what it takes, what it leaves, what it says."""

import copy

import pytest
import timm
import torch
from torch import nn

from acmix_zoo import ACmix2d, swap_conv3x3


class Mixed(nn.Module):
    """One convolution of every kind that must or must not be taken."""

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


def test_every_kind() -> None:
    model = Mixed().eval()
    model.plain.train()
    kept = {name: getattr(model, name) for name in ("grouped", "valid", "reflect", "narrow", "point", "oblong")}
    shape = model(torch.zeros(2, 3, 33, 30)).shape
    report = swap_conv3x3(model, input_size=(3, 33, 30), kernel_att=5)
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
    report = swap_conv3x3(model, input_size=(8, 9, 9))
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
    assert model.plain.alpha.dtype == torch.bfloat16


@pytest.mark.parametrize("kwargs", [dict(kernel_att=4), dict(paths="neither"), dict(heads=0)])
def test_refused_arguments_change_nothing(kwargs: dict) -> None:
    model = Mixed()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError):
        swap_conv3x3(model, **kwargs)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_nothing_fits() -> None:
    with pytest.raises(ValueError, match=r"no 3×3 convolution of Mixed fits filter='layer9\.\*'; it has stem, plain"):
        swap_conv3x3(Mixed(), "layer9.*")
    with pytest.raises(ValueError, match="it has none"):
        swap_conv3x3(nn.Linear(2, 2))


def test_a_bare_convolution_stays() -> None:
    report = swap_conv3x3(nn.Conv2d(4, 4, 3, padding=1))
    assert not report.replaced and "the model itself" in report.skipped[""]


def test_training_statistics_are_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.BatchNorm2d(8)).train()
    model[2].eval()
    swap_conv3x3(model, input_size=(3, 8, 8))
    assert model[1].training and not model[2].training and model[1].num_batches_tracked == 0
