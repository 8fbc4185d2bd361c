"""ACmix-Swin: any image size, windows and position tables, and the order of convolution and shift."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.models import create_model

from acmix_zoo import load_weights


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (33, 47), (8, 8), (2, 2), (1, 5)])
def test_takes_any_image_size(size: tuple[int, int]) -> None:
    network = create_model("acmix_swin_pico").eval()
    assert network(torch.randn(1, 3, *size)).shape == (1, 10)


def test_windows_for_another_image_size() -> None:
    network = create_model("acmix_swin_pico", img_size=(48, 64)).eval()  # maps of 12×16 and 6×8
    assert [tuple(stage.blocks[1].attn.shift) for stage in network.layers] == [(2, 2), (2, 2)]
    network.set_input_size((32, 16))  # maps of 8×4 and 4×2: the last one is smaller than the window
    assert [tuple(stage.blocks[1].attn.window) for stage in network.layers] == [(4, 4), (4, 2)]
    assert network(torch.randn(1, 3, 32, 16)).shape == (1, 10)


def test_windows_are_connected_in_images_that_are_larger_than_stated() -> None:
    """For images of 32 pixels, a window covers the last stage. In larger ones, it is shifted as if they were stated."""
    network, larger = (create_model("acmix_swin_pico", img_size=size).eval() for size in (32, 64))
    larger.load_state_dict(network.state_dict())
    x = torch.randn(1, 3, 64, 56)
    assert torch.equal(network(x), larger(x))
    last = network.layers[-1].blocks[1].attn  # maps of 4×4 for 32 pixels
    for size, sees in ((4, 16), (8, 64)):
        tokens = torch.randn(1, size, size, last.dim, requires_grad=True)
        network.layers[-1].blocks(tokens)[0, 3, 3].sum().backward()
        assert int((tokens.grad.abs().sum(-1) > 0).sum()) == sees


def test_position_tables_of_another_window_are_resized(tmp_path: Path) -> None:
    """Weights of window 4 in a network of window 8: the table keeps its centre and its shape."""
    source = create_model("acmix_swin_pico")
    torch.save(source.state_dict(), tmp_path / "w4.pth")
    target = load_weights(create_model("acmix_swin_pico", img_size=64, window_size=8), tmp_path / "w4.pth")
    small = source.layers[0].blocks[0].attn.relative_position_bias_table.view(7, 7, 2)
    large = target.layers[0].blocks[0].attn.relative_position_bias_table.view(15, 15, 2)
    torch.testing.assert_close(large[7, 7], small[3, 3], rtol=0.05, atol=0.01)
    torch.testing.assert_close(
        large[[0, 0, -1, -1], [0, -1, 0, -1]], small[[0, 0, -1, -1], [0, -1, 0, -1]], rtol=0.3, atol=0.03
    )
    assert not [key for key in target.state_dict() if "index" in key or "mask" in key]  # rebuilt, never stored


def test_patch_size_can_change() -> None:
    network = create_model("acmix_swin_pico")
    network.set_input_size(img_size=64, patch_size=8)
    assert [info["reduction"] for info in network.feature_info] == [8, 16]
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 10)


def test_windows_of_sizes_that_are_not_whole_patches() -> None:
    """Images are padded to whole patches, so windows have to cover these, too."""
    for size, windows in ((14, [(4, 4), (2, 2)]), (26, [(4, 4), (4, 4)]), (1, [(1, 1), (1, 1)])):
        network = create_model("acmix_swin_pico", img_size=size)
        assert [stage.blocks[0].attn.window for stage in network.layers] == windows
        assert network(torch.randn(2, 3, size, size)).shape == (2, 10)


def test_convolution_before_the_shift_does_not_mix_opposite_sides() -> None:
    """By default, as in the released code, the convolution of a shifted block mixes opposite sides of the image."""
    for before, mixes in ((False, True), (True, False)):
        network = create_model("acmix_swin_pico", conv_before_shift=before, paths="convolution").eval()
        shifted = network.layers[0].blocks[1].attn
        x = torch.randn(1, 8, 8, 64, requires_grad=True)
        shifted(x)[0, 0, 3].sum().backward()  # a token in the first row: does it see the last row?
        assert bool(x.grad[0, -1].abs().sum() > 0) is mixes
    assert create_model("acmix_swin_pico").layers[0].blocks[1].attn.conv_before_shift is False
