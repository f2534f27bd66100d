"""This module computes basis functions and filters by their formulas: pure functions, without random numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _dct_matrix(n: int, kind: str) -> Tensor:
    """Returns the orthonormal DCT matrix (n, n) of one axis: row u is the u-th basis function."""
    k = torch.arange(n, dtype=torch.float64, device="cpu")
    if kind == "dct2":
        rows = torch.cos(math.pi / n * torch.outer(k, k + 0.5)) * math.sqrt(2 / n)
        rows[0] *= math.sqrt(0.5)
        return rows
    if kind == "dct4":
        return torch.cos(math.pi / n * torch.outer(k + 0.5, k + 0.5)) * math.sqrt(2 / n)
    raise ValueError(f'kind must be "dct2" or "dct4", got {kind!r}')


def dct_basis(shape: Sequence[int], kind: str = "dct2", dtype: torch.dtype = torch.float64) -> Tensor:
    """Returns the orthonormal DCT basis of `shape`, in raster order.

    Args:
        shape: size of each axis, any number of axes.
        kind: "dct2" (the paper's basis) or "dct4".
        dtype: of the result; computed in float64.

    Returns:
        `(prod(shape), *shape)`. Function `l = u*kw + v` of a (kh, kw) shape has frequency (u, v).

    Raises:
        ValueError: an axis is not a positive integer, `kind` is unknown, or `dtype` is not floating.

    Examples:
        >>> B = dct_basis((3, 3)).flatten(1)
        >>> torch.allclose(B @ B.T, torch.eye(9, dtype=torch.float64))
        True

        The equivalent PyTorch:

        >>> k = torch.arange(3, dtype=torch.float64)
        >>> rows = F.normalize(torch.cos(math.pi / 3 * torch.outer(k, k + 0.5)), dim=1)
        >>> torch.allclose(B, torch.kron(rows, rows))
        True

    Source: ExplainFix 2023, section 3 (DCT-II); equal to `scipy.fft.idctn(unit vector, norm="ortho")`.
    """
    shape = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    if not shape or any(not isinstance(n, int) or n < 1 for n in shape):
        raise ValueError(f"shape must be positive integers, got {shape}")
    if not dtype.is_floating_point:  # an integer would cut the functions to 0
        raise ValueError(f"dtype must be floating, got {dtype}")
    basis = torch.ones(1, dtype=torch.float64, device="cpu")
    for axis, n in enumerate(shape):
        rows = _dct_matrix(n, kind)
        basis = torch.einsum("a...,bn->ab...n", basis, rows).reshape(-1, *shape[: axis + 1])
    return basis.to(dtype)


def _check_points(size: Sequence[Any]) -> None:
    if len(size) != 2 or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in size):
        raise ValueError(f"size must be one or two positive integers, got {size}")


def _check_real(**values: Any) -> None:
    """Checks numbers and tensors; of a tensor the dtype only, because torch.func may follow its values."""
    for name, value in values.items():
        if value.is_complex() if isinstance(value, Tensor) else not math.isfinite(value):
            raise ValueError(
                f"{name} must be real and finite, got {value.dtype if isinstance(value, Tensor) else value}"
            )


def _cosine_axis(size: int, f: Tensor) -> Tensor:
    """Returns sin(x f + pi/2) on `size` points x of [0, pi]; f may be a batch: (...,) -> (..., size)."""
    x = torch.linspace(0, math.pi, size, dtype=torch.float64, device=f.device)
    return torch.sin(x * f[..., None] + math.pi / 2)


def ghaar2d(
    size: int | tuple[int, int],
    h: float | Tensor,
    v: float | Tensor,
    d: float | Tensor,
    a: float | Tensor = 0.0,
    f: float | Tensor = 1.0,
    norm: bool = True,
) -> Tensor:
    """Computes generalised Haar filters: a + h outer(c, 1) + v outer(1, c) + d outer(c, c).

    Here c = cos(x f) on evenly spaced points x of [0, pi].

    Args:
        size: K for a square filter, or (kh, kw).
        h, v, d, a: weights of the horizontal, vertical, diagonal and average parts: numbers, or tensors of one
            common shape (...) for a batch of filters. The result is differentiable in them.
        f: frequency, in half periods over the filter.
        norm: divide each filter by its l2 norm (a zero filter stays).

    Returns:
        (..., kh, kw) float64.

    Raises:
        ValueError: size is not one or two positive integers, or a number is not finite.

    Examples:
        >>> ghaar2d(3, 1.0, 0.0, 0.0, norm=False)[:, 0].round().tolist()
        [1.0, 0.0, -1.0]

        The equivalent PyTorch:

        >>> one = torch.ones(3, dtype=torch.float64)
        >>> c = torch.cos(torch.linspace(0, math.pi, 3, dtype=torch.float64))
        >>> filters = 0.5 * torch.outer(c, one) + 0.3 * torch.outer(one, c) + 0.2 * torch.outer(c, c)
        >>> torch.allclose(ghaar2d(3, 0.5, 0.3, 0.2), filters / filters.norm())
        True

    Source: ExplainFix 2023, section 3.2 (GHaar).
    """
    size = size if isinstance(size, Sequence) else (size, size)
    _check_points(size)
    _check_real(h=h, v=v, d=d, a=a, f=f)
    kh, kw = size
    device = next((t.device for t in (h, v, d, a, f) if isinstance(t, Tensor)), None)
    h, v, d, a, f = (torch.as_tensor(t, dtype=torch.float64, device=device)[..., None, None] for t in (h, v, d, a, f))
    rows = _cosine_axis(kh, f[..., 0, 0])[..., :, None]
    cols = _cosine_axis(kw, f[..., 0, 0])[..., None, :]
    filters = a + h * rows + v * cols + d * rows * cols
    return F.normalize(filters.flatten(-2), dim=-1, eps=1e-300).unflatten(-1, (kh, kw)) if norm else filters


def polynomial_sine(size: int, f: Tensor, t: Tensor, p: Tensor, w: Tensor) -> Tensor:
    """Sums products of sines, raised to whole powers: sum_l w_l (prod_n sin(x f[l,n] + t[l,n]))^round(p_l).

    Args:
        size: K; the filter has K points of [0, pi] on each of the N axes.
        f, t: (L, N) frequencies and phases (radians).
        p, w: (L,) powers and weights. A power is rounded (half to even), since a negative sine has no other.

    Returns:
        (K,) * N float64.

    Raises:
        ValueError: f and t, or p and w, do not have the shapes above, or a power is negative or not finite.

    Examples:
        >>> polynomial_sine(3, torch.ones(1, 2), torch.zeros(1, 2), torch.ones(1), torch.ones(1)).shape
        torch.Size([3, 3])

        The equivalent PyTorch:

        >>> x = torch.linspace(0, math.pi, 3, dtype=torch.float64)
        >>> f, t = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.0]])
        >>> expected = 3 * torch.outer(torch.sin(x + 0.5), torch.sin(2 * x)) ** 2
        >>> torch.allclose(polynomial_sine(3, f, t, torch.tensor([2.0]), torch.tensor([3.0])), expected)
        True

    Source: ExplainFix 2023, section 3.2 (Psine).
    """
    if f.ndim != 2 or f.shape != t.shape:
        raise ValueError(f"f and t must both be [L, N], got {list(f.shape)} and {list(t.shape)}")
    if p.shape != f.shape[:1] or w.shape != f.shape[:1]:
        raise ValueError(f"p and w must be [L] = [{len(f)}], got {list(p.shape)} and {list(w.shape)}")
    _check_points((size, size))
    _check_real(f=f, t=t, p=p, w=w)
    f, t, p, w = (s.to(torch.float64) for s in (f, t, p, w))
    p = p.round()
    if bool((wrong := ~(p >= 0) | p.isinf()).any()):
        raise ValueError(f"p must be finite powers, 0 or more, got {p[wrong][0]:g}")
    x = torch.linspace(0, math.pi, size, dtype=torch.float64, device=f.device)
    waves = torch.sin(x * f[..., None] + t[..., None])
    terms = waves[:, 0]
    for axis in range(1, f.shape[1]):
        terms = terms[..., None] * waves[:, axis].reshape(len(f), *(1,) * axis, size)
    per_term = (-1,) + (1,) * f.shape[1]
    return (w.reshape(per_term) * terms ** p.reshape(per_term)).sum(0)


def steer(basis: Tensor, weights: Tensor, power: Tensor | float | None = None) -> Tensor:
    """Sums basis filters with weights; `power`, if given, acts on the weights.

    Args:
        basis: (L, *shape).
        weights: (..., L): one filter, or a batch of them.
        power: a number, or a tensor that broadcasts against `weights`. Negative weights have whole powers only.

    Returns:
        (..., *shape) in the dtype that basis and weights promote to.

    Raises:
        ValueError: the last axis of `weights` is not L, or a weight has no such power.

    Examples:
        >>> B = dct_basis((3, 3))
        >>> torch.equal(steer(B, torch.eye(9, dtype=B.dtype)[4]), B[4])
        True

        The equivalent PyTorch:

        >>> weights = torch.randn(8, 9, dtype=B.dtype)
        >>> torch.allclose(steer(B, weights, power=2), torch.einsum("nl,lhw->nhw", weights**2, B))
        True

    Source: ExplainFix 2023, section 3.1 (steering).
    """
    if weights.shape[-1:] != basis.shape[:1]:
        raise ValueError(f"weights must be [..., L] = [..., {len(basis)}], got {list(weights.shape)}")
    if power is not None:
        weights = weights**power
        if weights.is_complex() or not bool(torch.isfinite(weights).all()):
            raise ValueError("power must leave the weights finite: a whole one where they are negative, >= 0 where 0")
    dtype = torch.promote_types(basis.dtype, weights.dtype)
    return torch.tensordot(weights.to(dtype), basis.to(dtype), dims=1)


def frequency_order(shape: tuple[int, int]) -> Tensor:
    """Sorts basis functions from the lowest to the highest frequency: by (u + v, -|u - v|, raster index).

    Args:
        shape: (kh, kw) of the kernel. Function (u, v) has raster index u*kw + v.

    Returns:
        (kh*kw,) int64 on the CPU, a permutation of the raster indices, the constant function's first.

    Raises:
        ValueError: shape is not a pair.

    Examples:
        >>> frequency_order((3, 3)).tolist()
        [0, 1, 3, 2, 6, 4, 5, 7, 8]

        The equivalent PyTorch:

        >>> u, v = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T
        >>> key = 100 * (u + v) - 10 * (u - v).abs()
        >>> torch.equal(frequency_order((3, 3)), torch.argsort(key, stable=True))
        True

    Source: ExplainFix 2023 (ExplainSteer); defined here for every 2-D shape.
    """
    if not isinstance(shape, Sequence) or len(shape) != 2:
        raise ValueError(f"shape must be (kh, kw), got {shape!r}")
    kh, kw = shape
    order = sorted(range(kh * kw), key=lambda i: (i // kw + i % kw, -abs(i // kw - i % kw), i))
    return torch.tensor(order, device="cpu")


def span(filters: Tensor, tolerance: float = 1e-10) -> Tensor:
    """Returns an orthonormal basis (L, kh, kw) of the space that `filters` (n, kh, kw) span, strongest first.

    Directions with a singular value of at most `tolerance` times the largest are left out.
    """
    _, sigma, rows = torch.linalg.svd(filters.flatten(1).to(torch.float64), full_matrices=False)
    return rows[sigma > tolerance * sigma[0]].reshape(-1, *filters.shape[1:])


def compose_weight(basis: Tensor, steering: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Composes filters from a bank: W[o, i] = scale * sum_l S[o, i, l] B[l], summed in float64 and rounded once.

    The layer, the operators' reference and the pictures all call this one.

    Args:
        basis: (L, kh, kw), the functions B.
        steering: S, a bank's index or coefficients: uint8 (O, I/groups), the one basis function of each filter, where
            L or more (by convention 255) is the zero filter; or floating (O, I/groups, L), in which the result is
            differentiable.
        scale: one factor for all filters.
        dtype: of the result.

    Returns:
        (O, I/groups, kh, kw).
    """
    wide = torch.float32 if basis.device.type == "mps" else torch.float64  # MPS has no float64
    basis = scale * basis.to(wide)
    if steering.dtype == torch.uint8:
        table = torch.cat([basis, torch.zeros_like(basis[:1])]).to(dtype)
        return table[steering.long().clamp(max=len(basis))]
    return torch.tensordot(steering.to(wide), basis, dims=1).to(dtype)
