"""Saab filters come from a layer's own input: the principal axes of its patches, once the mean of each is taken off.

Source: Kuo et al., Interpretable Convolutional Neural Networks via Feedforward Design (2019), and, for one set of axes
that single channels share, Chen et al., PixelHop++ (2020).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .bank import FilterBank, kept_rank
from .registry import Layer


def saab_functions(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the functions of patches of d numbers, and how much the patches vary along each.

    Args:
        covariance: (d, d) float64, of the patches.

    Returns:
        Functions (d, d), orthonormal rows: the constant one, then the principal axes of patches without their means,
        strongest first, each with the sign that makes its largest entry positive. And variances (d,).
    """
    size = len(covariance)
    constant = torch.full((1, size), 1 / math.sqrt(size), dtype=covariance.dtype)
    without_mean = torch.eye(size, dtype=covariance.dtype) - constant.T @ constant
    # The constant is an axis, too, of eigenvalue 0. With -1 it comes first, apart from others that have 0.
    relative = covariance / covariance.diagonal().mean().clamp(min=1e-300)
    values, vectors = torch.linalg.eigh(without_mean @ relative @ without_mean - constant.T @ constant)
    axes = vectors.T[1:].flip(0)
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    functions = torch.cat([constant, axes * largest.sign()])
    return functions, ((functions @ covariance) * functions).sum(1).clamp(min=0)


def spatial_bank(layer: Layer, covariance: Tensor, energy: float) -> FilterBank:
    """Makes a bank of normal mixes of the functions of single channels, which vary as the patches do.

    An output's filters have a squared norm of 2 on average (He et al. 2015).

    Args:
        layer: geometry and seed.
        covariance: (kh kw, kh kw) float64.
        energy: share of the variance that the functions must have; others, the weakest, are left out.
    """
    functions, variances = saab_functions(covariance)
    rank = kept_rank(variances[order := variances.argsort(descending=True, stable=True)].sqrt(), energy)
    kept = order[:rank]
    sizes = (2 * variances[kept] / (variances[kept].sum() * layer.in_channels)).sqrt()
    weights = torch.from_numpy(layer.stream("weights").normal(layer.filters, rank))
    return layer.bank(functions[kept].reshape(rank, *layer.kernel_size), weights * sizes)


def joint_bank(layer: Layer, covariance: Tensor) -> FilterBank:
    """Makes a bank of one function over all channels for each output: the mean, then +f1, -f1, +f2, -f2, ...

    ReLU drops half of what a function finds, and the pair keeps both. Outputs beyond all functions are normal mixes of
    them, which vary as the patches do. All are of norm 1.

    Args:
        layer: geometry, of one group, and seed.
        covariance: (I kh kw, I kh kw) float64.
    """
    functions, variances = saab_functions(covariance)
    signed = torch.cat([functions[:1], torch.stack([functions[1:], -functions[1:]], 1).flatten(0, 1)])
    more = layer.out_channels - len(signed)
    if more > 0:
        noise = torch.from_numpy(layer.stream("mixes").normal(more, len(functions)))
        signed = torch.cat([signed, F.normalize(noise * variances.sqrt() @ functions)])
    return layer.pixels(signed[: layer.out_channels])
