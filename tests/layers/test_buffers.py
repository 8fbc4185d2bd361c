"""Buffers outside checkpoints have the right values, however a network was built, moved, copied or loaded."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from support.networks import SMALL
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from acmix_zoo import create_model
from acmix_zoo.ops import use_backend

X = torch.randn(2, 3, 40, 24, generator=torch.Generator().manual_seed(0))  # padded to windows, three by two of them


def with_large_tables(name: str = "acmix_swin_pico", **kwargs: object) -> nn.Module:
    """Return a network in eval mode whose position tables, which start with a std of 0.02, are scaled up."""
    network: nn.Module = create_model(name, **kwargs).eval()
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if key.endswith("relative_position_bias_table"):
                parameter.normal_()
    return network


def assigned(network: nn.Module, shell: nn.Module) -> nn.Module:
    shell.load_state_dict(network.state_dict(), assign=True)
    return shell


def emptied(network: nn.Module, shell: nn.Module) -> nn.Module:
    shell.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in shell.parameters():
            tensor.fill_(float("nan"))
    shell.load_state_dict(network.state_dict())
    return shell


def reinitialised(network: nn.Module, shell: nn.Module) -> nn.Module:
    """Load as transformers does: replace tensors one by one, then call timm's initialisation method on every module."""
    state = network.state_dict()
    for name, module in shell.named_modules():
        for key, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[key] = nn.Parameter(state[f"{name}.{key}".lstrip(".")].clone())
        for key, buffer in list(module._buffers.items()):
            full = f"{name}.{key}".lstrip(".")
            if buffer is not None:
                value = torch.zeros_like(buffer, device="cpu")  # without values, for what no checkpoint holds
                module._buffers[key] = state[full].clone() if full in state else value
    for module in shell.modules():
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
    return shell


@pytest.mark.parametrize("fill", [assigned, emptied, reinitialised], ids=lambda fill: fill.__name__)
@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_built_on_the_meta_device(name: str, fill: Callable[[nn.Module, nn.Module], nn.Module]) -> None:
    network = with_large_tables(name)
    with torch.device("meta"):
        shell = create_model(name)
    torch.testing.assert_close(fill(network, shell).eval()(X), network(X), rtol=0, atol=0)


def test_modules_with_such_buffers_have_the_method_that_timm_calls() -> None:
    for name in SMALL:
        for key, module in create_model(name).named_modules():
            if module._non_persistent_buffers_set:
                assert hasattr(module, "init_non_persistent_buffers"), f"{name}: {key} ({type(module).__name__})"


def test_frozen_shifts_of_a_decomposed_convolution() -> None:
    from acmix_zoo.bench.decomposition import DecomposedConv2d

    layer, x = DecomposedConv2d(4, 4, shift="frozen"), torch.randn(1, 4, 5, 5)
    with torch.device("meta"):
        shell = DecomposedConv2d(4, 4, shift="frozen")
    reinitialised(layer, shell)
    torch.testing.assert_close(shell(x), layer(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    "change",
    [
        copy.deepcopy,
        lambda network: pickle.loads(pickle.dumps(network)),
        lambda network: network.double().float(),
        lambda network: network.to("meta").to_empty(device="cpu"),
    ],
    ids=["deepcopy", "pickle", "dtype", "to_empty"],
)
@torch.no_grad()
def test_changes_keep_the_logits(change: Callable[[nn.Module], nn.Module]) -> None:
    network = with_large_tables()
    expected, state = network(X), copy.deepcopy(network.state_dict())
    changed = change(network)
    changed.load_state_dict(state)
    torch.testing.assert_close(changed(X), expected, rtol=0, atol=0)


def test_a_deployed_network_takes_new_weights() -> None:
    """The position bias of a deployed network comes from the table that was loaded last."""
    first, second = with_large_tables().deploy(), with_large_tables().deploy()
    with torch.no_grad():
        assert not torch.allclose(first(X), second(X))
        first.load_state_dict(second.state_dict())
        torch.testing.assert_close(first(X), second(X), rtol=0, atol=0)


def test_fake_tensors_do_not_stay_in_the_network() -> None:
    network = with_large_tables()
    with torch.no_grad():
        expected = network(X)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, torch.no_grad():
        assert network(mode.from_tensor(X)).shape == (2, 10)
    with torch.no_grad():
        torch.testing.assert_close(network(X), expected, rtol=0, atol=0)


def test_inference_mode_then_training() -> None:
    """A window that was set under inference mode can be used in training."""
    network = create_model("acmix_swin_pico")
    with torch.inference_mode():
        network.set_input_size(64, window_size=8)
        network(torch.randn(1, 3, 64, 64))
    network.train()(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert [key for key, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("size", [(8, 8), (8, 16), (16, 8), (12, 20), (5, 13)])
@torch.no_grad()
def test_masks_of_any_map_size(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The four cached masks give the mask of the full map, which depends on the map's size."""
    from acmix_zoo.layers import window_acmix as module

    layer = module.WindowACmix(16, 2, (4, 4), (2, 2)).eval()
    layer.relative_position_bias_table.normal_()
    x = torch.randn(2, *size, 16)
    native = layer(x)
    with use_backend("python"):
        found = layer(x)

    def mask_of_full_map(_: Tensor, rows: int, cols: int, images: int) -> Tensor:
        shift = (2 if rows > 1 else 0, 2 if cols > 1 else 0)
        mask = module.shifted_window_mask((rows * 4, cols * 4), (4, 4), shift)
        return mask.unsqueeze(1).repeat(images, 1, 1, 1)  # (n, 1, L, L)

    monkeypatch.setattr(module, "window_masks", mask_of_full_map)
    with use_backend("python"):
        expected = layer(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(native, expected, rtol=1e-5, atol=1e-5)


def test_no_mask_is_computed_in_a_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from acmix_zoo.layers import window_acmix as module

    network = create_model("acmix_swin_pico")
    monkeypatch.setattr(module, "shifted_window_mask", None)
    network(X).sum().backward()
    held = sum(buffer.nbytes for _, buffer in network.named_buffers() if buffer.dim() == 3)
    assert 0 < held <= 2 * 4 * 16**2 * 4  # two shifted blocks, four masks of 16 × 16 positions in float32


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("window", [(2, 4), (4, 2), (1, 4), (4, 1), (13, 1), (6, 5)])
def test_table_of_a_window_that_is_not_square(window: tuple[int, int]) -> None:
    """A table that is steeper along columns than along rows stays that way, so height and width are not swapped."""
    from acmix_zoo.layers import WindowACmix

    layer = WindowACmix(16, 2, (6, 6))

    def slopes() -> Tensor:
        (wh, ww), table = layer.window, layer.relative_position_bias_table.detach()
        maps = table.mT.unflatten(1, (2 * wh - 1, 2 * ww - 1))  # (heads, 2·wh−1, 2·ww−1)
        return torch.stack([maps.diff(dim=i).mean() if maps.shape[i] > 1 else torch.zeros(()) for i in (1, 2)])

    rows, cols = torch.meshgrid(torch.arange(-5.0, 6), torch.arange(-5.0, 6), indexing="ij")
    with torch.no_grad():
        layer.relative_position_bias_table.copy_((rows + 10 * cols).flatten().unsqueeze(1).expand(-1, 2))
    for target in (window, window[::-1], (6, 6)):
        layer.set_window(target, (0, 0))
        assert layer.relative_position_bias_table.shape == ((2 * target[0] - 1) * (2 * target[1] - 1), 2)
        down, across = slopes()
        assert across == 0 or down == 0 or across > down > 0
        assert layer(torch.randn(1, 12, 12, 16)).isfinite().all()
