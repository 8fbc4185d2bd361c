"""CUDA graphs store addresses instead of tensors, so everything they read must stay in place while they are in use."""

from __future__ import annotations

import pytest
import torch

from acmix_zoo import ACmix2d, create_model
from acmix_zoo.ops import geometry_cache


def empty_cache() -> None:
    """Empty the cache of masks and indices, as a sweep over image sizes would."""
    geometry_cache._tensors.clear()


@pytest.mark.gpu
@pytest.mark.parametrize("size", [14, 40])
@pytest.mark.parametrize("warm", [True, False])
def test_replay_agrees_with_eager(size: int, warm: bool) -> None:
    """This also holds if the cache is emptied and its memory is overwritten after the capture."""
    layer = ACmix2d(8, 16).cuda().eval()
    x = torch.randn(2, 8, size, size, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad():
        with torch.cuda.stream(stream):
            layer(x)  # cuDNN and cuBLAS need a first call outside of the capture
        torch.cuda.current_stream().wait_stream(stream)
        if not warm:
            empty_cache()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = layer(x)
        empty_cache()
        torch.cuda.empty_cache()
        overwritten = [torch.full((1 << 16,), float("nan"), device="cuda") for _ in range(64)]
        for _ in range(2):
            x.copy_(torch.randn_like(x))
            graph.replay()
            torch.testing.assert_close(out, layer(x), rtol=1e-4, atol=1e-4)
    del overwritten


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["acmix_resnet_pico", "acmix_swin_pico", "acmix_san_pico", "acmix_pvt_pico"])
def test_training_agrees_with_eager(name: str) -> None:
    """`make_graphed_callables` captures the forward and the backward pass."""
    torch.manual_seed(0)
    model = create_model(name, in_chans=3).cuda().eval()  # no batch statistics, which a capture would update
    x = torch.randn(4, 3, 32, 32, device="cuda", requires_grad=True)
    expected = [
        model(x).detach(),  # a graph that is still alive would make the capture use the stream of this pass
        *torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()], allow_unused=True),
    ]
    graphed = torch.cuda.make_graphed_callables(model, (x.detach().clone().requires_grad_(),), allow_unused_input=True)
    out = graphed(x)
    found = [out, *torch.autograd.grad(out.square().sum(), [x, *model.parameters()], allow_unused=True)]
    for a, e in zip(found, expected, strict=True):
        if e is not None:
            torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-4)
