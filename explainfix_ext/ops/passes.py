"""This module defines the passes that explainfix_ext.memory makes over activations, as operators.

Each is one pass over an activation (N, C, H, W):

    batch_stats             mean and biased variance of each channel
    affine_act              act(alpha x + beta), one alpha and beta for each channel
    affine_act_backward_    grad *= act'(alpha x + beta), by torch's rules where either is not finite
    act_mask                a bit for each element, in the order of the memory: is the derivative of the activation 1?
    mask_backward_          where the bit is 0, grad *= slope for leaky_relu, else grad = 0
    batch_norm_sums         sum of grad and of grad * (x - mean) * invstd, for each channel
    channel_combine_        grad = a grad + b x + c, one a, b, c for each channel
    quantize, dequantize    to 8 bits and back, in blocks of one image and channel

The kernels allocate nothing of the size of an activation but the result; the references below may. They are
csrc/cpu/ops/passes.cpp and csrc/cuda/launch/passes.cu. Statistics and factors of a channel are float32, or float64 for
a float64 x. An operator whose name ends in "_" overwrites its first argument.
"""

from __future__ import annotations

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


def _affine(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return torch.addcmul(_channels(beta), x.to(alpha.dtype), _channels(alpha))


def _batch_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    var, mean = torch.var_mean(x.to(statistics_dtype(x.dtype)), _PIXELS, correction=0)
    return mean, var


def _affine_act(x: Tensor, alpha: Tensor, beta: Tensor, act: int, slope: float) -> Tensor:
    return activate(_affine(x, alpha, beta), _NAMES[act], slope).to(x.dtype)


def _affine_act_backward_(grad: Tensor, x: Tensor, alpha: Tensor, beta: Tensor, act: int, slope: float) -> None:
    with torch.enable_grad():
        z = _affine(x, alpha, beta).detach().requires_grad_()
        y = activate(z, _NAMES[act], slope)
    grad.copy_(torch.autograd.grad(y, z, grad.to(z.dtype))[0])


def _in_memory(x: Tensor) -> Tensor:
    """Returns a view with the axes in the order of the strides, so that flattening it follows the memory."""
    return x.permute(0, 2, 3, 1) if memory_format_of(x) is torch.channels_last else x


def _act_mask(y: Tensor, act: int) -> Tensor:
    # At NaN, ReLU's derivative is 1 in torch, and that of the others is not.
    inside = {"relu": ~(y <= 0), "relu6": (y > 0) & (y < 6), "leaky_relu": y > 0}[_NAMES[act]]
    bits = F.pad(_in_memory(inside).flatten(), (0, -y.numel() % 8)).view(-1, 8)
    return (bits << torch.arange(8, device=y.device)).sum(1, dtype=torch.uint8)


def _mask_backward_(grad: Tensor, mask: Tensor, act: int, slope: float) -> None:
    bits = (mask[:, None] >> torch.arange(8, device=mask.device) & 1).view(-1)[: grad.numel()]
    ordered = _in_memory(grad)
    outside = ordered * slope if _NAMES[act] == "leaky_relu" else ordered.new_zeros(())
    ordered.copy_(torch.where(bits.view(ordered.shape) != 0, ordered, outside))


def _batch_norm_sums(grad: Tensor, x: Tensor, mean: Tensor, invstd: Tensor) -> tuple[Tensor, Tensor]:
    grad, x = grad.to(mean.dtype), x.to(mean.dtype)
    normalized = (x - _channels(mean)) * _channels(invstd)
    return grad.sum(_PIXELS), (grad * normalized).sum(_PIXELS)


def _channel_combine_(grad: Tensor, x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> None:
    grad.copy_(_channels(a) * grad.to(a.dtype) + _channels(b) * x.to(a.dtype) + _channels(c))


def _quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    values = x.to(statistics_dtype(x.dtype))
    low, high = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
    step = (high - low).clamp_min(1e-12) / 255
    codes = ((values - low) / step).round_().clamp_(0, 255).to(torch.uint8)
    return codes, low.flatten(1), step.flatten(1)


def _dequantize(codes: Tensor, low: Tensor, step: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.addcmul(low[:, :, None, None], codes.to(low.dtype), step[:, :, None, None]).to(dtype)


_FACTORS = "Tensor alpha, Tensor beta, int act, float slope"
_OPS: dict[str, tuple[str, Any]] = {
    "batch_stats": ("(Tensor x) -> (Tensor, Tensor)", _batch_stats),
    "affine_act": (f"(Tensor x, {_FACTORS}) -> Tensor", _affine_act),
    "affine_act_backward_": (f"(Tensor(a!) grad, Tensor x, {_FACTORS}) -> ()", _affine_act_backward_),
    "act_mask": ("(Tensor y, int act) -> Tensor", _act_mask),
    "mask_backward_": ("(Tensor(a!) grad, Tensor mask, int act, float slope) -> ()", _mask_backward_),
    "batch_norm_sums": ("(Tensor grad, Tensor x, Tensor mean, Tensor invstd) -> (Tensor, Tensor)", _batch_norm_sums),
    "channel_combine_": ("(Tensor(a!) grad, Tensor x, Tensor a, Tensor b, Tensor c) -> ()", _channel_combine_),
    "quantize": ("(Tensor x) -> (Tensor, Tensor, Tensor)", _quantize),
    "dequantize": ("(Tensor codes, Tensor low, Tensor step, ScalarType dtype) -> Tensor", _dequantize),
}
# Name of an operator -> what it computes, in pure torch; the tests of the kernels compare with it.
REFERENCES = {name: reference for name, (_, reference) in _OPS.items()}
for _name, (_schema, _reference) in _OPS.items():
    torch.library.define(f"explainfix::{_name}", _schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(f"explainfix::{_name}", "CompositeExplicitAutograd", _reference)

batch_stats = torch.ops.explainfix.batch_stats.default
affine_act = torch.ops.explainfix.affine_act.default
affine_act_backward_ = torch.ops.explainfix.affine_act_backward_.default
act_mask = torch.ops.explainfix.act_mask.default
mask_backward_ = torch.ops.explainfix.mask_backward_.default
batch_norm_sums = torch.ops.explainfix.batch_norm_sums.default
channel_combine_ = torch.ops.explainfix.channel_combine_.default
quantize = torch.ops.explainfix.quantize.default
dequantize = torch.ops.explainfix.dequantize.default


def _fake_statistics(x: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
    values = x.new_empty(x.shape[1], dtype=statistics_dtype(x.dtype))
    return values, torch.empty_like(values)


def _fake_act_mask(y: Tensor, act: int) -> Tensor:
    if not y.is_floating_point():  # as the kernels do
        raise TypeError(f"y must be floating, got {y.dtype}")
    return y.new_empty((y.numel() + 7) // 8, dtype=torch.uint8)


def _fake_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low = x.new_empty(x.shape[:2], dtype=statistics_dtype(x.dtype))
    return torch.empty_like(x, dtype=torch.uint8), low, torch.empty_like(low)


torch.library.register_fake("explainfix::batch_stats", _fake_statistics)
torch.library.register_fake("explainfix::batch_norm_sums", _fake_statistics)
torch.library.register_fake("explainfix::affine_act", lambda x, *factors: torch.empty_like(x))
torch.library.register_fake("explainfix::act_mask", _fake_act_mask)
torch.library.register_fake("explainfix::quantize", _fake_quantize)
torch.library.register_fake(
    "explainfix::dequantize", lambda codes, low, step, dtype: torch.empty_like(codes, dtype=dtype)
)
for _name in ("affine_act_backward_", "mask_backward_", "channel_combine_"):
    torch.library.register_fake(f"explainfix::{_name}", lambda *args: None)
