"""The public names of each package. Whoever adds, removes or renames one has to change the list here as well."""

import importlib
import inspect

import pytest

PUBLIC = {
    "acmix_zoo": [
        "ACmix2d",
        "create_model",
        "from_pretrained",
        "from_pvt",
        "from_resnet",
        "from_san",
        "from_swin",
        "list_models",
        "load_weights",
        "models",
        "swap_conv3x3",
    ],
    "acmix_zoo.data": [
        "BoxDataModule",
        "ImageDataModule",
        "MaskDataModule",
        "UnreadableImage",
        "load_image",
        "open_source",
    ],
    "acmix_zoo.explain": [
        "Explanation",
        "Subject",
        "contributions",
        "effective_kernels",
        "explain",
        "grad_cam",
        "pixel_attention",
        "write_explanation",
    ],
    "acmix_zoo.layers": [
        "ACmix2d",
        "AugmentedConv2d",
        "ContextAggregation",
        "PairwiseSAM",
        "PatchwiseSAM",
        "ReducedACmix",
        "RelativeAttention",
        "TwoStageLayer",
        "WindowACmix",
    ],
    "acmix_zoo.models": [
        "AAResNet",
        "ACmixResNet",
        "ACmixSwin",
        "BoTResNet",
        "CBAMResNet",
        "Container",
        "ContainerResNet",
        "PVT",
        "PlainResNet",
        "SAN",
        "SEResNet",
        "SeriesResNet",
    ],
    "acmix_zoo.tasks": ["ClassificationTask", "DetectionTask", "SegmentationTask", "Task"],
}


@pytest.mark.parametrize("package", PUBLIC)
class TestPublicNames:
    def test_are_those_listed(self, package: str) -> None:
        exported, listed = set(importlib.import_module(package).__all__), set(PUBLIC[package])
        assert exported - listed == set(), "added: list them here, and in CHANGELOG.md"
        assert listed - exported == set(), "removed: this breaks users' programs; say so in CHANGELOG.md"

    def test_are_documented(self, package: str) -> None:
        module = importlib.import_module(package)
        for name in PUBLIC[package]:
            value = getattr(module, name)
            own = value.__doc__ if inspect.isclass(value) else inspect.getdoc(value)
            assert own and own.strip(), f"{package}.{name} has no docstring"

    def test_are_named_in_the_docstring_of_the_package(self, package: str) -> None:
        module = importlib.import_module(package)
        missing = [name for name in PUBLIC[package] if f"`{name}`" not in (module.__doc__ or "")]
        assert not missing, f"{package}/__init__.py does not say what these are for"
