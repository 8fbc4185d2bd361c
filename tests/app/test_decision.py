"""What the page shows agrees with the functions that it uses, and places are the same in networks of different size."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from support.documents import ROOT

from acmix_zoo.app.decision import (
    Decision,
    attention_at,
    explain_decision,
    load_network,
    pixel_at,
    shipped_examples,
    top_classes,
)
from acmix_zoo.app.panels import decision_html
from acmix_zoo.data.prepared_image import prepare_image

BOOT = Image.open(ROOT / "examples/ankle_boot.png").convert("RGB")


def test_the_examples_are_the_test_images_of_the_shipped_weights() -> None:
    examples = shipped_examples()
    assert len(examples) >= 4 and len({image.tobytes() for image in examples}) == len(examples)
    network = load_network("acmix_resnet_pico")
    stored = prepare_image(examples[0], network.model).tensor
    assert torch.isfinite(stored).all() and next(iter(top_classes(network, examples[0]).values())) > 0.5


@pytest.fixture(scope="module")
def decision() -> Decision:
    return explain_decision(load_network("acmix_resnet_pico"), BOOT, (0.5, 0.999))


def test_the_classes_and_the_sums_of_a_decision(decision: Decision) -> None:
    network = load_network("acmix_resnet_pico")
    classes = top_classes(network, BOOT)
    assert next(iter(classes)) == "Ankle boot" and len(classes) == 5
    assert list(classes.values()) == sorted(classes.values(), reverse=True)
    parts = decision.explanation.contributions
    assert parts and decision.label == "Ankle boot"
    assert decision.explanation.attention and decision.explanation.attention.pixel == (16, 31)
    html = decision_html(decision)
    assert f"<b>{parts.scores.both:.2f}</b>" in html and f"<b>{parts.attention:+.2f}</b>" in html
    assert html.count("<img") == 3 and html.count("<tr>") == 1 + len(parts.layers)


def test_a_place_is_the_same_in_every_network() -> None:
    network = load_network("acmix_swin_pico")
    found = attention_at(network, BOOT, network.attention_layers[0], (0.999, 0.0))
    assert found.attention.pixel == (31, 0) and found.attention.layer == network.attention_layers[0]
    assert pixel_at((1.0, 1.0), found.seen) == (31, 31)


def test_a_network_without_our_layers_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    model = timm.create_model("resnet10t", num_classes=3).eval()
    monkeypatch.setattr("acmix_zoo.app.decision.load_classifier", lambda source: model)
    network = load_network("a network that is not in the cache")
    decision = explain_decision(network, BOOT.resize((64, 64)), (0.5, 0.5))
    assert not network.attention_layers and decision.explanation.attention is None
    html = decision_html(decision)
    assert "No ACmix layers" in html and html.count("<img") == 1


def test_class_names_are_escaped(decision: Decision) -> None:
    assert "<script>" not in decision_html(decision._replace(label="<script>alert(1)</script>"))
