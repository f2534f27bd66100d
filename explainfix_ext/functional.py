"""`fixed_conv2d`, the public function over the op: it checks in Python, where an error can be clear, then calls the op.

`FixedConv2d` and the memory savers call `convolve`, the same on the parts of a bank and a plan.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .filters.bank import FilterBank, checked_bank
from .filters.basis import compose_weight
from .ops import fixed_conv2d as index_and_coeff
from .ops import hadamard_conv2d as hadamard
from .ops import hadamard_onnx, reference
from .ops.plans import phases
from .ops.plans.plan import DENSE, ConvPlan, plan_of
from .ops.transposes import Transposes, transformed

__all__ = ["fixed_conv2d"]

Pair = int | Sequence[int]
_AS_IT_IS = contextlib.nullcontext()


def fixed_conv2d(
    x: Tensor,
    bank: FilterBank,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    plan: str = "auto",
) -> Tensor:
    """Convolves x with fixed filters. Keeps no activation for backward, and no tensor the size of the filters.

    Args:
        x: (N, C, H, W) or (C, H, W), floating.
        bank: C = I/groups * groups input channels and O output channels, on x's device.
        bias: (O,), of x's dtype; differentiable.
        stride, dilation: one or two positive integers.
        padding: one or two integers >= 0, "valid", or (stride 1) "same".
        groups: as for `F.conv2d`.
        plan: "auto": the fastest kernel, or dense in a large call that torch does faster on the CPU; or one of "dense",
            "index", "low_rank", "depthwise", "hadamard", wherever it can; on a GPU "index" and "low_rank" are dense. A
            traced function gets the plan that an ordinary call with this bank made before, or the dense one. Where a
            filter, or a value of its function, is zero, "index" reads nothing: NaN and infinity do not pass there.

    Returns:
        (N, O, H', W') or (O, H', W'), in x's dtype (autocast's, under autocast) and memory format.

    Raises:
        ValueError, TypeError: an argument does not fit; the message says what was expected and what came.

    Examples:
        >>> x, bank = torch.randn(2, 4, 8, 8), make_bank("dct2", 6, 4, 3, seed=0)
        >>> y = fixed_conv2d(x, bank, padding=1)

        The equivalent PyTorch:

        >>> torch.allclose(y, F.conv2d(x, bank.weight(x.dtype, x.device), padding=1), atol=1e-5)
        True

    Source: ExplainFix 2023, section 3.
    """
    checked_bank(bank)
    x, bias = _autocast(x, bias)
    pairs = {"stride": _pair("stride", stride, 1), "dilation": _pair("dilation", dilation, 1)}
    _check_tensors(x, bank.shape, bank.tensors, bias, groups)
    if bank.groups not in (None, groups):
        raise ValueError(f"groups must be those that the bank was made for, {bank.groups}, got {groups}")
    kernel_plan = plan_of(bank, x.dtype, **pairs, groups=groups, force=plan)
    return convolve_bank(x, bank, kernel_plan, bias, stride, padding, dilation, groups)


def convolve_bank(x: Tensor, bank: FilterBank, plan: ConvPlan, bias: Tensor | None, *geometry: Any) -> Tensor:
    """Convolves x by a bank and its plan: calls `convolve` or `convolve_hadamard`, which tracers see."""
    call, parts, numbers = parts_of(bank, plan)
    return call(x, *parts, plan.packed, bias, *geometry, *numbers)


def parts_of(bank: FilterBank, plan: ConvPlan) -> tuple[Callable[..., Tensor], tuple[Tensor, ...], tuple]:
    """Returns the function that convolves by such a bank, the tensors it takes after x, and its last arguments."""
    if bank.hadamard is None:
        return convolve, bank.tensors, (bank.scale, plan.code)
    filters = bank.hadamard
    return convolve_hadamard, filters.tensors, (filters.order, filters.stages, bank.scale, plan.code)


def operators_of(bank: FilterBank) -> Transposes:
    """Returns the pair of operators, a convolution and its input gradient, that are for such a bank."""
    return index_and_coeff.PAIR if bank.hadamard is None else hadamard.PAIR


def convolve(
    x: Tensor,
    basis: Tensor,
    steering: Tensor,
    packed: Tensor | None,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    groups: int,
    scale: float,
    plan: int,
) -> Tensor:
    """Convolves as `fixed_conv2d` does, given the parts of a bank and of a plan. FixedConv2d calls it; tracers see it.

    Args:
        basis, steering, scale: of the bank.
        packed, plan: `packed` and `code` of a ConvPlan.
    """
    x, bias = _autocast(x, bias)
    if plan == DENSE and packed is not None and packed.dtype != x.dtype:
        packed = None  # kept outside of autocast, or for another dtype
    if basis.dtype != torch.float64 and basis.device.type != "mps":
        basis = basis.double()  # a traced model holds it as a buffer, which .half() casts
    shape = (*steering.shape[:2], *basis.shape[1:])
    op = _op(index_and_coeff.PAIR, reference.fixed_conv2d)
    geometry = (stride, padding, dilation, groups)
    return _checked_call(op, x, shape, (basis, steering), packed, bias, geometry, (scale, plan))


def convolve_hadamard(
    x: Tensor,
    columns: Tensor,
    rows: Tensor,
    outputs: Tensor,
    inputs: Tensor,
    packed: Tensor | None,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    groups: int,
    order: int,
    stages: int,
    scale: float,
    plan: int,
) -> Tensor:
    """Convolves as `convolve` does, given the parts of a hadamard bank."""
    x, bias = _autocast(x, bias)
    if plan == DENSE and packed is not None and packed.dtype != x.dtype:
        packed = None
    if columns.dtype != torch.float32:
        columns, rows = columns.float(), rows.float()  # a traced model holds them as buffers, which .half() casts
    shape = (columns.shape[1], rows.shape[3], columns.shape[2], rows.shape[4])
    op = _op(hadamard.PAIR, hadamard_onnx.hadamard_conv2d)
    geometry, tensors = (stride, padding, dilation, groups), (columns, rows, outputs, inputs)
    return _checked_call(op, x, shape, tensors, packed, bias, geometry, (order, stages, scale, plan))


def _checked_call(
    op: Callable[..., Tensor],
    x: Tensor,
    shape: tuple[int, ...],
    tensors: tuple[Tensor, ...],
    packed: Tensor | None,
    bias: Tensor | None,
    geometry: tuple[Pair, Pair | str, Pair, int],
    numbers: tuple,
) -> Tensor:
    """Checks the arguments of an operator, and calls it. shape: (O, I/groups, kh, kw) of the filters."""
    stride, dilation, groups = _pair("stride", geometry[0], 1), _pair("dilation", geometry[2], 1), geometry[3]
    batched = x if x.ndim == 4 else x.unsqueeze(0)
    with _quiet_tracer() if torch.jit.is_tracing() else _AS_IT_IS:
        _check_tensors(x, shape, tensors, bias, groups)
        batched, pad = _resolve_padding(batched, geometry[1], shape[2:], stride, dilation)
        if not torch.compiler.is_compiling():  # a guard here would narrow dynamic shapes
            _check_output_size(batched, shape, pad, dilation)
    if dilation != (1, 1) and phases.pays(batched, shape, stride, dilation, numbers[-1]):
        y = phases.convolve(op, batched, tensors, shape[2:], pad, dilation, (packed, bias, stride), (groups, *numbers))
    else:
        y = op(batched, *tensors, packed, bias, stride, pad, dilation, groups, *numbers)
    return y if x.ndim == 4 else y.squeeze(0)


def convolve_learned(
    x: Tensor,
    basis: Tensor,
    coeff: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    groups: int,
    scale: float,
) -> Tensor:
    """Convolves with learned coefficients: an ordinary convolution with a composed weight, which keeps x."""
    return F.conv2d(x, compose_weight(basis, coeff, scale, coeff.dtype), bias, stride, padding, dilation, groups)


# Tracers that run a model on proxies (torch.fx) see one call, not the checks inside.
torch.fx.wrap("fixed_conv2d")
torch.fx.wrap("convolve")
torch.fx.wrap("convolve_hadamard")
torch.fx.wrap("convolve_learned")


def autocast_dtype(device: str, dtype: torch.dtype) -> torch.dtype | None:
    """Tells what autocast casts a conv2d input of `dtype` to; None where it is off, or leaves it alone, as float64."""
    if device == "meta" or dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


@contextlib.contextmanager
def _quiet_tracer() -> Iterator[None]:
    """Silences jit.trace, which warns where sizes are compared. What is checked here holds for the trace, or raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        yield


def _op(pair: Transposes, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Picks what runs the convolution. ONNX knows only torch's own operators: an export gets `plain`."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return plain if torch.onnx.is_in_onnx_export() else pair.conv  # a Function cannot be saved
    if transformed():
        return pair.transformable.apply
    return pair.eager if torch.is_grad_enabled() else pair.conv_values


def _autocast(x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Casts as torch does for conv2d. The bank is never cast: it has no training precision."""
    dtype = autocast_dtype(x.device.type, x.dtype) if x.is_floating_point() else None
    if dtype is None:
        return x, bias
    return x.to(dtype), None if bias is None else bias.to(dtype)


def _pair(name: str, value: Pair, least: int) -> tuple[int, int]:
    """Returns (height, width) of `value`. Sizes may be symbolic under a tracer, so they are only compared."""
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int and min(value) >= least:
        return value  # as a layer has it: what follows takes microseconds
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) == 1:
        pair = pair * 2
    if len(pair) != 2 or any(not isinstance(v, (int, torch.SymInt, np.integer)) or v < least for v in pair):
        raise ValueError(f"{name} must be one or two integers >= {least}, got {value}")
    return pair[0], pair[1]


def _check_tensors(x: Tensor, shape: tuple[int, ...], bank: Sequence[Tensor], bias: Tensor | None, groups: int) -> None:
    if x.ndim not in (3, 4):
        raise ValueError(f"x must be [N, C, H, W] or [C, H, W], got {list(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x must be floating, got {x.dtype}")
    device = x.device
    for tensor in bank:
        if tensor.device != device:
            raise ValueError(f"bank must be on x's device {device}, got {tensor.device}")
    if bias is not None and bias.device != device:
        raise ValueError(f"bias must be on x's device {device}, got {bias.device}")
    out_channels, per_group = shape[:2]
    if not isinstance(groups, int) or groups < 1 or out_channels % groups:
        raise ValueError(f"groups must divide out_channels = {out_channels}, got {groups}")
    if x.shape[-3] != per_group * groups:
        raise ValueError(f"x must have I/groups * groups = {per_group} * {groups} channels, got {list(x.shape)}")
    if bias is not None and (bias.ndim != 1 or bias.shape[0] != out_channels):
        raise ValueError(f"bias must be [O] = [{out_channels}], got {list(bias.shape)}")
    if bias is not None and bias.dtype != x.dtype:
        raise TypeError(f"bias must have x's dtype {x.dtype}, got {bias.dtype}")


def _resolve_padding(
    x: Tensor, padding: Pair | str, kernel: Sequence[int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[Tensor, tuple[int, int]]:
    """Returns x and the symmetric padding for the op. "same" with an even kernel needs one row or column more at the
    end, which x gets here."""
    if not isinstance(padding, str):
        return x, _pair("padding", padding, 0)
    if padding == "valid":
        return x, (0, 0)
    if padding != "same":
        raise ValueError(f'padding must be integers, "valid" or "same", got {padding!r}')
    if max(stride) > 1:
        raise ValueError(f'padding "same" needs stride 1, got {stride}')
    total = [d * (int(k) - 1) for d, k in zip(dilation, kernel, strict=True)]  # jit.trace has tensors for sizes
    if total[0] % 2 or total[1] % 2:
        x = F.pad(x, (0, total[1] % 2, 0, total[0] % 2))
    return x, (total[0] // 2, total[1] // 2)


def _check_output_size(x: Tensor, shape: tuple[int, ...], pad: tuple[int, int], dilation: tuple[int, int]) -> None:
    height, width = x.shape[2] + 2 * pad[0], x.shape[3] + 2 * pad[1]
    reach = dilation[0] * (shape[2] - 1) + 1, dilation[1] * (shape[3] - 1) + 1
    if height < reach[0] or width < reach[1]:
        raise ValueError(
            f"x must be at least as large as the dilated kernel, {list(reach)}; padded it is {[height, width]}"
        )
