"""FilterBank: the filters of one layer, as a basis and what each filter takes of it; Recipe: how to make it again."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .basis import compose_weight
from .fingerprint import fingerprint_of
from .hadamard import HadamardFilters

ZERO_FILTER = 255  # index of the filter that is zero everywhere
RECIPE_VERSION = 2  # of the rules; all from 1 on can still be made


@dataclass(frozen=True)
class Recipe:
    """This is what `make_bank` needs, besides the geometry, to make the same filters again on any machine.

    Attributes:
        init: name of the initialisation.
        seed: of this layer, in [0, 2**63).
        density: share of the filters that are not zero.
        gain: "paper" or "kaiming".
        options: of the initialisation, and shared_basis.
        version: of the rules, 1 to RECIPE_VERSION; a checkpoint with one that this package does not know is refused.

    Examples:
        >>> make_bank("dct2", 8, 4, 3, seed=7, density=0.5).recipe
        Recipe(init='dct2', seed=7, density=0.5, gain='paper', options={}, version=2)
    """

    init: str
    seed: int
    density: float = 1.0
    gain: str = "paper"
    options: dict[str, Any] = field(default_factory=dict)
    version: int = 1


@dataclass(frozen=True, eq=False)
class FilterBank:
    """A bank holds O x I/groups filters, W[o, i] = scale * sum_l S[o, i, l] B[l], and never changes.

    Attributes:
        basis: (L, kh, kw) float64, the functions B.
        coeff: (O, I/groups, L) floating, the coefficients S, never with a gradient; or None.
        index: (O, I/groups) uint8, the one basis function of each filter, 255 = the zero filter; or None.
        scale: one factor for all filters.
        recipe: how to make the bank again, if it can be.
        hadamard: the filters in O(O + I) numbers, of which `coefficients()` makes S on an orthonormal basis; or None.
        cache: facts and plans that were found for this bank, by name: `ops.plans.bank_facts`. Not copied, nor saved.

    Raises:
        ValueError: not exactly one of coeff, index and hadamard is given, or a shape, dtype or index does not fit.

    Examples:
        >>> bank = make_bank("dct2", 8, 4, 3, seed=0)
        >>> bank.weight().shape, bank.rank, bank.nbytes
        (torch.Size([8, 4, 3, 3]), 9, 680)

        The equivalent PyTorch, for a bank of coefficients:

        >>> bank = make_bank("ghaar4_s1", 8, 4, 3, seed=0)
        >>> composed = bank.scale * torch.einsum("oil,lhw->oihw", bank.coeff.double(), bank.basis)
        >>> torch.allclose(bank.weight(torch.float64), composed)
        True
    """

    basis: Tensor
    coeff: Tensor | None = None
    index: Tensor | None = None
    scale: float = 1.0
    recipe: Recipe | None = None
    hadamard: HadamardFilters | None = None
    cache: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        basis, coeff, index = self.basis, self.coeff, self.index
        if basis.ndim != 3 or not basis.is_floating_point() or len(basis) == 0:
            raise ValueError(f"basis must be floating [L, kh, kw] with L >= 1, got {_describe(basis)}")
        if (coeff is None) + (index is None) + (self.hadamard is None) != 2:
            raise ValueError("exactly one of coeff, index and hadamard must be given")
        if self.hadamard is not None and self.hadamard.shape[2:] != basis.shape[1:]:
            raise ValueError(
                f"hadamard must be for kernels {list(basis.shape[1:])}, got {list(self.hadamard.shape[2:])}"
            )
        if coeff is not None and (coeff.ndim != 3 or coeff.shape[2] != len(basis) or not coeff.is_floating_point()):
            raise ValueError(f"coeff must be floating [O, I/groups, L = {len(basis)}], got {_describe(coeff)}")
        if basis.dtype != torch.float64 and basis.device.type != "mps":
            object.__setattr__(self, "basis", basis.double())
        if coeff is not None and coeff.requires_grad:
            object.__setattr__(self, "coeff", coeff.detach())
        if index is not None:
            if index.ndim != 2 or index.dtype != torch.uint8:
                raise ValueError(f"index must be uint8 [O, I/groups], got {_describe(index)}")
            if len(basis) > ZERO_FILTER:
                raise ValueError(f"an index bank holds at most {ZERO_FILTER} basis functions, got {len(basis)}")
            # On a GPU the check would wait for it, and a FakeTensor has no values.
            if (
                type(index) is Tensor
                and index.device.type == "cpu"
                and bool(((index >= len(basis)) & (index != ZERO_FILTER)).any())
            ):
                raise ValueError(f"index must be below L = {len(basis)}, or {ZERO_FILTER} for the zero filter")
        if not math.isfinite(self.scale):
            raise ValueError(f"scale must be finite, got {self.scale}")

    @property
    def steering(self) -> Tensor:
        """Returns coeff or index, whichever the bank has: what the op calls `steering`. Not of a hadamard bank."""
        steering = self.coeff if self.index is None else self.index
        assert steering is not None
        return steering

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Returns all tensors that the bank holds, the basis first."""
        return self.basis, *((self.steering,) if self.hadamard is None else self.hadamard.tensors)

    @property
    def groups(self) -> int | None:
        """Returns the groups of the convolution that a hadamard bank is for; None: other banks are for any."""
        return None if self.hadamard is None else self.hadamard.groups

    @property
    def kernel_size(self) -> tuple[int, int]:
        """Returns (kh, kw)."""
        return self.basis.shape[1], self.basis.shape[2]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Returns (O, I/groups, kh, kw), the shape of the weight."""
        if self.hadamard is not None:
            return self.hadamard.shape
        return (self.steering.shape[0], self.steering.shape[1], *self.kernel_size)

    @property
    def device(self) -> torch.device:
        """Tells where the tensors are."""
        return self.basis.device

    @property
    def rank(self) -> int:
        """Returns L, the number of basis functions."""
        return len(self.basis)

    @property
    def nonzero(self) -> Tensor:
        """Tells which filters are not zero, (O, I/groups) bool."""
        if self.hadamard is not None:
            return self.hadamard.nonzero
        return (self.coeff != 0).any(-1) if self.coeff is not None else self.steering != ZERO_FILTER

    @property
    def density(self) -> float:
        """Returns the share of filters that are not zero; 0 for a bank without filters."""
        return self.nonzero.double().mean().item() if 0 not in self.shape else 0.0

    @property
    def nbytes(self) -> int:
        """Counts the bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors)

    def weight(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
        """Composes the filters, (O, I/groups, kh, kw), in float64, rounded once to `dtype` (torch's default), on
        `device` (the bank's)."""
        bank = self if device is None else self.to(device)
        if bank.hadamard is not None:
            return bank.hadamard.weight(bank.scale, dtype or torch.get_default_dtype())
        return compose_weight(bank.basis, bank.steering, bank.scale, dtype or torch.get_default_dtype())

    def coefficients(self) -> Tensor:
        """Returns floating coefficients (O, I/groups, L), a copy; an index becomes one-hot."""
        if self.hadamard is not None:
            weight = self.hadamard.weight(1.0, self.basis.dtype)
            return (weight.flatten(2) @ self.basis.flatten(1).T).to(torch.float32)
        if self.coeff is not None:
            return self.coeff.clone()
        one_hot = torch.nn.functional.one_hot(self.steering.long().clamp(max=self.rank), self.rank + 1)
        return one_hot[..., :-1].to(torch.float32)

    def with_coefficients(self) -> FilterBank:
        """Returns a bank of the same filters with an index or coefficients: itself, unless it is a hadamard bank."""
        return self if self.hadamard is None else dataclasses.replace(self, coeff=self.coefficients(), hadamard=None)

    def without_steering(self) -> FilterBank:
        """Returns the basis alone, a bank of no filters: what a layer holds beside coefficients that it learns."""
        none = torch.empty(0, self.shape[1], self.rank, device=self.device)
        return dataclasses.replace(self, coeff=none, index=None, hadamard=None)

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, cache={})

    def __deepcopy__(self, memo: dict) -> FilterBank:
        return self  # immutable: copies of a model, such as EMA's, share it

    def to(self, device: torch.device | str) -> FilterBank:
        """Returns the bank on another device; dtypes stay (but MPS, which has no float64, gets a float32 basis)."""
        device = torch.device(device)
        if device == self.device:
            return self
        basis = self.basis.float() if device.type == "mps" else self.basis

        def move(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.to(device)

        with torch.inference_mode(False):  # a bank outlives the mode that it is moved in
            hadamard = None if self.hadamard is None else self.hadamard.to(device)
            coeff, index = move(self.coeff), move(self.index)
            return dataclasses.replace(self, basis=basis.to(device), coeff=coeff, index=index, hadamard=hadamard)

    def fingerprint(self) -> dict[str, Any]:
        """Returns what `same_filters` compares with that of another bank."""
        if "fingerprint" not in self.cache:
            self.cache["fingerprint"] = fingerprint_of(self.weight(torch.float64, "cpu"), self.index)
        return self.cache["fingerprint"]

    @classmethod
    def from_weight(
        cls, w: Tensor, energy: float = 1.0, rank: int | None = None, energy_transfer: bool = False
    ) -> FilterBank:
        """Makes the bank nearest to given filters: the best basis that all of them share (PCA, not centred).

        Args:
            w: (O, I/groups, kh, kw) floating. The coefficients keep its dtype.
            energy: share of the squared norm to keep, in (0, 1]; 1 keeps the filters exactly, bit for bit.
            rank: number of basis functions to keep, 1 to kh*kw; instead of energy.
            energy_transfer: scale the filters that remain so that the squared norm stays (LRPET).

        Raises:
            ValueError: w is not such a tensor or not finite, or energy or rank is out of range.

        Examples:
            >>> w = torch.randn(8, 4, 3, 3)
            >>> torch.equal(FilterBank.from_weight(w).weight(), w)
            True
            >>> FilterBank.from_weight(w, rank=4).rank
            4

        Source: Eckart and Young 1936; energy transfer: LRPET (Guo et al. 2024).
        """
        if w.ndim != 4 or not w.is_floating_point():
            raise ValueError(f"w must be floating [O, I/groups, kh, kw], got {_describe(w)}")
        k2 = w.shape[2] * w.shape[3]
        if not isinstance(energy, (Real, Tensor)) or not 0 < energy <= 1:
            raise ValueError(f"energy must be in (0, 1], got {energy}")
        if rank is not None and (type(rank) is not int or not 1 <= rank <= k2 or energy != 1):
            raise ValueError(f"rank must be 1 to kh*kw = {k2}, and energy left out, got {rank} and {energy}")
        w = w.detach()
        if w.is_meta and (rank is not None or energy < 1):
            raise ValueError("w must hold numbers to be compressed, and is on the meta device")
        if not w.is_meta and not bool(torch.isfinite(w).all()):
            raise ValueError("w must be finite, got NaN or infinity")
        flat = w.flatten(2)
        if rank is None and energy == 1:  # one impulse a pixel: exact, where a rotation to principal axes would round
            pixels = torch.eye(k2, dtype=torch.float64, device=w.device).reshape(k2, *w.shape[2:])
            return cls(pixels, coeff=flat.clone())
        axes, sigma = principal_axes(flat.flatten(0, 1).double())
        rank = kept_rank(sigma, energy) if rank is None else rank
        share = (sigma[:rank] ** 2).sum() / (sigma**2).sum().clamp(min=1e-300)
        scale = float(share.clamp(min=1e-300) ** -0.5) if energy_transfer and sigma[0] > 0 else 1.0
        coeff = (flat.double() @ axes[:rank].T).to(w.dtype)
        return cls(axes[:rank].reshape(rank, *w.shape[2:]), coeff=coeff, scale=scale)


def checked_bank(bank: Any) -> FilterBank:
    """Returns `bank`, if it is one.

    Raises:
        TypeError: it is something else, such as a weight.
    """
    if not isinstance(bank, FilterBank):
        raise TypeError(f"bank must be a FilterBank (FilterBank.from_weight makes one), got {type(bank).__name__}")
    return bank


def principal_axes(filters: Tensor) -> tuple[Tensor, Tensor]:
    """Finds orthonormal rows (K^2, K^2) and singular values (K^2,) of (n, K^2), strongest first, by the Gram matrix."""
    values, vectors = torch.linalg.eigh(filters.T @ filters)
    return vectors.flip(1).T.contiguous(), values.flip(0).clamp(min=0).sqrt()


def kept_rank(sigma: Tensor, energy: float) -> int:
    """Counts how many singular values (K^2,), strongest first, keep that share of the squared norm; 1 at least."""
    kept = (sigma**2).cumsum(0) / (sigma**2).sum().clamp(min=1e-300)
    return min(len(sigma), int((kept < energy - 1e-12).sum()) + 1)


def _describe(t: Tensor) -> str:
    return f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}"
