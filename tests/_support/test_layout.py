"""Memory formats and padding, against what torch and TensorFlow do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._prims_common import suggest_memory_format

from explainfix_ext._support.layout import memory_format_of, same_padding


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 1), (3, 1, 1, 1), (0, 3, 4, 5)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_format_is_the_one_that_torch_suggests(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    x = torch.randn(shape).contiguous(memory_format=layout)
    for view in (x, x[:, :1], x[:, 1:], x[..., ::2], x.transpose(2, 3), x[:, :1].expand(-1, 3, -1, -1)):
        assert memory_format_of(view) is suggest_memory_format(view), (view.shape, view.stride())


def test_memory_format_of_slices_and_expanded_tensors() -> None:
    wide = torch.randn(2, 6, 4, 5).contiguous(memory_format=torch.channels_last)
    assert memory_format_of(wide[:, :3]) is torch.channels_last
    assert memory_format_of(wide[:, :, 1:3]) is torch.channels_last
    assert memory_format_of(wide.contiguous()[:, :3]) is torch.contiguous_format
    assert memory_format_of(torch.ones(()).expand(2, 3, 4, 5)) is torch.contiguous_format


@pytest.mark.parametrize("kernel", [(3, 3), (4, 2), (1, 7)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 3)])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_same_padding_at_stride_1_is_torchs(kernel: tuple[int, int], dilation: tuple[int, int]) -> None:
    x, weight = torch.randn(1, 1, 8, 9), torch.randn(1, 1, *kernel)
    padded = F.pad(x, same_padding((8, 9), kernel, (1, 1), dilation))
    want = F.conv2d(x, weight, padding="same", dilation=dilation)
    torch.testing.assert_close(F.conv2d(padded, weight, dilation=dilation), want)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "pads"),  # as TensorFlow's documentation computes them
    [
        ((5, 6), (3, 3), (2, 2), (1, 1), [0, 1, 1, 1]),
        ((7, 7), (2, 2), (2, 2), (1, 1), [0, 1, 0, 1]),
        ((9, 4), (3, 5), (4, 1), (1, 1), [2, 2, 1, 1]),
        ((8, 8), (2, 2), (3, 3), (1, 1), [0, 0, 0, 0]),  # pixels are skipped: nothing is needed
        ((6, 6), (3, 3), (2, 2), (2, 2), [1, 2, 1, 2]),
    ],
)
def test_same_padding_is_tensorflows(
    size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int], pads: list[int]
) -> None:
    assert same_padding(size, kernel, stride, dilation) == pads


class Padded(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x, same_padding((x.shape[-2], x.shape[-1]), (3, 3), (2, 2), (1, 1)))


def test_same_padding_follows_sizes_that_a_tracer_does_not_know() -> None:
    sizes = {2: torch.export.Dim("h", min=3), 3: torch.export.Dim("w", min=3)}
    exported = torch.export.export(Padded(), (torch.randn(1, 1, 6, 7),), dynamic_shapes=(sizes,)).module()
    traced = torch.jit.trace(Padded(), torch.randn(1, 1, 6, 7))
    for shape in ((1, 1, 6, 7), (1, 1, 9, 4), (1, 1, 5, 5)):
        x = torch.randn(shape)
        want = Padded()(x)
        assert torch.equal(exported(x), want)
        assert torch.equal(traced(x), want)
