"""Max pooling: the kernel and its reference against torch's own, and the place of each maximum."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from support.compare import relative_error
from support.random_conv import DTYPES, layout
from torch import Tensor

from explainfix_ext.ops import max_pool as ops
from explainfix_ext.ops.max_pool import max_pool, max_pool_backward

WAYS = {"op": (max_pool, max_pool_backward), "reference": (ops._max_pool, ops._max_pool_backward)}


def random_pool(seed: int, dtype: torch.dtype) -> tuple[Tensor, dict]:
    """x and the arguments of F.max_pool2d; small integers, so that maxima tie."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    kernel = (rng.randint(1, 4), rng.randint(1, 4))
    stride = (rng.randint(1, 3), rng.randint(1, 3))
    padding = (rng.randint(0, kernel[0] // 2), rng.randint(0, kernel[1] // 2))
    size = [k + rng.randint(0, 9) for k in kernel]
    x = layout(rng, torch.randint(-3, 4, (rng.randint(1, 3), rng.randint(1, 5), *size)).to(dtype))
    return x, {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": rng.random() < 0.5}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_maxima_and_gradients_are_torchs(way: str, dtype: torch.dtype) -> None:
    forward, backward = WAYS[way]
    for seed in range(60):
        x, options = random_pool(seed, dtype)
        windows = list(options.values())[:3]
        leaf = x.detach().requires_grad_()
        want = F.max_pool2d(leaf, **options)
        y, places = forward(x, *windows, options["ceil_mode"])
        assert torch.equal(y, want), seed
        grad = torch.randint(-3, 4, y.shape).to(dtype)  # sums of these are exact
        assert torch.equal(backward(grad, places, x.shape[2:], *windows), torch.autograd.grad(want, leaf, grad)[0]), (
            seed
        )


def test_place_is_that_of_the_first_maximum_in_its_window() -> None:
    x = torch.tensor([[0.0, 1, 5], [2, 1, 5], [9, 0, 0]]).view(1, 1, 3, 3)
    y, places = max_pool(x, [2, 2], [1, 1], [0, 0], False)
    assert y.tolist() == [[[[2, 5], [9, 5]]]]
    assert places.tolist() == [[[[2, 1], [2, 1]]]]  # row * 2 + column
    y, places = max_pool(x, [3, 3], [2, 2], [1, 1], False)
    assert y.tolist() == [[[[2, 5], [9, 5]]]]
    assert places.tolist() == [[[[7, 4], [4, 1]]]]  # counted in the padded window


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_layout_stays_and_a_nan_wins(memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 3, 7, 8).contiguous(memory_format=memory_format)
    x[0, 1, 2, 3] = torch.nan
    y, places = max_pool(x, [3, 3], [2, 2], [1, 1], False)
    assert y.isnan().sum() == F.max_pool2d(x, 3, 2, 1).isnan().sum() > 0
    dx = max_pool_backward(torch.ones_like(y), places, x.shape[2:], [3, 3], [2, 2], [1, 1])
    for t in (y, places, dx):
        assert t.is_contiguous(memory_format=memory_format)
    assert relative_error(dx.sum((2, 3)), torch.full((2, 3), 16.0)) == 0


def test_fake_tensors() -> None:
    x = torch.randn(2, 3, 7, 8)
    windows = ([3, 3], [2, 2], [1, 1])
    y, places = max_pool(x, *windows, False)
    for op, arguments in (
        (torch.ops.explainfix.max_pool.default, (x, *windows, False)),
        (torch.ops.explainfix.max_pool_backward.default, (torch.ones_like(y), places, [7, 8], *windows)),
    ):
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))
