"""This module defines the passes that explainfix_ext.memory makes over activations, as operators.

Each is one pass over an activation (N, C, H, W). A BatchNorm's factors are a tensor (4, C): mean and 1 / deviation, and
alpha and beta, by which it computes (x - mean) / deviation * weight + bias = alpha x + beta.

    batch_norm_factors      the factors, from the batch's mean and biased variance; moves the running statistics
    affine_act              act(alpha x + beta)
    affine_act_backward     dx = grad * act'(alpha x + beta), by torch's rules where either is not finite
    act_mask                a bit for each element, in the order of the memory: is the derivative of the activation 1?
    mask_backward           dx = grad where the bit is 1, else slope * grad for leaky_relu and 0 for the others
    batch_norm_sums         (2, C): the sum of grad, and of grad * (x - mean) / deviation
    batch_norm_backward     dx, from grad and these sums over `count` elements of each channel
    quantize, dequantize    to 8 bits and back, in blocks of one image and channel

The functions of this module, but for those that quantize, take activations (N, C), (N, C, L) and (N, C, D, H, W), too.
They view them as images (N, C, H, W), and copy only what lies in memory in neither of the two orders.

The kernels allocate nothing of the size of an activation but the result; the references below may. They are
csrc/cpu/ops/passes.cpp and csrc/cuda/launch/passes.cu. Factors, sums and so on are float32, or float64 for a float64 x;
on CUDA float64 has no kernels, and the references run. The gradients write to their first argument, dx, which is
contiguous or channels_last and may be grad itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from explainfix_ext._support.layout import memory_format_of

# The numbers of the activations, which are those of `enum Act` in csrc.
ACTIVATIONS = {
    "identity": 0,
    "relu": 1,
    "relu6": 2,
    "leaky_relu": 3,
    "silu": 4,
    "hardswish": 5,
    "gelu": 6,
    "gelu_tanh": 7,
}
MASKED = ("relu", "relu6", "leaky_relu")  # their derivative is 1 or a constant slope, so one bit says which
WITHOUT_FLOAT64 = {"cuda"}  # devices whose kernels do not take it
_NAMES = list(ACTIVATIONS)
_PIXELS = (0, 2, 3)


def _channels(values: Tensor) -> Tensor:
    return values[:, None, None]


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of a channel's statistics and factors, for an activation of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def activate(x: Tensor, act: str, slope: float, inplace: bool = False) -> Tensor:
    """Applies an activation of `ACTIVATIONS` by torch's own function; `slope` is that of leaky_relu."""
    if act == "gelu" or act == "gelu_tanh":
        return F.gelu(x, approximate="tanh" if act == "gelu_tanh" else "none")
    if act == "leaky_relu":
        return F.leaky_relu(x, slope, inplace)
    if act == "identity":
        return x
    return getattr(F, act)(x, inplace=inplace)


def factors_of(mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Returns BatchNorm's factors (4, C), from statistics (C) and parameters of their dtype."""
    invstd = torch.rsqrt(var + eps)
    alpha = invstd if weight is None else weight * invstd
    beta = -mean * alpha if bias is None else bias - mean * alpha
    return torch.stack((mean, invstd, alpha, beta))


def _batch_norm_factors(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    share: float, eps: float,
) -> Tensor:  # fmt: skip
    var, mean = torch.var_mean(x.to(statistics_dtype(x.dtype)), _PIXELS, correction=0)
    if running_mean is not None and running_var is not None:
        count = x.numel() // x.shape[1]
        running_mean.lerp_(mean, share)
        running_var.lerp_(var * (count / max(count - 1, 1)), share)
    return factors_of(mean, var, weight, bias, eps)


def _affine(x: Tensor, factors: Tensor) -> Tensor:
    return torch.addcmul(_channels(factors[3]), x.to(factors.dtype), _channels(factors[2]))


def _affine_act(x: Tensor, factors: Tensor, act: int, slope: float) -> Tensor:
    return activate(_affine(x, factors), _NAMES[act], slope).to(x.dtype)


def _affine_act_backward(dx: Tensor, grad: Tensor, x: Tensor, factors: Tensor, act: int, slope: float) -> None:
    with torch.enable_grad():
        z = _affine(x, factors).detach().requires_grad_()
        y = activate(z, _NAMES[act], slope)
    dx.copy_(torch.autograd.grad(y, z, grad.to(z.dtype))[0])


def _in_memory(x: Tensor) -> Tensor:
    """Returns a view with the axes in the order of the strides, so that flattening it follows the memory."""
    return x.permute(0, 2, 3, 1) if memory_format_of(x) is torch.channels_last else x


def _act_mask(y: Tensor, act: int) -> Tensor:
    # At NaN, ReLU's derivative is 1 in torch, and that of the others is not.
    inside = {"relu": ~(y <= 0), "relu6": (y > 0) & (y < 6), "leaky_relu": y > 0}[_NAMES[act]]
    bits = F.pad(_in_memory(inside).flatten(), (0, -y.numel() % 8)).view(-1, 8)
    return (bits << torch.arange(8, device=y.device)).sum(1, dtype=torch.uint8)


def _mask_backward(dx: Tensor, grad: Tensor, mask: Tensor, act: int, slope: float) -> None:
    bits = (mask[:, None] >> torch.arange(8, device=mask.device) & 1).view(-1)[: grad.numel()]
    ordered = _in_memory(dx)
    inside = torch.empty_like(dx, dtype=torch.bool)
    _in_memory(inside).copy_(bits.view(ordered.shape) != 0)
    dx.copy_(torch.where(inside, grad, grad * slope if _NAMES[act] == "leaky_relu" else 0))


def _batch_norm_sums(grad: Tensor, x: Tensor, factors: Tensor) -> Tensor:
    mean, invstd = factors[:2]
    grad, x = grad.to(mean.dtype), x.to(mean.dtype)
    normalized = (x - _channels(mean)) * _channels(invstd)
    return torch.stack((grad.sum(_PIXELS), (grad * normalized).sum(_PIXELS)))


def _batch_norm_backward(dx: Tensor, grad: Tensor, x: Tensor, factors: Tensor, sums: Tensor, count: float) -> None:
    mean, invstd, alpha = factors[:3]
    b = -alpha * invstd * sums[1] / count  # this and c are the gradient through the batch's statistics
    c = -alpha * sums[0] / count - b * mean
    dx.copy_(_channels(alpha) * grad.to(alpha.dtype) + _channels(b) * x.to(alpha.dtype) + _channels(c))


def _quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    values = x.to(statistics_dtype(x.dtype))
    low, high = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
    step = (high - low).clamp_min(1e-12) / 255
    codes = ((values - low) / step).round_().clamp_(0, 255).to(torch.uint8)
    return codes, low.flatten(1), step.flatten(1)


def _dequantize(codes: Tensor, low: Tensor, step: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.addcmul(low[:, :, None, None], codes.to(low.dtype), step[:, :, None, None]).to(dtype)


_NUMBERS = "Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, Tensor(b!)? running_var, float share, float eps"
_GRAD, _X = "Tensor(a!) dx, Tensor grad", "Tensor x, Tensor factors"
_OPS: dict[str, tuple[str, Any]] = {
    "batch_norm_factors": (f"(Tensor x, {_NUMBERS}) -> Tensor", _batch_norm_factors),
    "batch_norm_sums": (f"(Tensor grad, {_X}) -> Tensor", _batch_norm_sums),
    "batch_norm_backward": (f"({_GRAD}, {_X}, Tensor sums, float count) -> ()", _batch_norm_backward),
    "affine_act": (f"({_X}, int act, float slope) -> Tensor", _affine_act),
    "affine_act_backward": (f"({_GRAD}, {_X}, int act, float slope) -> ()", _affine_act_backward),
    "act_mask": ("(Tensor y, int act) -> Tensor", _act_mask),
    "mask_backward": (f"({_GRAD}, Tensor mask, int act, float slope) -> ()", _mask_backward),
    "quantize": ("(Tensor x) -> (Tensor, Tensor, Tensor)", _quantize),
    "dequantize": ("(Tensor codes, Tensor low, Tensor step, ScalarType dtype) -> Tensor", _dequantize),
}
# Name of an operator -> what it computes, in pure torch; the tests of the kernels compare with it.
REFERENCES = {name: reference for name, (_, reference) in _OPS.items()}
for _name, (_schema, _reference) in _OPS.items():
    torch.library.define(f"explainfix::{_name}", _schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(f"explainfix::{_name}", "CompositeExplicitAutograd", _reference)


def kernel_or_reference(name: str, reference: Callable[..., Any], activations: int = 1) -> Callable[..., Any]:
    """Returns the operator's function, or for float64 on CUDA, which has no kernels for it, the reference.

    Its first arguments, as many as `activations` says, may have any number of axes from 2 to 5; its result, if it is an
    activation, has that of the first.
    """
    op = getattr(torch.ops.explainfix, name).default

    def call(*args: Any) -> Any:
        x = args[0]
        without = x.dtype is torch.float64 and x.device.type in WITHOUT_FLOAT64
        run = reference if without else op
        if x.ndim == 4:
            return run(*args)
        result = run(*map(_as_image, args[:activations]), *args[activations:])
        if result is None or result.ndim != 4:
            return result
        return torch.ops.aten._unsafe_view(result, x.shape)  # a view that autograd lets an inplace activation write to

    return call


def _as_image(x: Tensor) -> Tensor:
    """Views an activation as (N, C, H, W). The order in memory depends on memory_format_of(x) alone."""
    x = x.contiguous(memory_format=memory_format_of(x))
    if x.ndim == 2:
        return x[:, None, None, :].permute(0, 3, 1, 2)  # whose strides are those of channels_last: a row is a pixel
    return x[..., None] if x.ndim == 3 else x.flatten(3)


batch_norm_factors = kernel_or_reference("batch_norm_factors", _batch_norm_factors)
batch_norm_sums = kernel_or_reference("batch_norm_sums", _batch_norm_sums, 2)
batch_norm_backward = kernel_or_reference("batch_norm_backward", _batch_norm_backward, 3)
affine_act = kernel_or_reference("affine_act", _affine_act)
affine_act_backward = kernel_or_reference("affine_act_backward", _affine_act_backward, 3)
act_mask = kernel_or_reference("act_mask", _act_mask)
mask_backward = kernel_or_reference("mask_backward", _mask_backward, 2)
quantize = kernel_or_reference("quantize", _quantize)


def dequantize(codes: Tensor, low: Tensor, step: Tensor, dtype: torch.dtype) -> Tensor:
    """Runs the operator, or for float64 on CUDA its reference."""
    without = dtype is torch.float64 and codes.device.type in WITHOUT_FLOAT64
    return (_dequantize if without else torch.ops.explainfix.dequantize.default)(codes, low, step, dtype)


def _fake_act_mask(y: Tensor, act: int) -> Tensor:
    if not y.is_floating_point():  # as the kernels do
        raise TypeError(f"y must be floating, got {y.dtype}")
    return y.new_empty((y.numel() + 7) // 8, dtype=torch.uint8)


def _fake_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low = x.new_empty(x.shape[:2], dtype=statistics_dtype(x.dtype))
    return torch.empty_like(x, dtype=torch.uint8), low, torch.empty_like(low)


def _fake_rows(rows: int) -> Callable[..., Tensor]:
    return lambda x, *others: x.new_empty((rows, x.shape[1]), dtype=statistics_dtype(x.dtype))


torch.library.register_fake("explainfix::batch_norm_factors", _fake_rows(4))
torch.library.register_fake("explainfix::batch_norm_sums", _fake_rows(2))
torch.library.register_fake("explainfix::affine_act", lambda x, *factors: torch.empty_like(x))
torch.library.register_fake("explainfix::act_mask", _fake_act_mask)
torch.library.register_fake("explainfix::quantize", _fake_quantize)
torch.library.register_fake(
    "explainfix::dequantize", lambda codes, low, step, dtype: torch.empty_like(codes, dtype=dtype)
)
for _name in ("affine_act_backward", "mask_backward", "batch_norm_backward"):
    torch.library.register_fake(f"explainfix::{_name}", lambda *args: None)
