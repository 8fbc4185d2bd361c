"""Detectors on any backbone: losses and detections, strides, norms, and example outputs."""

from typing import Any, get_args

import pytest
import torch
from torch import nn
from torchvision.models.detection import RetinaNet

from acmix_zoo import create_model
from acmix_zoo.layers.complexity import complexity
from acmix_zoo.models.detector import Detector, DetectorName
from acmix_zoo.models.task_kinds import DETECTION
from acmix_zoo.weights.create import create_task_network

NAMES = get_args(DetectorName)
SMALL: dict[str, Any] = {"channels": 64, "image_size": 64, "max_size": 96, "model_kwargs": {"layers": (1, 1, 1)}}
TARGET = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 30.0]]), "labels": torch.tensor([1])}
FEW = {"box_batch_size_per_image": 8, "rpn_post_nms_top_n_train": 8, "rpn_post_nms_top_n_test": 8}


def make(name: str = "retinanet", backbone: str = "acmix_resnet_pico", **options: Any) -> Detector:
    """Return a small detector. R-CNN has few proposals, because each costs as much as a small network."""
    torch.manual_seed(0)
    if name.endswith("rcnn"):
        options["detector_kwargs"] = {**FEW, **options.get("detector_kwargs", {})}
    return Detector(backbone, 2, detector=name, **{**SMALL, **options})


def losses(detector: Detector, size: tuple[int, int] = (64, 96)) -> dict[str, torch.Tensor]:
    target = {**TARGET, "masks": torch.ones(1, *size, dtype=torch.uint8)}
    return detector.train()([torch.rand(3, *size)] * 2, [target, {name: part[:0] for name, part in target.items()}])


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == "mask_rcnn" else []) for n in NAMES])
def test_detectors_train_and_predict(name: str) -> None:
    detector = make(name)
    found = losses(detector)  # the second image has no objects
    sum(found.values()).backward()
    assert all(loss.isfinite() for loss in found.values())
    assert [key for key, p in detector.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        detections = detector.eval()([torch.rand(3, 50, 40), torch.rand(3, 64, 96)])
    assert [each["boxes"].shape[1] for each in detections] == [4, 4]
    assert ("masks" in detections[0]) == (name == "mask_rcnn")


def test_no_images_have_no_detections() -> None:
    assert make("fcos").eval()(torch.rand(0, 3, 64, 64)) == []


def test_detections_do_not_depend_on_the_other_images() -> None:
    """Group norms would see the padding to a common size."""
    detector = make("fcos", detector_kwargs={"score_thresh": 0.0}).eval()
    image = torch.rand(3, 64, 64)
    with torch.no_grad():
        (alone,), (beside, _) = detector([image]), detector([image, torch.rand(3, 96, 40)])
    assert len(alone["scores"]) and all(torch.equal(alone[key], beside[key]) for key in alone)


@pytest.mark.parametrize("name", ["retinanet", "fcos", pytest.param("faster_rcnn", marks=pytest.mark.slow)])
def test_boxes_are_in_float32_under_autocast(name: str) -> None:
    """bfloat16 would round coordinates above 512 pixels to multiples of 4."""
    threshold = {("box_" if "rcnn" in name else "") + "score_thresh": 0.0}
    detector = make(name, detector_kwargs=threshold, image_size=64, max_size=640).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (found,) = detector(torch.rand(1, 3, 32, 320))
    right = found["boxes"][:, 2] * 2  # in pixels of the resized image
    assert found["boxes"].dtype == torch.float32 and right.max() > 512
    assert not torch.equal(right, right.bfloat16().float())


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if "rcnn" in n else []) for n in NAMES])
def test_detectors_in_bfloat16(name: str) -> None:
    """As with `--trainer.precision bf16-true`. Boxes are nevertheless in float32."""
    threshold = {("box_" if "rcnn" in name else "") + "score_thresh": 0.0}
    detector = make(name, "test_resnet", model_kwargs={}, detector_kwargs=threshold).bfloat16()
    image = torch.rand(3, 64, 96).bfloat16()
    target = {**TARGET, "masks": torch.ones(1, 64, 96, dtype=torch.uint8)}
    found = detector.train()([image], [target])
    sum(found.values()).backward()
    assert all(loss.isfinite() for loss in found.values())
    with torch.no_grad():
        (detections,) = detector.eval()([image])
        assert all(output.isfinite().all() for output in detector.example_outputs(image[None]).values())
    assert len(detections["boxes"]) and detections["boxes"].dtype == torch.float32


def test_levels_follow_the_strides() -> None:
    pyramid = make("retinanet", strides=(8, 16, 32, 64)).detector.backbone
    maps = pyramid(torch.rand(1, 3, 64, 128))  # pico has strides up to 16
    assert [tuple(each.shape[1:]) for each in maps.values()] == [(64, 8, 16), (64, 4, 8), (64, 2, 4), (64, 1, 2)]
    assert len(pyramid.body.feature_info.channels()) == 2


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_only_needed_stages_are_built(name: str) -> None:
    detector = make(name, strides=(4, 8))
    assert not [key for key, _ in detector.backbone.named_parameters() if "layer3" in key]
    assert losses(detector)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detector": "yolo"}, "unknown detector='yolo'. Expected one of retinanet, fcos"),
        ({"strides": (8, 32)}, "Expected each to be twice the one before"),
        ({"strides": (32, 64)}, r"strides 2, 4, 8, 16, but none of stride 32. Start .* \[4, 8, 16\]"),
        ({"detector": "fcos", "anchor_scale": 2}, "has no effect, because FCOS has no anchors"),
        ({"channels": 40}, "channels=40 cannot be divided into 32 groups"),
        ({"channels": 32}, "groups of two or more for the norms of retinanet. Use a multiple of 32, at least 64"),
        (
            {"detector_kwargs": {"colour": 1}},
            "RetinaNet has no argument colour. Expected .*nms_thresh",
        ),
        ({"channels": 0, "detector": "faster_rcnn"}, "channels=0 is not positive"),
        ({"model_kwargs": {"out_indices": (0,)}}, "model_kwargs has out_indices, which Detector sets itself"),
        ({"detector_kwargs": {"kwargs": 1}}, "RetinaNet has no argument kwargs"),
        ({"detector_kwargs": {"min_size": 400}}, r"has min_size, .* Use image_size \(data\.image_size"),
        ({"detector_kwargs": {"image_mean": [0, 0, 0]}}, "has image_mean, .* Use mean of the data module"),
        ({"detector_kwargs": {"num_classes": 4}}, "has num_classes, .* Use num_classes of the detector"),
        ({"detector_kwargs": {"anchor_generator": None}, "detector": "fcos"}, "Use anchor_scale and strides"),
        (
            {"detector_kwargs": {"rpn_anchor_generator": None}, "detector": "faster_rcnn"},
            "Use anchor_scale and strides",
        ),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Detector("acmix_resnet_pico", 2, **{**SMALL, **options})


def test_anchors_follow_the_scale_and_the_stride() -> None:
    anchors = make("retinanet", anchor_scale=2.5, strides=(8, 16)).detector.anchor_generator
    assert [min(sizes) for sizes in anchors.sizes] == [20, 40]
    assert make("fcos", strides=(8, 16)).detector.anchor_generator.sizes == ((8,), (16,))


def test_frozen_norms_keep_their_statistics() -> None:
    norms = ("running_mean", "running_var")
    for frozen in (True, False):
        detector = make(frozen_norms=frozen, strides=(8, 16))
        before = {key: value.clone() for key, value in detector.state_dict().items() if key.endswith(norms)}
        losses(detector)
        state = detector.state_dict()
        assert before and all(torch.equal(state[key], value) for key, value in before.items()) == frozen
        assert any(isinstance(module, nn.BatchNorm2d) for module in detector.backbone.modules()) != frozen


@pytest.mark.parametrize("frozen", [False, True])
def test_weights_of_a_classifier_fill_the_backbone(frozen: bool) -> None:
    torch.manual_seed(1)
    classifier = create_model("acmix_resnet_pico", layers=(1, 1, 1)).eval()
    nn.init.uniform_(classifier.bn1.running_mean)
    detector = make(frozen_norms=frozen, strides=(4, 8, 16)).eval()
    detector.load_backbone(classifier)
    images = torch.rand(1, 3, 32, 32)
    expected = classifier.forward_intermediates(images, [1, 2, 3], intermediates_only=True)
    for found, each in zip(detector.backbone(images), expected, strict=True):
        torch.testing.assert_close(found, each)


@pytest.mark.parametrize("name", ["acmix_pvt_pico", "acmix_swin_pico"])
def test_positions_of_a_classifier_fit_larger_images(name: str) -> None:
    """The position tables of weights for 32 pixels are interpolated when they are loaded for a stated size, or later
    for each image (PVT). Windows (Swin) are shifted as in a network for that size."""
    options = {"detector": "fcos", "strides": [4, 8], "channels": 64}
    images, found = torch.randn(1, 3, 64, 88), []
    for arguments in ({}, {"img_size": (64, 88)}):
        network = create_task_network(
            DETECTION, name, "fashion_mnist", num_classes=2, model_kwargs=arguments, options=options
        )
        with torch.no_grad():
            found.append(network.eval().backbone(images))  # type: ignore[operator]
    for own, stated in zip(*found, strict=True):
        torch.testing.assert_close(own, stated, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_example_outputs_do_not_depend_on_thresholds(name: str) -> None:
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        outputs = make(name, "test_resnet", model_kwargs={}).eval().example_outputs(images)
        threshold = {("box_" if "rcnn" in name else "") + "score_thresh": 0.9}
        detector = make(name, "test_resnet", model_kwargs={}, detector_kwargs=threshold)
        strict = detector.eval().example_outputs(images)
    assert all(torch.equal(outputs[key], strict[key]) and len(value) >= 2 for key, value in outputs.items())


@pytest.mark.parametrize("name", NAMES)
def test_the_cost_is_counted_without_selecting_boxes(name: str) -> None:
    with torch.device("meta"):
        detector = make(name, "test_resnet", model_kwargs={})
        backbone = create_model("test_resnet")
    counted = complexity(detector, (3, 64, 96))
    assert counted.macs > complexity(backbone, (3, 64, 96)).macs
    assert counted.params == sum(p.numel() for p in detector.parameters())


def test_images_are_resized_in_evaluation_only() -> None:
    transform = make().detector.transform
    image = torch.rand(3, 30, 50)
    batch, _ = transform.train()([image])
    assert batch.image_sizes == [(30, 50)] and torch.equal(batch.tensors[0, :, :30, :50], image)
    assert transform.eval()([image])[0].image_sizes == [(58, 96)]
    assert transform([torch.rand(3, 1, 300)])[0].image_sizes == [(1, 96)]


def test_boxes_are_in_pixels_of_the_given_image() -> None:
    """An image of one colour at twice the size has boxes of twice the size."""
    detector = make(detector_kwargs={"score_thresh": 0.0}).eval()
    with torch.no_grad():
        (small,), (large,) = detector(torch.ones(1, 3, 64, 96)), detector(torch.ones(1, 3, 128, 192))
    assert len(small["boxes"])
    torch.testing.assert_close(large["boxes"], 2 * small["boxes"])


def test_the_default_anchors_of_retinanet_are_those_of_torchvision() -> None:
    own = make("retinanet").detector
    reference = RetinaNet(own.backbone, 3, head=own.head).anchor_generator
    for anchors, expected in zip(own.anchor_generator.cell_anchors, reference.cell_anchors, strict=True):
        torch.testing.assert_close(anchors, expected, atol=4, rtol=0.03)  # torchvision rounds sizes down


def test_a_timm_backbone_with_channels_last_maps() -> None:
    """timm's Swin returns (B, H, W, C)."""
    kwargs = {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "img_size": 64}
    detector = Detector("swin_tiny_patch4_window7_224", 2, kwargs, channels=64, strides=(4, 8, 16))
    maps = detector.detector.backbone(torch.rand(1, 3, 64, 64))
    assert [tuple(each.shape[1:]) for each in maps.values()] == [(64, 16, 16), (64, 8, 8), (64, 4, 4)]
