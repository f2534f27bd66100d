"""What the kernels are handed is checked before they index by it: malformed `packed` words, sizes that do not fit."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.compare import relative_error
from torch import Tensor

import explainfix_ext as efx
from explainfix_ext.ops import binaries, max_pool, passes
from explainfix_ext.ops import fixed_conv2d as ops
from explainfix_ext.ops.plans.plan import DENSE, INDEX, LOW_RANK, make_plan

pytestmark = pytest.mark.skipif(binaries.LOADED["cpu"] is None, reason="no compiled CPU kernels")

WORDS = [-(2**31), -1000, -1, 0, 1, 2, 3, 7, 64, 1000, 2**16, 2**24, 2**31 - 1]
SIZE = 9


def small_bank(functions: int, kernel: int, groups: int = 1) -> efx.FilterBank:
    torch.manual_seed(functions)
    index = torch.randint(functions, (6 * groups, 5), dtype=torch.uint8)
    basis, dct = torch.randn(functions, kernel, kernel), efx.dct_basis((kernel, kernel))
    if functions in (kernel**2, 2 * kernel**2):
        basis = torch.cat([dct, -dct])[:functions]
    return efx.FilterBank(basis, index=index.masked_fill(torch.rand(index.shape) < 0.3, 255))


def run(bank: efx.FilterBank, packed: Tensor | None, stride: int, groups: int, plan: int = INDEX) -> list[Tensor]:
    """The convolution and its gradient, or what was refused."""
    filters, rest = (bank.basis, bank.steering, packed), ([stride] * 2, [1, 1], [1, 1], groups, 1.0, plan)
    x = torch.ones(2, bank.shape[1] * groups, SIZE, SIZE)
    size = (SIZE + 2 - bank.kernel_size[0]) // stride + 1
    grad = torch.ones(2, bank.shape[0], size, size)
    results, refused = [], []
    for call in (
        lambda: ops.fixed_conv2d(x, *filters, None, *rest),
        lambda: ops.fixed_conv2d_input_grad(grad, *filters, [SIZE, SIZE], *rest),
    ):
        try:
            results.append(call())
        except RuntimeError as e:
            refused.append(str(e))
    assert all("packed must be" in message and "\n" not in message.strip() for message in refused), refused
    return results


def run_malformed(seed: int, count: int) -> int:
    """Changes `count` words of a bank, one or a few at a time. Returns how many calls were refused; none may crash."""
    rng = random.Random(seed)
    kernel, stride, groups = rng.choice([(3, 1, 1), (3, 2, 1), (3, 1, 2), (3, 2, 2), (5, 1, 1), (7, 2, 1)])
    bank = small_bank(rng.choice([kernel**2, 2 * kernel**2, 2, 12, 255]), kernel, groups)
    plan = make_plan(bank, torch.float32, stride=(stride, stride), groups=groups, force="index")
    assert plan.packed is not None
    refused = 0
    for _ in range(count):
        packed = plan.packed.clone()
        for _ in range(rng.choice([1, 1, 3])):
            at = rng.randrange(len(packed)) if rng.random() < 0.5 else rng.randrange(min(60, len(packed)))
            packed[at] = rng.choice([*WORDS, len(packed), int(packed[at]) + 1, int(packed[at]) - 1])
        if rng.random() < 0.1:
            packed = packed[: rng.randrange(len(packed))]
        refused += 2 - len(run(bank, packed, stride, groups))
    return refused


def test_malformed_words_are_refused_or_harmless() -> None:
    assert sum(run_malformed(seed, 100) for seed in range(12)) > 800


@pytest.mark.parametrize("stride", [1, 2])
def test_numbers_of_rows_beyond_the_block_are_refused(stride: int) -> None:
    """The lists are most of the words; a number is half a word."""
    bank = small_bank(9, 3)
    packed = make_plan(bank, torch.float32, stride=(stride, stride), force="index").packed
    assert packed is not None
    good = run(bank, packed, stride, 1)
    assert len(good) == 2
    changed = packed.clone()
    changed[(packed > 2**16) & (packed < 2**24)] |= -65536  # words that can only be two numbers of rows
    assert (changed != packed).any()
    assert run(bank, changed, stride, 1) == []


def test_packed_of_another_kind_is_refused() -> None:
    bank = small_bank(9, 3)
    packed = make_plan(bank, torch.float32, force="index").packed
    assert packed is not None
    for wrong in (packed.long(), packed.float(), packed[None], packed[:0], packed.repeat_interleave(2)[::2]):
        with pytest.raises(RuntimeError):
            ops.fixed_conv2d(
                torch.ones(1, 5, 9, 9), bank.basis, bank.steering, wrong, None, [1, 1], [1, 1], [1, 1], 1, 1.0, INDEX
            )
    other = efx.FilterBank(bank.basis, index=torch.zeros(6, 4, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="packed must be what pack_index made for this bank and geometry, but"):
        ops.fixed_conv2d(
            torch.ones(1, 4, 9, 9), other.basis, other.steering, packed, None, [1, 1], [1, 1], [1, 1], 1, 1.0, INDEX
        )
    flipped = bank.basis.flip(2, 1).roll(1, 2)  # no DCT functions, though the words say so
    with pytest.raises(RuntimeError, match="packed must be what .* but the functions do not fit them"):
        ops.fixed_conv2d(
            torch.ones(1, 5, 9, 9), flipped, bank.steering, packed, None, [1, 1], [1, 1], [1, 1], 1, 1.0, INDEX
        )
    with pytest.raises(RuntimeError, match=r"packed must be the weight \[6, 5, 3, 3\], got Float \[6, 5, 3, 1\]"):
        run_op(packed=torch.ones(6, 5, 3, 1), plan=DENSE)


def run_op(**changes: Any) -> Tensor:
    bank = small_bank(9, 3)
    arguments = {
        "x": torch.ones(1, 5, 9, 9), "basis": bank.basis, "steering": bank.coefficients(), "packed": None,
        "bias": torch.ones(6), "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1, "scale": 1.0,
        "plan": LOW_RANK,
    }  # fmt: skip
    return ops.fixed_conv2d(*(arguments | changes).values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.ones(1, 4, 9, 9)}, r"x must have 5 \* 1 channels, got Float \[1, 4, 9, 9\]"),
        ({"x": torch.ones(5, 9, 9)}, r"x must be \[N, C, H, W\], got Float \[5, 9, 9\]"),
        ({"x": torch.ones(1, 5, 0, 9)}, "x must be at least as large as the dilated kernel, 3; padded it is 2"),
        ({"basis": torch.ones(8, 3, 3).double()}, r"steering must be .* L = 8\], got Float \[6, 5, 9\]"),
        ({"basis": torch.ones(9, 3, 3)}, r"basis must be Double \[L, kh, kw\], got Float \[9, 3, 3\]"),
        ({"steering": torch.ones(6, 5)}, r"steering must be .*, got Float \[6, 5\]"),
        ({"steering": torch.zeros(6, 5, 9, dtype=torch.uint8)}, r"steering must be .*, got Byte \[6, 5, 9\]"),
        ({"bias": torch.ones(5)}, r"bias must be \[O = 6\] of x's dtype, got Float \[5\]"),
        ({"bias": torch.ones(6).double()}, r"bias must be \[O = 6\] of x's dtype, got Double \[6\]"),
        ({"groups": 4}, "groups must divide O = 6, got 4"),
        ({"groups": 0}, "groups must divide O = 6, got 0"),
        ({"stride": [0, 0]}, "stride must be two integers >= 1"),
        ({"stride": [1]}, "stride must be two integers >= 1"),
        ({"padding": [-1, 1]}, "padding must be two integers >= 0"),
        ({"padding": [2**62, 1]}, "padding must be two integers >= 0"),
        ({"dilation": [1, -3]}, "dilation must be two integers >= 1"),
        ({"plan": 4}, "plan must be 0 to 3, got 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        run_op(**changes)
    assert run_op().shape == (1, 6, 9, 9)


@pytest.mark.parametrize("plan", [DENSE, LOW_RANK])
def test_a_gradient_of_another_size_is_refused(plan: int) -> None:
    bank = small_bank(9, 3)
    for shape in ((1, 6, 9, 8), (1, 5, 9, 9), (1, 6, 3, 3)):
        with pytest.raises(RuntimeError, match=r"grad must be \[N, 6, 9, 9\], got Float \["):
            ops.fixed_conv2d_input_grad(
                torch.ones(shape), bank.basis, bank.coefficients(), None, [9, 9], [1, 1], [1, 1], [1, 1], 1, 1.0, plan
            )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_places_outside_of_their_windows_are_refused(memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 8, 7, 9).contiguous(memory_format=memory_format)
    windows: tuple = ([3, 3], [2, 2], [1, 1])
    y, places = max_pool.max_pool(x, *windows, False)
    for wrong in (9, 200, 255, 0):  # 0: the first window's corner is padding
        bad = places.clone()
        bad[0, 0, 0, 0] = wrong
        with pytest.raises(RuntimeError, match="places must be pixels of their windows, inside of the input"):
            max_pool.max_pool_backward(y, bad, [7, 9], *windows)
    for grad, at, size, message in (
        (y, places, [3, 3], "places must have the windows of an input of 3 x 3, got 4 x 5"),
        (y, places, [0, 9], "the input's planes must be as large as kernel_size"),
        (y.flatten(2, 3)[..., None], places, [7, 9], "places must be Byte, of the shape of grad"),
        (y, places.float(), [7, 9], "places must be Byte, of the shape of grad"),
    ):
        with pytest.raises(RuntimeError, match=message):
            max_pool.max_pool_backward(grad, at, size, *windows)
    for bad_windows in (([0, 3], [2, 2], [0, 0]), ([3, 3], [0, 1], [1, 1]), ([3, 3], [1, 1], [-1, 0]), ([3], [1], [1])):
        with pytest.raises(RuntimeError, match="kernel_size and stride must be two integers >= 1, padding two >= 0"):
            max_pool.max_pool(x, *bad_windows, False)
    with pytest.raises(RuntimeError, match="the input's planes must be as large as kernel_size"):
        max_pool.max_pool(x[:, :, :0], *windows, False)


FACTORS = torch.ones(4, 8)
CODES = torch.zeros(2, 8, 3, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: passes.affine_act(x, FACTORS, 8, 0.0), "act must be 0 to 7, got 8"),
        (lambda x: passes.act_mask(x, -1), "act must be 0 to 7, got -1"),
        (lambda x: passes.affine_act(x, FACTORS[:, :7], 1, 0.0), r"factors must be Float \[4, C = 8\]"),
        (lambda x: passes.batch_norm_sums(x, x, FACTORS.double()), r"factors must be Float \[4, C = 8\]"),
        (lambda x: passes.batch_norm_backward(x, x, x, FACTORS, FACTORS, 1.0), r"sums must be Float \[2, C = 8\]"),
        (lambda x: passes.batch_norm_factors(x, *FACTORS[:, :7], 0.1, 0.1), r"weight must be Float \[C = 8\]"),
        (
            lambda x: passes.mask_backward(x, x, torch.zeros(8, dtype=torch.uint8), 1, 0.0),
            "a bit for each of 144 elements",
        ),
        (lambda x: passes.mask_backward(x, x, torch.zeros(18), 1, 0.0), "a bit for each of 144 elements"),
        (lambda x: passes.dequantize(CODES.int(), *[torch.ones(2, 8)] * 2, x.dtype), "codes must be Byte"),
        (lambda x: passes.dequantize(CODES, *[torch.ones(2, 7)] * 2, x.dtype), "low and step must be Float"),
        (lambda x: passes.dequantize(CODES, *[torch.ones(2, 8).half()] * 2, x.dtype), "low and step must be Float"),
    ],
)
def test_passes_refuse_what_they_would_index_outside(call: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        call(torch.randn(2, 8, 3, 3))


def test_more_outputs_than_a_row_number_holds_run_dense() -> None:
    """With stride 2 the gradient's lists name outputs in 16 bits."""
    bank = efx.FilterBank(efx.dct_basis((3, 3)), index=torch.arange(2**16)[:, None].remainder(9).byte())
    plan = make_plan(bank, torch.float32, stride=(2, 2), force="index")
    assert plan.name == "dense"
    assert make_plan(bank, torch.float32, force="index").name == "index"
    x = torch.randn(1, 1, 3, 3, requires_grad=True)
    y = efx.fixed_conv2d(x, bank, stride=2, plan="index")
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert relative_error(dx[0, 0], bank.weight(torch.float64).sum((0, 1))) < 1e-5
