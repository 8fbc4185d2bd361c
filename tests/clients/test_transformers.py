"""transformers: load the shipped weight folders, and use the networks as backbones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import acmix_zoo
from acmix_zoo.weights.shipped import shipped_classifiers

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

FOLDERS = list(shipped_classifiers().values())


def labels(folder: Path) -> list[str]:
    """Return the class names that a folder states."""
    names: list[str] = json.loads((folder / "config.json").read_text(encoding="utf-8"))["label_names"]
    return names


def example(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and the logits that the weights of a folder give for them."""
    from safetensors.torch import load_file

    stored = load_file(folder / "test" / "example.safetensors")
    return stored["input"], stored["logits"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_classifier(folder: Path) -> None:
    """transformers builds on the meta device and fills in the checkpoint. Buffers that it lacks must be right, too."""
    images, logits = example(folder)
    model = transformers.AutoModelForImageClassification.from_pretrained(folder)
    ours = acmix_zoo.create_model(folder).eval()
    with torch.no_grad():
        found = model(images, output_hidden_states=True)
        assert torch.equal(found.logits, ours(images))
        torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-4)
        for hidden, map_ in zip(found.hidden_states, ours.forward_intermediates(images)[1], strict=True):
            assert torch.equal(hidden, map_)
    for key, buffer in ours.named_buffers():
        assert torch.equal(model.timm_model.get_buffer(key), buffer), key
    assert model.config.id2label == dict(enumerate(labels(folder)))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_config_and_pipeline(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    config = transformers.AutoConfig.from_pretrained(folder)
    assert type(config).__name__ == "TimmWrapperConfig"
    assert config.architecture == json.loads((folder / "config.json").read_text(encoding="utf-8"))["architecture"]
    classify = transformers.pipeline("image-classification", model=str(folder), top_k=1000)
    assert {row["label"] for row in classify(Image.new("RGB", (40, 50), "white"))} == set(labels(folder))

    features = transformers.AutoModel.from_pretrained(folder).eval()
    pooled = features(example(folder)[0]).pooler_output
    assert pooled.shape == (len(example(folder)[0]), features.timm_model.num_features)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_saved_again(folder: Path, tmp_path: Path) -> None:
    """A folder saved by transformers gives the same logits and labels. (timm 1.0.31 cannot read any such folder.)"""
    images, logits = example(folder)
    model = transformers.AutoModelForImageClassification.from_pretrained(folder)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(images).logits, logits, rtol=1e-4, atol=1e-4)
    assert again.config.id2label == dict(enumerate(labels(folder)))


def test_message_without_our_package_is_as_described_in_cards() -> None:
    """Cards say that `import acmix_zoo` is needed, because transformers gives different advice."""
    code = "import sys; from transformers import AutoModelForImageClassification as M; M.from_pretrained(sys.argv[1])"
    found = subprocess.run([sys.executable, "-c", code, str(FOLDERS[0])], capture_output=True, text=True, check=False)
    assert found.returncode and "upgrade timm" in found.stderr
    assert "import acmix_zoo  # registers" in (FOLDERS[0] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["acmix_resnet26", "acmix_swin_t", "acmix_san10", "acmix_pvt_t"])
def test_backbone_of_a_segmentation_network(name: str) -> None:
    """TimmBackbone, and UperNet on top of it."""
    indices = [0, 1, 2, 3] if name in ("acmix_swin_t", "acmix_pvt_t") else [1, 2, 3, 4]
    backbone = transformers.TimmBackboneConfig(backbone=name, out_indices=indices, use_pretrained_backbone=False)
    maps = transformers.TimmBackbone(backbone).eval()(torch.randn(1, 3, 64, 64)).feature_maps
    assert [map_.shape[2] for map_ in maps] == [16, 8, 4, 2]
    config = transformers.UperNetConfig(
        backbone_config=backbone, num_labels=3, hidden_size=32, use_auxiliary_head=False, pool_scales=[1, 2]
    )
    network = transformers.UperNetForSemanticSegmentation(config).train()
    out = network(torch.randn(2, 3, 64, 64), labels=torch.zeros(2, 64, 64, dtype=torch.long))
    assert out.logits.shape == (2, 3, 64, 64)
    out.loss.backward()
    assert [key for key, p in network.backbone.named_parameters() if p.grad is None and p.requires_grad] == []


@pytest.mark.parametrize("name", ["acmix_resnet26", "acmix_swin_t", "acmix_san10", "acmix_pvt_t"])
def test_backbone_of_detr(name: str) -> None:
    last = [3] if name in ("acmix_swin_t", "acmix_pvt_t") else [4]
    backbone = transformers.TimmBackboneConfig(backbone=name, out_indices=last, use_pretrained_backbone=False)
    config = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, d_model=32,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, num_queries=5, num_labels=3,
    )  # fmt: skip
    network = transformers.DetrForObjectDetection(config).eval()
    out = network(torch.randn(1, 3, 64, 96))
    assert out.logits.shape == (1, 5, 4) and out.pred_boxes.isfinite().all()
