"""card_families runs each family of kernels on tiny inputs beside the reference; card_check.py starts it as a process.

It prints "ready", then "right NAME" for each family in order, or "wrong WHY" and ends.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from explainfix_ext._support.text import first_line
from explainfix_ext.filters.make_bank import make_bank
from explainfix_ext.ops import fixed_conv2d, hadamard_conv2d, max_pool, passes, reference

from .plan import make_plan

TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 1e-5}  # relative, of the kernels' rounding
_CHANNELS = 16


def _images(device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields images of each dtype and layout, and a number for each channel."""
    for dtype, layout in itertools.product(TOLERANCE, (torch.contiguous_format, torch.channels_last)):
        x = torch.randn(2, _CHANNELS, 9, 10).to(device, dtype, memory_format=layout)
        yield x, torch.randn(_CHANNELS).to(x)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _compare(what: str, got: Any, want: Any, dtype: torch.dtype) -> None:
    for ours, plain in zip(_tensors(got), _tensors(want), strict=True):
        error = (ours.double() - plain.double()).abs()
        codes = ours.dtype == torch.uint8  # rounded numbers may be one off
        if not (error.max() <= 1 if codes else error.norm() <= TOLERANCE[dtype] * plain.double().norm()):
            raise ArithmeticError(f"{what} in {dtype} is off by up to {error.max().item():.1e}")


def _convolutions(device: str, pair: Any, init: str, groups: int, *plans: str) -> None:
    """Compares both directions of all plans for kernels of 3, 5 and 7, stride 1 and 2."""
    conv, input_grad = (getattr(reference, op._name.partition("::")[2]) for op in (pair.conv, pair.input_grad))
    for kernel, stride, force in itertools.product((3, 5, 7), (1, 2), plans):
        bank = make_bank(init, _CHANNELS, _CHANNELS, kernel, groups=groups, seed=0).to(device)
        filters = bank.hadamard
        parts = bank.tensors if filters is None else filters.tensors
        numbers = (bank.scale,) if filters is None else (filters.order, filters.stages, bank.scale)
        geometry = ((stride,) * 2, (kernel // 2,) * 2, (1, 1), groups, *numbers)
        for x, bias in _images(device):
            plan = make_plan(bank, x.dtype, stride=(stride,) * 2, groups=groups, force=force)
            y = pair.conv_values(x, *parts, plan.packed, bias, *geometry, plan.code)
            dx = pair.input_grad_values(y, *parts, plan.packed, x.shape[2:], *geometry, plan.code)
            want = (
                conv(x.double(), *parts, None, bias.double(), *geometry, 0),
                input_grad(y.double(), *parts, None, x.shape[2:], *geometry, 0),
            )
            _compare(f"{force} {kernel}x{kernel} stride {stride}", (y, dx), want, x.dtype)


def _fixed_conv2d(device: str) -> None:
    for init in ("dct2", "ghaar4_s1"):
        _convolutions(device, fixed_conv2d.PAIR, init, 1, "dense")
    _convolutions(device, fixed_conv2d.PAIR, "dct2", _CHANNELS, "dense", "depthwise")


def _hadamard_conv2d(device: str) -> None:
    _convolutions(device, hadamard_conv2d.PAIR, "hadamard", 1, "dense", "hadamard")


def _passes(device: str) -> None:
    acts, masked = passes.ACTIVATIONS.values(), [passes.ACTIVATIONS[name] for name in passes.MASKED]
    for x, _ in _images(device):
        grad = x.flip(0)
        weight, bias, mean, var = numbers = torch.rand(4, _CHANNELS).to(device) + 0.5
        factors = passes.batch_norm_factors(x, weight, bias, mean, var, 0.1, 1e-5)
        sums, mask = passes.batch_norm_sums(grad, x, factors), passes.act_mask(x, masked[0])
        codes, low, step = passes.quantize(x)
        calls: list[tuple] = [("affine_act", x, factors, act, 0.1) for act in acts]
        calls += [("affine_act_backward", grad, grad, x, factors, act, 0.1) for act in acts]
        calls += [("act_mask", x, act) for act in masked]
        calls += [("mask_backward", grad, grad, mask, act, 0.1) for act in masked]
        calls += [("batch_norm_factors", x, *numbers, 0.1, 1e-5), ("batch_norm_sums", grad, x, factors)]
        calls += [("batch_norm_backward", grad, grad, x, factors, sums, 180.0)]
        calls += [("quantize", x), ("dequantize", codes, low, step, x.dtype)]
        _operators(passes, calls, x.dtype)


def _max_pool(device: str) -> None:
    windows = ((3, 3), (2, 2), (1, 1))
    for x, _ in _images(device):
        y, places = max_pool.max_pool(x, *windows, False)
        calls = [("max_pool", x, *windows, False), ("max_pool_backward", y, places, x.shape[2:], *windows)]
        _operators(max_pool, calls, x.dtype)


def _operators(module: Any, calls: list[tuple], dtype: torch.dtype) -> None:
    """Compares operators with their references in float64: results, and arguments, which some overwrite."""
    for name, *args in calls:
        ours = tree_map_only(Tensor, Tensor.clone, args)
        exact = tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t.clone(), args)
        got, want = getattr(module, name)(*ours), module.REFERENCES[name](*exact)
        _compare(name, (got, ours), (want, exact), dtype)


FAMILIES: dict[str, Callable[[str], None]] = {
    "fixed_conv2d": _fixed_conv2d,
    "hadamard_conv2d": _hadamard_conv2d,
    "passes": _passes,
    "max_pool": _max_pool,
}


def main() -> None:
    """Runs the families that the command line names after the device."""
    device, *names = sys.argv[1:]
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    torch.zeros(1, device=device).item()
    print("ready", flush=True)
    for name in names:
        try:
            FAMILIES[name](device)  # what it compares, it waits for
        except Exception as error:
            print(f"wrong {first_line(error)}", flush=True)
            return
        print(f"right {name}", flush=True)
