"""Segmenters: every decoder, sizes that no stage divides, timm's interface, and weights of classifiers."""

from typing import Any

import pytest
import torch
from support.small_networks import FAMILIES
from timm.optim import param_groups_layer_decay

pytest.importorskip("segmentation_models_pytorch")

from acmix_zoo import create_model
from acmix_zoo.layers.complexity import complexity
from acmix_zoo.models.segmenter import DECODERS, Segmenter
from acmix_zoo.models.task_kinds import SEGMENTATION
from acmix_zoo.weights.create import create_task_network

SMALL = {
    "fpn": {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32},
    "upernet": {"decoder_channels": 16},
}


def slow(*names: str) -> list[Any]:
    """Return parameters whose tests are slow, because one of the kind is enough for the quick suite."""
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize(
    ("name", "decoder"),
    [
        ("acmix_resnet_pico", "upernet"),
        ("test_resnet", "fpn"),
        *(pytest.param("acmix_resnet_pico", decoder, marks=pytest.mark.slow) for decoder in ("fpn", "unet")),
        *(pytest.param("test_resnet", decoder, marks=pytest.mark.slow) for decoder in ("upernet", "unet")),
    ],
)
def test_any_size_keeps_its_size(name: str, decoder: str) -> None:
    network = Segmenter(name, 5, decoder=decoder, decoder_kwargs=SMALL.get(decoder)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for size in ((37, 50), (64, 32)):
            assert network(torch.randn(1, 3, *size)).shape == (1, 5, *size)
    assert complexity(network.to("meta"), (3, 37, 50)).macs > 0


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["fpn", "upernet", "unet"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains(name: str, decoder: str) -> None:
    network = Segmenter(name, 4, FAMILIES[name], decoder)  # type: ignore[arg-type]
    logits = network(torch.randn(2, 3, 70, 90))
    assert logits.shape == (2, 4, 70, 90)
    logits.square().mean().backward()
    assert [key for key, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ["acmix_swin_pico", *slow("acmix_resnet_pico", "test_resnet")])
def test_layers_and_exemptions_are_those_of_the_backbone(name: str) -> None:
    network = Segmenter(name, 3, decoder="unet")
    classifier = create_model(name)
    layers = classifier.group_matcher(coarse=False)
    assert layers
    groups = param_groups_layer_decay(network, layer_decay=0.5)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    first = next(network.backbone.parameters())
    assert scales[id(first)] == min(scales.values())
    assert {scales[id(p)] for module in (network.decoder, network.head) for p in module.parameters()} == {1.0}
    expected = len([n for n in getattr(classifier, "no_weight_decay", set)() if not n.startswith(("fc", "head"))])
    assert len(network.no_weight_decay()) == expected


@pytest.mark.parametrize("name", ["acmix_resnet_pico", *slow("acmix_san_pico", "acmix_swin_pico")])
def test_the_backbone_gets_the_weights_of_a_classifier(name: str) -> None:
    network = create_task_network(SEGMENTATION, name, True, num_classes=3, options={"decoder": "unet"})
    state = {key.replace(".", "_"): value for key, value in create_model(name, pretrained=True).state_dict().items()}
    own = network.backbone.state_dict()  # type: ignore[union-attr,operator]
    assert all(torch.equal(value, state[key.removeprefix("model.").replace(".", "_")]) for key, value in own.items())
    assert network.pretrained_cfg["tag"] == "fashion_mnist"  # type: ignore[index]


def test_weights_of_another_backbone_are_rejected() -> None:
    network = Segmenter("acmix_resnet_pico", 3)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"do not fit the backbone acmix_resnet_pico: .* tensors are missing"):
        network.load_backbone(create_model("acmix_san_pico"))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "psp"}, "unknown decoder 'psp'. Expected fpn, upernet, unet"),
        (
            {"decoder_kwargs": {"encoder_weights": "x"}},
            "Expected arguments of segmentation_models_pytorch.FPN",
        ),
        ({"decoder_kwargs": {"decoder_colour": 1}}, r"cannot be built with decoder_kwargs=.*decoder_colour"),
    ],
    ids=str,
)
def test_impossible_options_are_rejected(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Segmenter("test_resnet", 3, **options)  # type: ignore[arg-type]


def test_unknown_arguments_of_the_backbone_are_rejected_as_by_timm() -> None:
    with pytest.raises(TypeError, match="colour"):
        Segmenter("test_resnet", 3, {"colour": 1})


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "segmentation_models_pytorch", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'acmix-zoo\[segment\]'"):
        create_task_network(SEGMENTATION, "test_resnet", num_classes=3)


@pytest.mark.parametrize("name", ["acmix_swin_nano", "acmix_pvt_pico"])
def test_a_decoder_that_needs_other_feature_maps_is_rejected(name: str) -> None:
    with pytest.raises(ValueError, match=rf"fpn needs a feature map of 1/2 of the image, which {name} does not have"):
        Segmenter(name, 5)
    with torch.no_grad():
        assert Segmenter(name, 5, decoder="upernet", decoder_kwargs=SMALL["upernet"]).eval()(
            torch.randn(1, 3, 64, 64)
        ).shape == (1, 5, 64, 64)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_no_stage_of_the_backbone_is_lost(output_stride: int) -> None:
    with pytest.raises(ValueError, match=rf"feature maps of 1/{output_stride} of the image.* leave out output_stride"):
        Segmenter("acmix_resnet26", 5, {"output_stride": output_stride})


@pytest.mark.parametrize("decoder", DECODERS)
def test_backbones_that_reduce_images_too_much_are_rejected(decoder: str) -> None:
    with pytest.raises(ValueError, match=r"levit_128 reduces images to 1/64\. Expected feature maps down to 1/32"):
        Segmenter("levit_128", 3, decoder=decoder)  # type: ignore[arg-type]


@pytest.mark.parametrize("decoder", ["unet", "upernet"])
def test_backbones_without_large_feature_maps_are_rejected(decoder: Any) -> None:
    with pytest.raises(ValueError, match="the largest feature map of acmix_swin_pico is 1/8 of the image"):
        Segmenter("acmix_swin_pico", 3, {"patch_size": 8}, decoder)
