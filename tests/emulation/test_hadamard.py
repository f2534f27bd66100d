"""The CUDA kernel of hadamard banks, run on the CPU against float64."""

from __future__ import annotations

import math
import random

import pytest
import torch
import torch.nn.functional as F
from emulation.host_compiler import bits, compile_for_host

from explainfix_ext.filters.hadamard import HadamardFilters
from explainfix_ext.ops.plans.pack_cuda_hadamard import pack_hadamard

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return compile_for_host("hadamard", tmp_path_factory.mktemp("emulation"))


def filters_of(order: int, groups: int, inputs: int, outputs: int, kernel: int, stages: int) -> HadamardFilters:
    """Random filters, with the places that the initialisation gives: in turn. inputs, outputs: of a group."""
    chunks = -(-outputs // order)
    places = torch.arange(max(inputs, outputs), dtype=torch.int16)
    return HadamardFilters(
        torch.randn(1, groups * outputs, kernel),
        torch.randn(1, chunks, groups, inputs, kernel),
        places[:outputs].repeat(groups),
        (places[:inputs] % order).repeat(groups, 1),
        order,
        stages,
    )


def check(
    kernels, filters: HadamardFilters, dtype, images, size, stride, padding, grad, biased, multiprocessors
) -> None:
    outputs, per_group, kernel, _ = filters.shape
    groups, scale = filters.groups, 0.37
    shape = (images, groups * per_group, *size)
    weight = filters.weight(scale, torch.float64)
    x = torch.randn(shape).to(dtype)
    bias = torch.randn(outputs).to(dtype) if biased and not grad else torch.empty(0)
    x64 = x.double().requires_grad_()
    y64 = F.conv2d(x64, weight, bias.double() if bias.numel() else None, stride, padding, 1, groups)
    given, expected = x, y64.detach()
    if grad:
        given = torch.randn(y64.shape).to(dtype)
        (expected,) = torch.autograd.grad(y64, x64, given.double())
    sizes = (images, groups, given.shape[1] // groups, expected.shape[1] // groups, *given.shape[2:])
    sizes += (*expected.shape[2:], kernel, *stride, *padding, filters.order, filters.stages, filters.rows.shape[1])
    result = torch.full(expected.shape, math.nan, dtype=dtype).contiguous(memory_format=torch.channels_last)
    lie = [bits(t.permute(0, 2, 3, 1).contiguous()) for t in (given, result)]
    kernels.hadamard(
        NAMES[dtype], sizes, grad, multiprocessors, lie[0], pack_hadamard(filters, scale).numpy(), bits(bias), lie[1]
    )
    out = torch.from_numpy(lie[1]).view(dtype).permute(0, 3, 1, 2).double()
    error = (out - expected).norm() / expected.norm()
    assert error < ROUNDING[dtype], f"{error:.1e} {sizes}"


@pytest.mark.parametrize("seed", range(40))
def test_kernel_equals_float64(kernels, seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    kernels.seed(seed)
    grad = draw.random() < 0.5
    order = 8 << draw.choice([0, 1, 2, 3, 3, 4, 5, 6, 7])
    groups = draw.choice([1, 1, 2]) if order < 256 else 1
    slabs = draw.choice([8, order, order, 2 * order, order + 8])
    inputs = outputs = order
    kernel = 3
    if draw.random() < 0.5:
        inputs = slabs
    if draw.random() < 0.5 and not grad:
        outputs = slabs
    stages = order - 1 if draw.random() < 0.7 else draw.randrange(order)
    filters = filters_of(order, groups, inputs, outputs, kernel, stages)
    stride = draw.choice([(1, 1), (1, 1), (2, 2), (1, 2), (2, 1)])
    padding = (draw.randrange(kernel + 1), draw.randrange(kernel + 1))
    size = (draw.randrange(kernel, 12), draw.randrange(kernel, 12))
    dtype = draw.choice(list(NAMES))
    check(
        kernels,
        filters,
        dtype,
        draw.choice([1, 2]),
        size,
        stride,
        padding,
        grad,
        draw.random() < 0.5,
        draw.choice([1, 132]),
    )
