"""What tests of both convolution operators ask of a card: graphs, streams, autocast, compile, very large tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import explainfix_ext as efx

from .compare import relative_error


def check_graph_and_stream(run: Callable[[], Tensor], x: Tensor) -> None:
    """A CUDA graph and another stream give what `run` gives for its input x. Its plan is made at the first call."""
    want = run()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = run()
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(y, want)

    kept = x.clone(memory_format=torch.preserve_format)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run()
    x.zero_()
    graph.replay()
    assert not torch.equal(y, want)
    x.copy_(kept)
    graph.replay()
    assert torch.equal(y, want)


def check_autocast_and_compile(conv: efx.FixedConv2d, tolerances: dict[torch.dtype, float]) -> None:
    """A layer of 64 inputs trains under autocast and compiles, in each dtype."""
    x = torch.randn(4, 64, 28, 28, device="cuda").contiguous(memory_format=torch.channels_last).requires_grad_()
    want = conv.to_conv2d()(x)
    for dtype, tolerance in tolerances.items():
        with torch.autocast("cuda", dtype):
            y = conv(x)
            compiled = torch.compile(conv, fullgraph=True)(x)
        assert y.dtype == compiled.dtype == dtype
        for got in (y, compiled):
            assert relative_error(got, want) < tolerance
        y.float().square().sum().backward()
        assert torch.isfinite(x.grad).all()


def check_last_image(run: Callable[[Tensor], Tensor], channels: int, size: int = 512) -> None:
    """The last image of more than 2^31 elements is computed as one that is alone."""
    images = 2**31 // (channels * size**2) + 2
    if torch.cuda.mem_get_info()[0] < 3 * 2 * images * channels * size**2:
        pytest.skip("the card has too little free memory")
    last = torch.randn(1, channels, size, size, device="cuda", dtype=torch.bfloat16)
    last = last.contiguous(memory_format=torch.channels_last)
    x = torch.empty(images, size, size, channels, device="cuda", dtype=torch.bfloat16).permute(0, 3, 1, 2)
    x[-1] = last[0]
    assert x.numel() > 2**31
    assert torch.equal(run(x)[-1], run(last)[0])
