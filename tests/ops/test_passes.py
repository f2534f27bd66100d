"""The passes over an activation: each kernel against its reference in float64, and each reference against torch."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from support.compare import SPECIAL, relative_error
from torch import Tensor

from explainfix_ext.ops import binaries, passes
from explainfix_ext.ops.passes import ACTIVATIONS

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 5e-3, torch.float16: 6e-4}


def activation(rng: random.Random, dtype: torch.dtype, channels_last: bool | None = None) -> Tensor:
    """Random values in a random shape; off zero, and with a mean that sums must not lose digits to."""
    shape = (rng.randint(1, 5), rng.choice([1, 3, 17, 64]), rng.randint(1, 9), rng.choice([1, 2, 13, 40]))
    x = (torch.randn(shape, dtype=torch.float64) * 2 + rng.choice([0, 0.5, 30])).to(dtype)
    last = rng.random() < 0.5 if channels_last is None else channels_last
    return x.contiguous(memory_format=torch.channels_last) if last else x


def numbers(x: Tensor, *rows: int) -> Tensor:
    """Random ones for each channel."""
    return torch.randn(*rows, x.shape[1], dtype=passes.statistics_dtype(x.dtype), device=x.device)


def factors(x: Tensor) -> Tensor:
    """Those of the batch, as BatchNorm's are; weight and bias are random."""
    var, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    weight, bias = numbers(x, 2).double()
    return passes.factors_of(mean, var + 0.1, weight, bias, 1e-5).to(passes.statistics_dtype(x.dtype))


def compare(name: str, dtype: torch.dtype, tensors: list[Tensor], *rest) -> None:
    """The op, and its reference on the same numbers in float64."""
    op, reference = getattr(passes, name), passes.REFERENCES[name]
    exact = [t.double() if t.is_floating_point() else t.clone() for t in tensors]
    ours = [t.clone(memory_format=torch.preserve_format) for t in tensors]
    got, want = op(*ours, *rest), reference(*exact, *rest)
    if name.endswith("backward"):
        got, want = ours[0], exact[0]
    for g, w in zip(*((r,) if isinstance(r, Tensor) else r for r in (got, want)), strict=True):
        assert g.shape == w.shape
        if g.dtype == torch.uint8:
            assert torch.equal(g, w)
            continue
        # By the sum of the terms' sizes, where there is a sum: what cancels is nobody's error.
        scale = max(w.norm().item(), tensors[0].double().norm().item() * 1e-3)
        assert (g.double() - w).norm().item() <= ROUNDING[dtype] * scale * 4, f"{name} {dtype} {list(tensors[0].shape)}"


def check_passes(seed: int, dtype: torch.dtype, device: str) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    x = activation(rng, dtype).to(device)
    grad, dx = torch.randn_like(x), torch.full_like(x, torch.nan)
    act, slope = rng.randrange(len(ACTIVATIONS)), 0.1
    of_x, sums = factors(x), numbers(x, 2)
    compare("batch_norm_factors", dtype, [x, *numbers(x, 2), numbers(x), numbers(x).abs()], 0.1, 1e-5)
    compare("batch_norm_factors", dtype, [x], None, None, None, None, 0.0, 1e-3)
    compare("batch_norm_sums", dtype, [grad, x, of_x])
    compare("batch_norm_backward", dtype, [dx, grad, x, of_x, sums], x.numel() / x.shape[1])
    compare("affine_act", dtype, [x, of_x], act, slope)
    if ACTIVATIONS["hardswish"] != act or dtype == torch.float64:  # it has steps, which roundings may miss
        compare("affine_act_backward", dtype, [dx, grad, x, of_x], act, slope)
    masked = rng.choice([1, 2, 3])
    compare("act_mask", dtype, [x], masked)
    compare("mask_backward", dtype, [dx, grad, passes.act_mask(x, masked)], masked, slope)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_equal_their_references(isa: None, dtype: torch.dtype) -> None:
    for seed in range(25):
        check_passes(seed, dtype, "cpu")


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_equal_their_references_cuda(dtype: torch.dtype) -> None:
    for seed in range(25):
        check_passes(seed, dtype, "cuda")


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel, from the factors."""
    mean, invstd = passes.batch_norm_factors(x, None, None, None, None, 0.0, 0.0)[:2]
    return mean, invstd**-2


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_may_be_written_over_what_it_is_made_of(isa: None, dtype: torch.dtype) -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 17, 5, 7).to(dtype).contiguous(memory_format=layout)
        grad, of_x, sums = torch.randn_like(x), factors(x), numbers(x, 2)
        for op, others in (
            (passes.batch_norm_backward, (x, of_x, sums, 70.0)),
            (passes.affine_act_backward, (x, of_x, ACTIVATIONS["silu"], 0.0)),
            (passes.mask_backward, (passes.act_mask(x, 1), 1, 0.0)),
        ):
            apart, over = torch.empty_like(grad), grad.clone()
            op(apart, grad, *others)
            op(over, over, *others)
            assert torch.equal(apart, over)


def test_running_statistics_are_torchs(isa: None) -> None:
    x, norm = torch.randn(3, 5, 4, 4) * 2 + 1, torch.nn.BatchNorm2d(5, momentum=0.3)
    mean, var = torch.randn(5), torch.rand(5)
    norm.load_state_dict(norm.state_dict() | {"running_mean": mean, "running_var": var})
    norm(x)
    passes.batch_norm_factors(x, None, None, mean, var, 0.3, 1e-5)
    torch.testing.assert_close((mean, var), (norm.running_mean, norm.running_var))


def test_results_do_not_depend_on_layout_or_threads(isa: None) -> None:
    torch.manual_seed(0)
    x, threads = torch.randn(4, 40, 33, 29), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            for layout in (torch.contiguous_format, torch.channels_last):
                results.append((layout, statistics(x.contiguous(memory_format=layout))))
    finally:
        torch.set_num_threads(threads)
    for layout, (mean, var) in results:
        same = next(r for other, r in results if other == layout)
        assert torch.equal(mean, same[0])
        assert torch.equal(var, same[1])
        assert (mean - x.double().mean((0, 2, 3))).abs().max() < 1e-7  # x's deviation is 1


def same_factors(x: Tensor) -> Tensor:
    """Those by which alpha x + beta is x."""
    rows = torch.tensor([0.0, 1, 1, 0], dtype=passes.statistics_dtype(x.dtype))
    return rows[:, None].expand(4, x.shape[1]).contiguous()


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations_are_torchs(act: str) -> None:
    z = torch.cat([torch.linspace(-9, 9, 400, dtype=torch.float64), torch.tensor([-3.0, 0.0, 3.0, 6.0])])
    x = z.view(1, 1, 4, 101).requires_grad_()
    y = {
        "identity": lambda v: v,
        "leaky_relu": lambda v: F.leaky_relu(v, 0.2),
        "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
    }.get(act, getattr(F, act, None))(x)
    same = same_factors(x)
    assert relative_error(passes.affine_act(x.detach(), same, ACTIVATIONS[act], 0.2), y) < 1e-14
    grad = torch.randn_like(y)
    (want,) = torch.autograd.grad(y, x, grad)
    got = grad.clone()
    passes.affine_act_backward(got, got, x.detach(), same, ACTIVATIONS[act], 0.2)
    assert relative_error(got, want) < 1e-13


def check_special(act: str, dtype: torch.dtype, layout: torch.memory_format, value: float) -> None:
    """One activation at all of SPECIAL and a subnormal number, and its gradient, `value` everywhere, beside torch's."""
    special = torch.tensor([*SPECIAL, 1e-40] * 4, dtype=dtype).view(1, 4, 2, 8)
    x = special.contiguous(memory_format=layout).requires_grad_()
    with torch.enable_grad():
        y = passes.activate(x, act, 0.1) * 1
    grad = torch.full_like(y, value)
    (want,) = torch.autograd.grad(y, x, grad)
    close = {"rtol": 2e-2 if dtype.itemsize == 2 else 1e-6, "atol": 1e-6, "equal_nan": True}
    got_y = passes.affine_act(x.detach(), same_factors(x), ACTIVATIONS[act], 0.1)
    if act == "gelu":  # of infinity it is NaN or infinite in torch, by the layout
        got_y, y = got_y.nan_to_num(0, 0), y.detach().nan_to_num(0, 0)
    torch.testing.assert_close(got_y, y.detach(), **close)
    got = grad.clone()
    passes.affine_act_backward(got, got, x.detach(), same_factors(x), ACTIVATIONS[act], 0.1)
    torch.testing.assert_close(got, want, **close)
    if act in passes.MASKED:
        got = grad.clone()
        passes.mask_backward(got, got, passes.act_mask(x.detach(), ACTIVATIONS[act]), ACTIVATIONS[act], 0.1)
        torch.testing.assert_close(got, want, **close)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_what_is_not_finite_is_as_in_torch(isa: None, act: str, dtype: torch.dtype) -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        for value in (1.0, torch.nan, torch.inf):
            check_special(act, dtype, layout, value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_statistics_and_int8_of_what_is_not_finite(isa: None, layout: torch.memory_format, value: float) -> None:
    x = torch.randn(2, 3, 5, 7)
    x[0, 1, 2, 3] = value
    x = x.contiguous(memory_format=layout)
    mean, var = statistics(x)
    assert var.isnan().tolist() == [False, True, False]  # and not 0, which running_var would take over
    assert mean.isfinite().tolist() == [True, False, True]
    back = passes.dequantize(*passes.quantize(x), x.dtype)
    assert not back[0, 1, 2, 3].isfinite()
    assert back.isfinite().sum() == x.numel() - 35


def test_float_exponential_is_accurate(isa: None) -> None:
    x = torch.linspace(-100, 100, 200_001).view(1, 1, 1, -1)
    got = passes.affine_act(x, same_factors(x), ACTIVATIONS["silu"], 0.0)
    assert (got.double() - F.silu(x.double())).abs().max() < 1e-5
    assert ((got.double() - F.silu(x.double())) / F.silu(x.double()).abs().clamp_min(1e-30))[x > -80].abs().max() < 1e-6


def check_int8(seed: int, dtype: torch.dtype, device: str) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    x = activation(rng, dtype).to(device)
    codes, low, step = passes.quantize(x)
    back = passes.dequantize(codes, low, step, dtype)
    assert codes.dtype == torch.uint8
    assert back.dtype == dtype
    assert back.is_contiguous(memory_format=torch.channels_last) >= x.is_contiguous(memory_format=torch.channels_last)
    largest = x.double().abs().amax((2, 3))[:, :, None, None]
    allowed = step.double()[:, :, None, None] * 0.51 + largest * ROUNDING[dtype]
    assert ((back.double() - x.double()).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_is_off_by_half_a_step_at_most(isa: None, dtype: torch.dtype) -> None:
    for seed in range(20):
        check_int8(seed, dtype, "cpu")


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_is_off_by_half_a_step_at_most_cuda(dtype: torch.dtype) -> None:
    for seed in range(20):
        check_int8(seed, dtype, "cuda")


@pytest.mark.skipif(binaries.LOADED["cpu"] is None, reason="no compiled CPU kernels")
def test_bad_input() -> None:
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(RuntimeError, match=r"factors must be Float \[4, C = 3\], contiguous, got Float \[3, 3\]"):
        passes.affine_act(x, torch.ones(3, 3), 0, 0.0)
    with pytest.raises(RuntimeError, match=r"weight must be Float \[C = 3\], contiguous, got Double \[3\]"):
        passes.batch_norm_factors(x, torch.ones(3).double(), None, None, None, 0.0, 0.0)
    with pytest.raises(RuntimeError, match=r"x must be \[N, C, H, W\], got 2 dimensions"):
        torch.ops.explainfix.batch_norm_factors(torch.randn(3, 3), None, None, None, None, 0.0, 0.0)
    with pytest.raises(RuntimeError, match="dx is overwritten: it must be contiguous or channels_last"):
        passes.mask_backward(torch.randn(2, 3, 4, 8)[..., ::2], x, torch.zeros(12, dtype=torch.uint8), 1, 0.0)
    with pytest.raises(RuntimeError, match="x must have the shape and dtype of dx"):
        passes.batch_norm_backward(x, x, x[..., :3], torch.ones(4, 3), torch.ones(2, 3), 32.0)
    with pytest.raises(RuntimeError, match="mask must have a bit for each of 96 elements of grad, got 3 bytes"):
        passes.mask_backward(x.clone(), x, torch.zeros(3, dtype=torch.uint8), 1, 0.0)


def test_fake_tensors() -> None:
    x, of_x, sums = torch.randn(2, 3, 4, 4), torch.ones(4, 3), torch.ones(2, 3)
    codes = passes.quantize(x)
    for name, args in {
        "batch_norm_factors": (x, *of_x.clone(), 0.1, 0.1),
        "batch_norm_sums": (x, x, of_x),
        "batch_norm_backward": (x.clone(), x, x, of_x, sums, 32.0),
        "affine_act": (x, of_x, 1, 0.0),
        "affine_act_backward": (x.clone(), x, x, of_x, 1, 0.0),
        "act_mask": (x, 1),
        "mask_backward": (x.clone(), x, passes.act_mask(x, 1), 1, 0.0),
        "quantize": (x,),
        "dequantize": (*codes, torch.float32),
    }.items():
        op = getattr(torch.ops.explainfix, name).default
        torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor"))
