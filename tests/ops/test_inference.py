"""The operators of networks that only infer: each kernel against its reference in float64, and bad arguments."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from support.compare import SPECIAL, relative_error
from support.random_conv import layout
from torch import Tensor

from explainfix_ext.ops import binaries, inference
from explainfix_ext.ops.passes import ACTIVATIONS

ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 2e-2}
IDENTITY = ACTIVATIONS["identity"]
compiled = pytest.mark.skipif(binaries.LOADED["cpu"] is None, reason="no compiled CPU kernels")


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def after(rng: random.Random, shape: list[int]) -> tuple[Any, ...]:
    """A bias and a residual of an output, or None, for the activation that comes last."""
    bias = numbers(shape[1]) if rng.random() < 0.5 else None
    return bias, numbers(*shape) if rng.random() < 0.5 else None


def act(rng: random.Random) -> tuple[int, float]:
    return rng.choice(list(ACTIVATIONS.values())), 0.1


def pointwise_case(rng: random.Random) -> tuple[Any, ...]:
    """Few pixels to many, of which 0 to 15 are left over; channels that are no multiples of 4; long chains."""
    batch, channels = rng.choice([0, 1, 1, 2, 5]), rng.choice([1, 2, 3, 7, 16, 33, 130, 300])
    outputs, stride = rng.choice([1, 2, 3, 4, 5, 13, 66, 131]), rng.choice([1, 1, 2, 3, 9])
    size = (rng.choice([1, 2, 7, 12, 14, 31]), rng.choice([1, 3, 4, 7, 17, 40]))
    out = [batch, outputs, *(-(-n // stride) for n in size)]
    gate = numbers(batch, channels, 1, 1) if rng.random() < 0.4 else None
    weight = numbers(outputs, channels) / channels**0.5
    return numbers(batch, channels, *size), weight, *after(rng, out), gate, stride, *act(rng)


def depthwise_case(rng: random.Random) -> tuple[Any, ...]:
    """Filters that have loops of their own (3x3, 5x5) and others, padding beyond them, more rows than a band has."""
    stride, kernel = rng.choice([1, 2]), rng.choice([(3, 3), (3, 3), (5, 5), (7, 7), (1, 4), (6, 1), (2, 3), (1, 1)])
    padding = [rng.randint(0, k) for k in kernel]
    size = [max(k - 2 * p, 1) + rng.choice([0, 1, 5, 14, 33]) for k, p in zip(kernel, padding, strict=True)]
    if rng.random() < 0.1:
        size[1] += 400
    batch, channels = rng.choice([0, 1, 2, 3]), rng.choice([1, 2, 5, 9])
    out = [(n + 2 * p - k) // stride + 1 for n, p, k in zip(size, padding, kernel, strict=True)]
    weight = numbers(channels, *kernel)
    return (
        numbers(batch, channels, *size), weight, *after(rng, [batch, channels, *out]), stride, padding, *act(rng)
    )  # fmt: skip


def finish_case(rng: random.Random) -> tuple[Any, ...]:
    shape = [rng.choice([0, 1, 3]), rng.choice([1, 3, 8]), rng.choice([0, 1, 6]), rng.choice([1, 5, 16, 47])]
    scale = numbers(shape[1]) if rng.random() < 0.5 else None
    return numbers(*shape), scale, *after(rng, shape), *act(rng)


def max_pool_case(rng: random.Random) -> tuple[Any, ...]:
    kernel = [rng.randint(1, 5), rng.randint(1, 5)]
    stride, padding = [rng.randint(1, 4), rng.randint(1, 4)], [rng.randint(0, k // 2) for k in kernel]
    size = [k + rng.choice([0, 1, 5, 18]) for k in kernel]
    return numbers(rng.choice([0, 1, 3]), rng.choice([1, 4]), *size), kernel, stride, padding, rng.random() < 0.5


def mean_case(rng: random.Random) -> tuple[Any, ...]:
    shape = [rng.choice([0, 1, 3]), rng.choice([0, 1, 9]), rng.choice([1, 2, 7, 14, 61]), rng.choice([1, 7, 16, 50])]
    return (numbers(*shape) + rng.choice([0, 100]),)  # a mean that sums must not lose digits to


CASES: dict[str, Callable[[random.Random], tuple[Any, ...]]] = {
    "pointwise_conv2d": pointwise_case,
    "depthwise_conv2d": depthwise_case,
    "finish_conv": finish_case,
    "max_pool_values": max_pool_case,
    "mean_planes": mean_case,
}


def make_case(name: str, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    torch.manual_seed(seed)
    return tuple(a.to(dtype) if isinstance(a, Tensor) else a for a in CASES[name](random.Random(seed)))


def run(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Tensor:
    """The result; of an operation in place, what it leaves of a copy of its first argument."""
    first = arguments[0].clone(memory_format=torch.preserve_format)
    result = function(first, *arguments[1:])
    return first if result is None else result


def exact(name: str, arguments: tuple[Any, ...]) -> Tensor:
    return run(inference.REFERENCES[name], tuple(a.double() if isinstance(a, Tensor) else a for a in arguments))


def check(name: str, arguments: tuple[Any, ...], function: Callable[..., Any] | None = None) -> None:
    got, want = run(function or getattr(inference, name), arguments), exact(name, arguments)
    assert got.shape == want.shape
    assert got.dtype == arguments[0].dtype
    shapes = [list(a.shape) if isinstance(a, Tensor) else a for a in arguments]
    assert relative_error(got, want) <= ROUNDING[got.dtype], f"{name} {shapes}"


def check_kernel(name: str, seeds: range) -> None:
    for seed in seeds:
        check(name, make_case(name, seed), getattr(torch.ops.explainfix, name))


@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_float64(isa: None, name: str) -> None:
    check_kernel(name, range(80))


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_functions_take_any_layout_and_dtype(name: str, dtype: torch.dtype) -> None:
    for seed in range(20):
        rng, arguments = random.Random(seed), make_case(name, seed, dtype)
        images = [isinstance(a, Tensor) and a.ndim == 4 for a in arguments]
        check(name, tuple(layout(rng, a) if image else a for a, image in zip(arguments, images, strict=True)))


@pytest.mark.parametrize("pixels", range(1, 50))
def test_any_number_of_pixels_is_left_over(isa: None, pixels: int) -> None:
    x, weight, residual = torch.randn(1, 37, 1, pixels), torch.randn(6, 37), torch.randn(1, 6, 1, pixels)
    for stride, rest in ((1, residual), (2, residual[..., ::2].contiguous())):
        check("pointwise_conv2d", (x, weight, None, rest, None, stride, ACTIVATIONS["silu"], 0.0))


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", CASES)
def test_results_do_not_depend_on_threads(isa: None, name: str) -> None:
    for seed in range(40):
        arguments, results = make_case(name, seed), []
        for count in (1, 2, 3):
            with threads(count):
                results.append(run(getattr(inference, name), arguments))
        assert torch.equal(results[0], results[1]), seed
        assert torch.equal(results[0], results[2]), seed


@pytest.mark.parametrize("function", ACTIVATIONS)
def test_activations_of_what_is_not_finite_are_torchs(isa: None, function: str) -> None:
    special = torch.tensor([*SPECIAL, -3e38, -88.0, -87.5] * 5).view(1, 1, 6, 15)
    arguments = (special, None, None, None, ACTIVATIONS[function], 0.1)
    got, want = run(torch.ops.explainfix.finish_conv, arguments), run(inference.REFERENCES["finish_conv"], arguments)
    if function == "gelu":  # of infinity it is NaN or infinite in torch, by the layout
        got, want = got.nan_to_num(0, 0, 0), want.nan_to_num(0, 0, 0)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", CASES)
def test_what_is_not_finite_stays_where_torch_has_it(isa: None, name: str, value: float) -> None:
    tried = 0
    for seed in range(40):
        arguments = make_case(name, seed)
        x, others = arguments[0], arguments[1:]
        if name in ("pointwise_conv2d", "depthwise_conv2d", "finish_conv"):
            others = (*others[:-2], IDENTITY, 0.0)
        if x.numel() == 0:
            continue
        x.view(-1)[seed % x.numel()] = value
        got = run(getattr(torch.ops.explainfix, name), (x, *others))
        want = run(inference.REFERENCES[name], (x, *others))
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3, equal_nan=True)
        tried += 1
    assert tried > 10


@compiled
def test_subnormal_numbers_are_finished_as_zero() -> None:
    y = torch.full((1, 2, 3, 20), 1e-40)
    inference.finish_conv(y, torch.ones(2), None, None, IDENTITY, 0.0)
    assert not y.any()
    assert torch.tensor([1e-40]).mul(1.0).item() != 0  # torch's own flag is as it was


@pytest.mark.parametrize("name", CASES)
def test_fake_tensors(name: str) -> None:
    op = getattr(torch.ops.explainfix, name).default
    cases = [make_case(name, seed) for seed in range(12)]
    for arguments in cases:
        if arguments[0].numel() or name != "finish_conv":  # opcheck itself fails where an empty tensor is changed
            torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))
    assert sum(arguments[0].numel() > 0 for arguments in cases) > 3


def everything(x: Tensor) -> Tensor:
    """All five operators; the sizes follow x's."""
    x = inference.max_pool_values(x, [3, 3], [2, 2], [1, 1], False)
    gate = torch.sigmoid(inference.mean_planes(x))
    weight = torch.linspace(-1, 1, 6 * x.shape[1]).view(6, -1)
    x = inference.pointwise_conv2d(x, weight, None, None, gate, 1, ACTIVATIONS["relu"], 0.0)
    filters = torch.linspace(-1, 1, 54).view(6, 3, 3)
    x = inference.depthwise_conv2d(x, filters, torch.ones(6), x, 1, [1, 1], ACTIVATIONS["silu"], 0.0)
    y = x * 2
    inference.finish_conv(y, torch.full((6,), 0.5), None, x, ACTIVATIONS["hardswish"], 0.0)
    return y


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(everything, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for size in (9, 14):
        x = torch.randn(2, 4, size, size + 3)
        assert relative_error(compiled(x), everything(x)) < 1e-6


@pytest.mark.slow
def test_compile_by_inductor() -> None:
    torch._dynamo.reset()
    x = torch.randn(2, 4, 9, 12)
    assert relative_error(torch.compile(everything, fullgraph=True)(x), everything(x)) < 1e-6


X, ROWS = torch.randn(2, 3, 4, 5), torch.randn(6, 3)
BAD: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "images": ("mean_planes", (X[0],), r"x must be Float \[N, C, H, W\], contiguous, got Float \[3, 4, 5\]"),
    "dtype": ("mean_planes", (X.double(),), r"x must be Float .* got Double \[2, 3, 4, 5\]"),
    "layout": ("mean_planes", (X.transpose(2, 3),), r"x must be Float .*contiguous, got Float \[2, 3, 5, 4\]"),
    "weight": ("pointwise_conv2d", (X, ROWS[:, :2], *[None] * 3, 1, 0, 0.0), r"weight must be Float \[O, 3\]"),
    "cut weight": (
        "pointwise_conv2d", (X, torch.randn(6, 4)[:, :3], *[None] * 3, 1, 0, 0.0), r"weight must be Float \[O, 3\]"
    ),
    "no channel": (
        "pointwise_conv2d", (X[:, :0].contiguous(), ROWS[:, :0].contiguous(), *[None] * 3, 1, 0, 0.0),
        r"x must have a channel at least, got Float \[2, 0, 4, 5\]",
    ),
    "bias": ("pointwise_conv2d", (X, ROWS, torch.ones(5), *[None] * 2, 1, 0, 0.0), r"bias must be Float \[6\].*\[5\]"),
    "gate": (
        "pointwise_conv2d", (X, ROWS, *[None] * 2, torch.ones(1, 3, 1, 1), 1, 0, 0.0),
        r"gate must be \[2, 3, 1, 1\], got Float \[1, 3, 1, 1\]",
    ),
    "residual": (
        "pointwise_conv2d", (X, ROWS, None, torch.ones(1, 6, 4, 5), None, 1, 0, 0.0),
        r"residual must have y's shape, Float \[2, 6, 4, 5\], got Float \[1, 6, 4, 5\]",
    ),
    "stride": ("pointwise_conv2d", (X, ROWS, *[None] * 3, 0, 0, 0.0), "stride must be at least 1, .* got 0"),
    "large stride": ("pointwise_conv2d", (X, ROWS, *[None] * 3, 2**63 - 1, 0, 0.0), r"less than 2\^31, got 9223"),
    "act": ("pointwise_conv2d", (X, ROWS, *[None] * 3, 1, 8, 0.0), r"act must be in \[0, 8\), got 8"),
    "negative act": ("finish_conv", (X, *[None] * 3, -1, 0.0), r"act must be in \[0, 8\), got -1"),
    "filters": (
        "depthwise_conv2d", (X, torch.ones(2, 3, 3), None, None, 1, [1, 1], 0, 0.0),
        r"weight must be Float \[3, kh, kw\], contiguous, got Float \[2, 3, 3\]",
    ),
    "third stride": (
        "depthwise_conv2d", (X, torch.ones(3, 3, 3), None, None, 3, [1, 1], 0, 0.0), "stride must be 1 or 2"
    ),
    "padding": (
        "depthwise_conv2d", (X, torch.ones(3, 3, 3), None, None, 1, [1, -1], 0, 0.0), "padding two integers >= 0"
    ),
    "large filter": (
        "depthwise_conv2d", (X, torch.ones(3, 5, 3), None, None, 1, [0, 0], 0, 0.0), "x must be as large as weight"
    ),
    "no filter": (
        "depthwise_conv2d", (X, torch.ones(3, 0, 3), None, None, 1, [0, 0], 0, 0.0), "x must be as large as weight"
    ),
    "scale": ("finish_conv", (X, torch.ones(3).double(), None, None, 0, 0.0), r"scale must be Float \[3\].*Double"),
    "whole numbers": ("finish_conv", (X, None, None, X.int(), 0, 0.0), r"residual must be Float .* got Int"),
    "window": ("max_pool_values", (X, [0, 2], [1, 1], [0, 0], False), "kernel_size and stride must be two integers"),
    "wide padding": ("max_pool_values", (X, [2, 2], [1, 1], [2, 0], False), "padding must be half of kernel_size"),
    "small plane": ("max_pool_values", (X, [5, 5], [1, 1], [0, 0], False), "planes must be as large as kernel_size"),
}  # fmt: skip


@compiled
@pytest.mark.parametrize("what", BAD)
def test_bad_arguments(what: str) -> None:
    name, arguments, message = BAD[what]
    first = arguments[0].clone()
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.explainfix, name)(*arguments)
    assert torch.equal(arguments[0], first)


def test_planes_without_pixels_and_images_without_channels() -> None:
    assert inference.mean_planes(torch.ones(2, 3, 0, 4)).isnan().all()
    assert inference.mean_planes(torch.ones(2, 0, 3, 4)).shape == (2, 0, 1, 1)
    assert inference.pointwise_conv2d(torch.ones(2, 3, 4, 0), ROWS, *[None] * 3, 1, 0, 0.0).shape == (2, 6, 4, 0)
    padded = (torch.ones(2, 3, 0, 0), torch.ones(3, 3, 3), torch.ones(3), None, 1, [2, 2], 0, 0.0)
    assert torch.equal(inference.depthwise_conv2d(*padded), torch.ones(2, 3, 2, 2))  # nothing but padding: the bias
