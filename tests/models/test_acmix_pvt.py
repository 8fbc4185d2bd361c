"""PVT and ACmix-PVT: the logits of the released code, the layer written as loops, positions, and the class token."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from support.golden_networks import SAN_AND_PVT, golden_input, golden_state
from support.weight_folders import PRETRAINED_CFG, write_weights

from acmix_zoo import create_model, load_weights
from acmix_zoo.layers import ReducedACmix
from acmix_zoo.models import PVT
from acmix_zoo.models.acmix_pvt import checkpoint_filter_fn
from acmix_zoo.models.pvt_tokens import resized_positions
from acmix_zoo.ops.shift_conv import shift_conv_reference

GOLDEN = next(entry for entry in SAN_AND_PVT if entry["family"] == "pvt")


@pytest.fixture(scope="module")
def tiny() -> PVT:
    network = timm.create_model("pvt_tiny").eval()
    return load_weights(network, golden_state(GOLDEN))  # strict, with the names of the released code


def test_logits_of_the_released_network(tiny) -> None:
    with torch.no_grad():
        logits = tiny(golden_input(GOLDEN))
    expected = torch.tensor(GOLDEN["logits"])
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", ["pvt_tiny", "acmix_pvt_pico"])
def test_weights_for_another_size(name: str, tiny) -> None:
    """Positions are interpolated at run time, or once when weights are loaded: the same logits."""
    network = tiny if name == "pvt_tiny" else create_model(name).eval()
    side = 192 if name == "pvt_tiny" else 48
    larger = load_weights(timm.create_model(name, img_size=side).eval(), network.state_dict())
    assert larger.pos_embed1.shape != network.pos_embed1.shape
    x = torch.randn(1, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(larger(x), network(x), rtol=1e-4, atol=1e-5)


def test_positions_of_oblong_images() -> None:
    """Tables of the right size are used unchanged. Others are assumed to belong to square images."""
    oblong = timm.create_model("acmix_pvt_pico", img_size=(32, 64))
    state = {key: torch.randn_like(value) for key, value in oblong.state_dict().items() if key.startswith("pos_embed")}
    assert all(torch.equal(value, state[key]) for key, value in checkpoint_filter_fn(state, oblong).items())
    square = timm.create_model("acmix_pvt_pico").state_dict()
    assert checkpoint_filter_fn(square, oblong)["pos_embed2"].shape == (1, 1 + 4 * 8, 128)


def test_tables_of_the_right_size_are_not_changed() -> None:
    """4×16 positions are as many as 8×8, the size that timm's default states."""
    oblong = timm.create_model("acmix_pvt_pico", img_size=(16, 64))
    target = timm.create_model("acmix_pvt_pico", img_size=(16, 64))
    filtered = checkpoint_filter_fn(oblong.state_dict(), target)
    assert all(torch.equal(value, filtered[key]) for key, value in oblong.state_dict().items())


def test_stored_weights_of_oblong_images_for_another_size(tmp_path: Path) -> None:
    """Their folder states the size. 4×16 positions used to be taken for 8×8."""
    oblong = create_model("acmix_pvt_pico", img_size=(16, 64)).eval()
    cfg = {**PRETRAINED_CFG, "input_size": (3, 16, 64)}
    folder = write_weights(tmp_path / "weights", oblong, architecture="acmix_pvt_pico", pretrained_cfg=cfg)
    for side in (32, 48):
        x = torch.randn(1, 3, side, side)
        with torch.no_grad():
            larger = create_model(folder, img_size=side).eval()
            torch.testing.assert_close(larger(x), oblong(x), rtol=1e-4, atol=1e-5)


def test_positions_are_interpolated_as_in_the_released_code() -> None:
    """That is bilinearly, and without the position of the class token, which stays first."""
    table = torch.randn(1, 1 + 16, 6)
    found = resized_positions(table, (4, 4), (5, 7))
    maps = table[:, 1:].reshape(1, 4, 4, 6).permute(0, 3, 1, 2)
    expected = F.interpolate(maps, size=(5, 7), mode="bilinear").reshape(1, 6, -1).permute(0, 2, 1)
    assert torch.equal(found, torch.cat([table[:, :1], expected], 1))
    assert resized_positions(table, (4, 4), (4, 4)) is table


# ---- the layer


def by_loops(layer: ReducedACmix, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Compute the layer with loops over positions, heads and patches, for maps of whole patches."""
    (h, w), heads, side = size, layer.heads, layer.reduction
    b, length, dim = x.shape
    prefix, d = length - h * w, dim // heads
    if side > 1:
        cells = []
        for y in range(0, h, side):
            for z in range(0, w, side):
                patch = x[:, prefix:].reshape(b, h, w, dim)[:, y : y + side, z : z + side]  # (B, side, side, dim)
                cells.append(torch.einsum("byzc,ocyz->bo", patch, layer.sr.weight) + layer.sr.bias)
        seen = F.layer_norm(torch.stack(cells, 1), (dim,), layer.norm.weight, layer.norm.bias)  # (B, L′, dim)
    else:
        seen = x
    q, kv = layer.q(x), layer.kv(seen)
    k, v = kv[..., :dim], kv[..., dim:]
    attention = torch.zeros_like(x)
    for i in range(length):
        for n in range(heads):
            part = slice(n * d, (n + 1) * d)
            weights = (torch.einsum("bc,blc->bl", q[:, i, part], k[..., part]) * d**-0.5).softmax(1)
            attention[:, i, part] = torch.einsum("bl,blc->bc", weights, v[..., part])
    maps = torch.zeros(b, h, w, d, 3 * heads, dtype=x.dtype)
    for y in range(h):
        for z in range(w):
            here = prefix + y * w + z
            there = y // side * (w // side) + z // side if side > 1 else here
            for i, t in enumerate((q[:, here], k[:, there], v[:, there])):
                maps[:, y, z, :, i * heads : (i + 1) * heads] = t.reshape(b, heads, d).mT
    conv = layer.shift_conv
    convolution = shift_conv_reference(maps, conv.fc_weight, conv.shift_weight, conv.fc_bias).flatten(1, 2)
    out = layer.alpha * layer.proj(attention)
    out[:, prefix:] = out[:, prefix:] + layer.beta * convolution
    return out


@pytest.mark.parametrize(("reduction", "prefix"), [(2, 0), (4, 0), (1, 1), (1, 0)])
def test_layer_equals_loops(reduction: int, prefix: int) -> None:
    layer = ReducedACmix(12, 3, reduction).double()
    for parameter in layer.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    results = []
    for f in (layer, lambda x, size: by_loops(layer, x, size)):
        torch.manual_seed(1)
        x = torch.randn(2, prefix + 4 * 8, 12, dtype=torch.float64, requires_grad=True)
        out = f(x, (4, 8))
        grads = torch.autograd.grad((out * torch.randn_like(out)).sum(), [x, *layer.parameters()])
        results.append((out, *grads))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def test_class_token_is_left_out_of_the_convolution() -> None:
    layer = ReducedACmix(8, 2, paths="convolution")
    out = layer(torch.randn(1, 1 + 9, 8), (3, 3))
    assert out[:, 0].eq(0).all() and out[:, 1:].abs().min() > 0


@pytest.mark.parametrize("paths", ["attention", "convolution"])
def test_one_path_alone(paths: str) -> None:
    both, alone = ReducedACmix(8, 2, 2), ReducedACmix(8, 2, 2, paths=paths)
    alone.load_state_dict({key: value for key, value in both.state_dict().items() if key in alone.state_dict()})
    with torch.no_grad():
        both.alpha.fill_(paths == "attention")
        both.beta.fill_(paths == "convolution")
    x = torch.randn(2, 5 * 7, 8)  # no multiple of the patches
    torch.testing.assert_close(both(x, (5, 7)), alone(x, (5, 7)))


def test_layer_errors() -> None:
    with pytest.raises(ValueError, match="=8 or 12, or heads="):
        ReducedACmix(10, 4)
    with pytest.raises(ValueError, match=r"ReducedACmix: paths must be .*, got 'none'"):
        timm.create_model("acmix_pvt_pico", paths="none")


# ---- the network


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (33, 47), (8, 8), (2, 2), (1, 5)])
def test_any_size(size: tuple[int, int]) -> None:
    network = create_model("acmix_pvt_pico").eval()
    assert network(torch.randn(1, 3, *size)).shape == (1, 10)


def test_large_network_at_an_odd_size() -> None:
    network = timm.create_model("acmix_pvt_t", num_classes=5).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, 70, 95)).isfinite().all()


def test_pooling() -> None:
    network = create_model("acmix_pvt_pico", global_pool="token").eval()
    x = torch.randn(2, 3, 32, 32)
    tokens = network.forward_features(x)
    assert tokens.shape == (2, 1 + 16, 128)
    assert torch.equal(network.forward_head(tokens, pre_logits=True), tokens[:, 0])
    network.reset_classifier(4, "avg")
    torch.testing.assert_close(network.forward_head(tokens), network.head(tokens[:, 1:].mean(1)))
    with pytest.raises(ValueError, match="global_pool must be"):
        network.reset_classifier(4, "max")


def test_pooling_without_the_last_stage() -> None:
    """It takes the class token with it."""
    network = create_model("acmix_pvt_pico").eval()
    network.prune_intermediate_layers([0])
    x = torch.randn(2, 3, 32, 32)
    features = network.forward_features(x)  # (2, 64, 64), 8 × 8 positions
    network.reset_classifier(0, "avg")
    torch.testing.assert_close(network(x), features.mean(1))
    with pytest.raises(ValueError, match=r"global_pool must be one of \('avg', ''\), got 'token'"):
        network.reset_classifier(0, "token")


def test_attention_alone_is_pvt() -> None:
    """acmix_pvt without its convolution has the parameters of PVT."""
    with torch.device("meta"):
        pure = timm.create_model("acmix_pvt_t", paths="attention").state_dict()
        plain = timm.create_model("pvt_tiny").state_dict()
        alone = timm.create_model("acmix_pvt_t", paths="convolution")
    assert {key: value.shape for key, value in pure.items()} == {key: value.shape for key, value in plain.items()}
    assert not any(".proj.weight" in key and "attn" in key for key in alone.state_dict())


def test_weights_fit_a_network_that_was_built_directly_or_pruned() -> None:
    shape = {"depths": (1, 1), "embed_dims": (8, 16), "num_heads": (1, 2), "mlp_ratios": (2, 2), "reductions": (2, 1)}
    larger, smaller = PVT(64, num_classes=3, **shape), PVT(32, num_classes=3, **shape)
    assert load_weights(larger, smaller.state_dict()).pos_embed1.shape[1] == 4 * smaller.pos_embed1.shape[1]
    complete, pruned = create_model("acmix_pvt_pico"), create_model("acmix_pvt_pico")
    pruned.prune_intermediate_layers((0,))
    with pytest.warns(UserWarning, match="unexpected 67 keys: block2"):
        load_weights(pruned, complete.state_dict(), strict=False)
    assert torch.equal(pruned.pos_embed1, complete.pos_embed1)


def test_the_last_stage_cannot_be_reduced() -> None:
    create_model("acmix_pvt_pico", reductions=[4, 1])  # as JSON and YAML give it
    with pytest.raises(ValueError, match=r"PVT: reductions=\(4, 2\). Expected 1 in the last stage"):
        create_model("acmix_pvt_pico", reductions=(4, 2))
