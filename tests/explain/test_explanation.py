"""`explain` as a whole: its defaults, and what it says about networks that lack a path."""

import copy

import pytest
import torch
from support.explained import explained_network, smooth_image
from torch import nn

from acmix_zoo.explain import explain, pixel_attention


def test_the_defaults_are_the_best_class_and_the_strongest_attention() -> None:
    model, image = explained_network("acmix_san_pico"), smooth_image()
    found = explain(model, image)
    logits = model(image)[0].detach()
    assert found.target == int(logits.argmax()) and found.probabilities.allclose(logits.softmax(0))
    assert found.contributions and found.attention and found.grad_cam is not None and not found.missing
    assert found.contributions.scores.both == pytest.approx(float(logits.max()))
    strongest = max(found.contributions.layers, key=lambda layer: abs(layer.attention.total))  # type: ignore[union-attr]
    assert found.attention.layer == strongest.name and strongest.attention
    row, column = found.attention.query
    assert strongest.attention.positions[row, column] == strongest.attention.positions.max()
    assert list(found.kernels) == [layer.name for layer in found.contributions.layers]


def test_the_class_token_is_shown_if_it_contributes_most() -> None:
    """Only the class token contributes in the last layer. With negated weights, it is evidence against the class."""
    model, shown = explained_network("acmix_pvt_pico", global_pool="token"), {}
    for sign in (1, -1):
        model.get_classifier().weight.data.mul_(sign)  # type: ignore[operator]
        found = explain(model, smooth_image(), layer="block2.0.attn", target=0)
        assert found.contributions and found.attention
        part = found.contributions.layers[-1].attention
        assert part and found.attention.layer == found.contributions.layers[-1].name
        shown[part.tokens > 0] = found.attention.pixel
        assert found.attention.weights.shape[1:] == (3, 3)
    assert shown[True] == "token" and shown[False] != "token"


def test_the_class_token_is_looked_for_in_the_layers_that_have_one() -> None:
    """Whichever layer contributes most."""
    model, image = explained_network("acmix_pvt_pico", global_pool="token"), smooth_image()
    strongest = explain(model, image).attention
    assert strongest and strongest.layer == "block1.0.attn"
    found = explain(model, image, pixel="token").attention
    assert found and found.pixel == "token" and found.layer == "block2.0.attn"


@pytest.mark.parametrize("kind", ["part", "whole"])
def test_compiled_networks_are_explained_as_the_network_itself(kind: str) -> None:
    """Compiled code would not run the hooks of an explanation."""
    model, image = explained_network("acmix_resnet_pico"), smooth_image()
    expected = explain(model, image)
    other: nn.Module = copy.deepcopy(model)
    if kind == "part":
        other.get_submodule("layer2").compile(backend="eager")
    else:
        other = torch.compile(other, backend="eager")
    other(image)
    found = explain(other, image)
    assert expected.contributions and found.contributions
    assert found.contributions.scores == expected.contributions.scores
    assert found.grad_cam is not None and expected.grad_cam is not None and found.grad_cam.equal(expected.grad_cam)
    assert found.attention and expected.attention and found.attention.weights.equal(expected.attention.weights)
    assert found.kernels.keys() == expected.kernels.keys()
    assert [layer.name for layer in found.contributions.layers] == [each.name for each in expected.contributions.layers]
    assert other(image).equal(model(image))


def test_graphs_of_fx_are_refused() -> None:
    graph = torch.fx.symbolic_trace(explained_network("acmix_resnet_pico"))
    with pytest.raises(ValueError, match=r"graph of torch\.fx.*Explain the network that the graph was made from"):
        explain(graph, smooth_image())


def test_class_layer_and_pixel_can_be_chosen() -> None:
    model, image = explained_network("acmix_resnet_pico"), smooth_image()
    found = explain(model, image, target=7, layer="layer1.0.conv2", pixel=(23, 0))
    assert found.target == 7 and found.contributions and found.contributions.target == 7
    expected = pixel_attention(model, image, "layer1.0.conv2", (23, 0))
    assert found.attention and torch.equal(found.attention.weights, expected.weights)


def test_a_plain_network_only_has_grad_cam() -> None:
    model = explained_network("resnet_pico")
    found = explain(model, smooth_image())
    assert found.contributions is None and found.attention is None and not found.kernels and found.grad_cam is not None
    (line,) = found.missing
    assert line.startswith("No ACmix layers: ") and "\n" not in line
    with pytest.raises(ValueError, match="no layer with attention"):
        explain(model, smooth_image(), layer="layer1.0.conv2")


@pytest.mark.parametrize(("path", "other"), [("attention", "convolution"), ("convolution", "attention")])
def test_a_missing_path_is_stated_in_one_line(path: str, other: str) -> None:
    found = explain(explained_network("acmix_pvt_pico", paths=path), smooth_image())
    assert found.missing == (f'No {other} path: the layers have paths="{path}", so all of their output is {path}.',)
    assert (found.attention is None) == (path == "convolution") and bool(found.kernels) == (path == "convolution")


@pytest.mark.parametrize("name", ["acmix_resnet_pico", "acmix_swin_pico"])
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    """Recomputing a block used to run the hooks again, which failed."""
    model, image = explained_network(name), smooth_image()
    expected = explain(model, image)
    model.set_grad_checkpointing()  # type: ignore[operator]
    checkpointed = [m for m in model.modules() if getattr(m, "grad_checkpointing", False)]
    found = explain(model, image)
    assert found.contributions and expected.contributions
    assert found.contributions.attention == pytest.approx(expected.contributions.attention, rel=1e-4)
    assert checkpointed and all(m.grad_checkpointing for m in checkpointed)


def test_a_network_from_inference_mode_is_rejected() -> None:
    with torch.inference_mode():
        network = explained_network("acmix_resnet_pico")
    with pytest.raises(ValueError, match="ResNet was created in inference mode, and has no gradients"):
        explain(network, smooth_image())


@pytest.mark.parametrize("name", ["acmix_resnet_pico", "resnet_pico"])
def test_an_image_may_come_from_inference_mode(name: str) -> None:
    """As in the examples of the README, which classify in inference mode."""
    model, image = explained_network(name), smooth_image()
    expected = explain(model, image)
    with torch.inference_mode():
        found = explain(model, image.clone())
    assert found.grad_cam is not None and expected.grad_cam is not None
    assert torch.equal(found.grad_cam, expected.grad_cam)
    assert (found.contributions is None) == (name == "resnet_pico")
