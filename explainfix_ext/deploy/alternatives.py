"""This module says which steps can do what a convolution does: one is chosen by time (choose.py).

A BatchNorm in eval mode is a scale and a bias for each channel. They go into weights where there are weights, in
float64; kernels of fixed filters have none, and apply them to the result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from explainfix_ext.filters.bank import FilterBank
from explainfix_ext.nn.fixed_conv2d import FixedConv2d

from .steps import Activation, DenseStep, DepthwiseStep, Filtered, FixedStep, PointwiseStep, Step

_KERNELS = ("index", "low_rank", "depthwise", "hadamard")


@dataclasses.dataclass(frozen=True)
class Affine:
    """Holds the scale and the bias (C,) of a BatchNorm in eval mode, in float64."""

    scale: Tensor
    bias: Tensor

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> Affine:
        """Reads them from a BatchNorm with running statistics."""
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = torch.rsqrt(norm.running_var.double() + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight.detach().double()
        shift = -norm.running_mean.double() * scale
        return cls(scale, shift if norm.bias is None else shift + norm.bias.detach().double())

    def of_bias(self, bias: Tensor | None) -> Tensor:
        """Returns the bias of the BatchNorm's result, if `bias` is that of its input."""
        return self.bias if bias is None else self.bias + self.scale * bias.detach().double()


def alternatives(conv: nn.Conv2d, affine: Affine | None, activation: Activation) -> list[Step]:
    """Returns the steps that can do what a convolution, and a BatchNorm and an activation after it, do; one at least.

    Args:
        conv: a Conv2d that computes what its class says, or a FixedConv2d.
        affine: of the BatchNorm, or None.
    """
    if not isinstance(conv, FixedConv2d):
        return list(_of_weight(conv, conv.weight, affine, activation))
    bank = conv.bank
    if conv.pointwise is None:
        by_kernels = _of_bank(bank, conv, affine, conv.bias, activation)
        return [*by_kernels, *_of_weight(conv, bank.weight(conv._held.dtype), affine, activation)]
    mix = PointwiseStep(*fold(conv.pointwise, conv.bias, affine), 1, activation)
    nothing = Activation()
    unmixed = [
        *_of_bank(bank, conv, None, None, nothing),
        *_of_weight(conv, bank.weight(mix.weight.dtype), None, nothing),
    ]
    merged = list(_merged(conv, bank, affine, activation))
    return [*merged, *(Filtered(filters, mix) for filters in unmixed)]


def _of_weight(conv: nn.Conv2d, weight: Tensor, affine: Affine | None, activation: Activation) -> Iterator[Step]:
    """Yields the steps that read a weight (O, I/groups, kh, kw)."""
    bias = conv.bias if not isinstance(conv, FixedConv2d) or conv.pointwise is None else None
    weight, bias = fold(weight, bias, affine)
    groups, size = conv.in_channels // weight.shape[1], tuple(weight.shape[2:])
    alike = conv.stride[0] == conv.stride[1]
    unpadded = not any(conv._reversed_padding_repeated_twice)
    if size == (1, 1) and groups == 1 and alike and unpadded:
        yield PointwiseStep(weight, bias, conv.stride[0], activation)
    depthwise = weight.shape[1] == 1 and weight.shape[0] == groups > 1
    if depthwise and alike and conv.stride[0] <= 2 and set(conv.dilation) == {1}:
        yield DepthwiseStep(weight, bias, conv, activation)
    yield DenseStep(weight, bias, conv, activation)


def _of_bank(
    bank: FilterBank, conv: FixedConv2d, affine: Affine | None, bias: Tensor | None, activation: Activation
) -> Iterator[Step]:
    """Yields the steps of the kernels that read a bank, for float32."""
    dtype = conv._held.dtype
    if dtype != torch.float32 or set(conv.dilation) != {1}:
        return
    scale = None if affine is None else _rounded(affine.scale, dtype)
    after = bias if affine is None else affine.of_bias(bias)
    after = None if after is None else _rounded(after, dtype)
    for plan in _KERNELS:
        try:
            step = FixedStep(bank, conv, scale, after, activation, plan)
        except ValueError:  # this kernel is not for such a bank
            continue
        if step.runs == plan:
            yield step


def _merged(conv: FixedConv2d, bank: FilterBank, affine: Affine | None, activation: Activation) -> Iterator[Step]:
    """Yields steps of fixed filters and the 1x1 after them as one: a mixture of filters is a combination of functions.

    That is less work where few channels come in, as in a first layer: I * L products an output, and not O.
    """
    assert conv.pointwise is not None
    mix = conv.pointwise.detach().flatten(1).double()
    if conv.groups > 1:
        return
    if bank.hadamard is None and bank.rank * bank.shape[1] <= bank.shape[0]:
        mixed = mix if affine is None else affine.scale[:, None] * mix
        coeff = _rounded(torch.tensordot(mixed, bank.coefficients().double(), dims=1), torch.float32)
        whole = dataclasses.replace(bank, index=None, coeff=coeff, recipe=None)
        bias = conv.bias if affine is None else affine.of_bias(conv.bias)
        yield from _of_bank(whole, conv, None, bias, activation)
    plain = conv.to_conv2d()
    yield from _of_weight(plain, plain.weight, affine, activation)


def fold(weight: Tensor, bias: Tensor | None, affine: Affine | None) -> tuple[Tensor, Tensor | None]:
    """Multiplies a BatchNorm into the weight (O, ...) and the bias (O,) before it."""
    if affine is None:
        return _rounded(weight.detach(), weight.dtype), None if bias is None else _rounded(bias.detach(), bias.dtype)
    scale = affine.scale.view(-1, *[1] * (weight.ndim - 1))
    folded = _rounded(weight.detach().double() * scale, weight.dtype)
    return folded, _rounded(affine.of_bias(bias), weight.dtype)


def _rounded(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds to `dtype`; subnormal numbers, which cost a hundred cycles each, become zero."""
    rounded = numbers.to(dtype)
    return torch.where(rounded.abs() < torch.finfo(dtype).tiny, 0, rounded).contiguous()
