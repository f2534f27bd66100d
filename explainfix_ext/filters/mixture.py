"""A FilterMixture is what `fit_steering` keeps of one layer's filters; GuidedSteer and SVDsteering draw from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .bank import kept_rank, principal_axes
from .basis import dct_basis
from .random_streams import Stream

COEFFICIENTS = ("kde", "normal")
_LARGEST_NORMAL = 9  # Stream.normal draws none beyond sqrt(-2 log 2^-53)


@dataclass(frozen=True, eq=False)
class FilterMixture:
    """A FilterMixture is a distribution over filters: a basis, and equally likely Gaussians over its coefficients.

    A filter has coefficients c = centres[k] + z @ spread, with k uniform in [0, n) and z ~ N(0, 1) of length L.

    Attributes:
        basis: (L, kh, kw) float64, the functions.
        centres: (n, L) float32: the coefficients of each given filter (KDE), or n = 1, their mean (normal).
        spread: (L, L) float64, a square root of each Gaussian's covariance.
        filters: (O, I/groups) of the layer that it was fitted to.
        energy: share of those filters' squared norm that the basis keeps.

    Raises:
        ValueError: a shape or dtype does not fit, or filters drawn from it might not be finite.
    """

    basis: Tensor
    centres: Tensor
    spread: Tensor
    filters: tuple[int, int]
    energy: float

    def __post_init__(self) -> None:
        rank = len(self.basis)
        shapes = {"basis": (rank, *self.basis.shape[-2:]), "centres": (len(self.centres), rank), "spread": (rank, rank)}
        for name, shape in shapes.items():
            tensor, dtype = getattr(self, name), torch.float32 if name == "centres" else torch.float64
            if tensor.shape != shape or tensor.dtype != dtype or not len(tensor):
                got = f"{tensor.dtype} {list(tensor.shape)}"
                raise ValueError(f"{name} must be {dtype} {list(shape)}, got {got}")
        coefficient = self.centres.double().abs().max() + _LARGEST_NORMAL * self.spread.abs().sum(0).max()
        if not coefficient * self.basis.abs().sum(0).max() <= torch.finfo(torch.float32).max:  # NaN is not
            raise ValueError("basis, centres and spread must make finite filters, got NaN, infinity or near it")

    @property
    def kernel_size(self) -> tuple[int, int]:
        """(kh, kw)."""
        return self.basis.shape[1], self.basis.shape[2]

    def draw(self, count: int, stream: Callable[[str], Stream]) -> Tensor:
        """Draws the coefficients of `count` new filters, (count, L) float64; `stream(purpose)` makes random numbers."""
        which = torch.from_numpy(stream("centres").integers(0, len(self.centres), count))
        noise = torch.from_numpy(stream("noise").normal(count, len(self.basis)))
        return self.centres[which].double() + noise @ self.spread


Components = slice | Sequence[int] | None


def fit_basis(filters: Tensor, energy: float, centred: bool, components: Components, dct: bool) -> tuple[Tensor, float]:
    """Finds orthonormal functions for filters F (n, kh, kw) float64.

    They are the principal axes of F^T F, or DCT-II functions, that keep `energy` of the squared norm; or `components`,
    by their numbers from the strongest. With `centred`, the mean filter is subtracted from F first, and one more
    function is added for the part of the mean that these do not span.

    Returns:
        The functions (L, kh*kw), and the coefficient that every filter has on the last one; 0 if none was added.

    Raises:
        ValueError: `components` are none, or not of these functions, or one is there twice.
    """
    shape, filters = filters.shape[1:], filters.flatten(1)
    mean = filters.mean(0) * centred
    axes, sigma = _dct_axes(filters - mean, shape) if dct else principal_axes(filters - mean)
    axes = axes[: kept_rank(sigma, energy)] if components is None else axes[_numbers(components, len(axes))]
    rest = mean - mean @ axes.T @ axes
    size = float(rest.norm())
    if size <= 1e-9 * float(mean.norm()):
        return axes, 0.0
    return torch.cat([axes, rest[None] / size]), size


def _dct_axes(filters: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Returns the DCT-II functions (K^2, K^2) and the norms (K^2,) of F's coefficients, strongest first."""
    functions = dct_basis(tuple(shape)).flatten(1)
    norms, order = (filters @ functions.T).norm(dim=0).sort(descending=True, stable=True)
    return functions[order], norms


def _numbers(components: slice | Sequence[int], functions: int) -> list[int]:
    """Returns which of the functions are meant, from 0."""
    every = range(functions)
    try:
        chosen = [*every[components]] if isinstance(components, slice) else [every[n] for n in components]
    except (IndexError, TypeError):
        chosen = []
    if not chosen or len({*chosen}) < len(chosen):
        raise ValueError(f"components must be a slice or different numbers of {functions} functions, got {components}")
    return chosen


def fit_mixture(weight: Tensor, basis: Tensor, constant: float, coefficients: str) -> FilterMixture:
    """Fits a mixture to a layer's filters.

    Args:
        weight: (O, I/groups, kh, kw) float64.
        basis: (L, kh, kw) float64, orthonormal; with `constant` as `fit_basis` gives them.
        coefficients: "kde": a Gaussian kernel at the coefficients of each of the n filters, with their covariance times
            the square of Scott's factor n^(-1 / (d + 4)), where d coefficients vary; "normal": each coefficient on its
            own, by mean and standard deviation.

    Source: ExplainFix 2023 (GuidedSteer, SVDsteering); Scott 1992.
    """
    given = weight.flatten(2).flatten(0, 1)
    found = given @ basis.flatten(1).T
    if constant:
        found[:, -1] = constant
    missed = (given - found @ basis.flatten(1)).square().sum() / given.square().sum().clamp(min=1e-300)
    mean = found.mean(0, keepdim=True)
    covariance = (found - mean).T @ (found - mean) / max(len(found) - 1, 1)
    if coefficients == "kde":
        varying = len(basis) - (constant != 0)
        spread = len(found) ** (-1 / (varying + 4)) * _root(covariance)
    else:
        found, spread = mean, covariance.diagonal().sqrt().diag()
    return FilterMixture(basis, found.float(), spread, (weight.shape[0], weight.shape[1]), 1 - float(missed))


def _root(covariance: Tensor) -> Tensor:
    """Returns the symmetric square root. Eigenvalues that rounding has made negative count as 0."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
