"""make_bank makes the filters of one layer by the name of an initialisation; layers and `convert` call it."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

# These imports register the package's own initialisations. `initializers`, below, is the function that lists them.
from . import initializers as _built_in  # noqa: F401
from . import signal_filters as _for_signals  # noqa: F401
from .bank import RECIPE_VERSION, ZERO_FILTER, FilterBank, Recipe
from .choose_init import AUTO, choose_init
from .hadamard import HadamardFilters
from .random_streams import SEED_BITS
from .registry import Initializer, Layer, find_initializer, initializers

__all__ = ["find_initializer", "initializers", "make_bank"]

# Options that hold tensors: filters made from one cannot be made again from a recipe, which has names and numbers only.
_GIVEN = {
    "weight": "starts from given filters: weight must be a tensor",
    "steering": "draws filters like fitted ones: steering must be given (fit_steering)",
}


def make_bank(
    init: str,
    out_channels: int,
    in_channels: int,
    kernel_size: int | Sequence[int],
    *,
    groups: int = 1,
    seed: int,
    density: float = 1.0,
    gain: str = "paper",
    shared_basis: int | None = None,
    version: int = RECIPE_VERSION,
    **options: Any,
) -> FilterBank:
    """Makes the filters of one layer by an initialisation's name.

    Args:
        init: one of `initializers()`, or "auto", the best by evidence: "hadamard", but "ghaar4_s1" (in 7x7 stems
            "ghaar9_s1") for fewer than 8 inputs a group (stems, depthwise layers), and "sdct4" with density;
            `bank.recipe` names it.
        out_channels, in_channels, kernel_size, groups: as for `nn.Conv2d`.
        seed: integer in [0, 2**63); the same seed and `version` give the same filters on every machine.
        density: share of the filters that are not zero, drawn at random, in (0, 1]. With the same seed, a lower density
            keeps a subset of what a higher one keeps. For "hadamard" a power of two.
        gain: "paper" leaves the filters as the rule makes them; "kaiming" scales the layer so that its output variance
            keeps He's rule, for networks without normalisation.
        shared_basis: R: draw R filters for the layer by the rule, and make every filter a N(0, 1/R) mix of those, so
            that a low-rank kernel does R/K^2 of the arithmetic.
        version: of the rules. 1 makes the filters that this package made before version 2, in which "dct2" draws
            from all functions for layers of fewer than K^2 inputs, too.
        **options: of the initialisation, such as `weight=` and `energy=` of "unchanged", or `steering=` of
            "guided_steer": one of `fit_steering(model).layers`.

    Raises:
        ValueError: unknown init or option, or an argument out of range; the message says what was expected.

    Examples:
        >>> make_bank("ghaar4_s1", 16, 8, 3, seed=0).rank
        4
        >>> make_bank("dct2", 64, 64, 3, seed=0, density=0.1).density  # 410 of 4096
        0.10009765625

        The equivalent PyTorch, once the functions are drawn:

        >>> bank = make_bank("dct2", 8, 4, 3, seed=0)
        >>> torch.allclose(bank.weight(), dct_basis((3, 3)).float()[bank.index.long()])
        True

    Source: ExplainFix 2023, section 3.2, for most; "hadamard": Jeon and Kim 2019; gain "kaiming": He et al. 2015.
    """
    kernel = _check_geometry(out_channels, in_channels, kernel_size, groups, seed)
    if not isinstance(density, (int, float)) or not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], got {density}")
    if gain not in ("paper", "kaiming"):
        raise ValueError(f'gain must be "paper" or "kaiming", got {gain!r}')
    if type(version) is not int or not 1 <= version <= RECIPE_VERSION:
        raise ValueError(f"version must be 1 to {RECIPE_VERSION}, got {version!r}")
    layer = Layer(out_channels, in_channels // groups, kernel, int(seed), groups, version)
    if init == AUTO:
        _check_none(options)
        init = choose_init(layer, density)
    function = find_initializer(init)
    _check_options(init, function, options)
    _check_shared_basis(init, shared_basis, math.prod(kernel), options)
    # Filters are made on the CPU, whatever torch.device() says, and outlive torch.inference_mode().
    with torch.device("cpu"), torch.inference_mode(False):
        bank = function(layer, **options) if shared_basis is None else _mix(function, layer, shared_basis, options)
        if bank.device.type == "meta" and (density < 1 or gain != "paper"):
            raise ValueError("weight must hold numbers for density and gain, and is on the meta device")
        _check_finite(init, bank)
        bank = _thin_out(bank, layer, density) if density < 1 else bank
        scale = bank.scale * (_kaiming_scale(bank) if gain == "kaiming" else 1.0)
    if shared_basis is not None:
        options = options | {"shared_basis": shared_basis}
    repeatable = not _GIVEN.keys() & options.keys()
    recipe = Recipe(init, int(seed), density, gain, options, version) if repeatable else None
    return dataclasses.replace(bank, scale=scale, recipe=recipe)


def _check_geometry(o: int, i: int, kernel_size: int | Sequence[int], groups: int, seed: int) -> tuple[int, int]:
    """Checks the arguments of `make_bank` that say the layer's geometry, and returns (kh, kw)."""
    kernel = tuple(kernel_size) if isinstance(kernel_size, Sequence) else (kernel_size, kernel_size)
    if len(kernel) != 2 or any(not isinstance(k, (int, np.integer)) or k < 1 for k in kernel):
        raise ValueError(f"kernel_size must be one or two positive integers, got {kernel_size}")
    if groups < 1 or o < 1 or i < 1 or o % groups or i % groups:
        raise ValueError(f"groups must divide out_channels and in_channels, got {groups} for {o} and {i}")
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 1 << SEED_BITS:
        raise ValueError(f"seed must be an integer in [0, 2**{SEED_BITS}), got {seed!r}")
    return int(kernel[0]), int(kernel[1])


def option_names() -> set[str]:
    """Returns the names of all options that `make_bank` takes, with those of every initialisation."""
    of_inits = {name for init in initializers() for name in _options_of(find_initializer(init))}
    return {"density", "gain", "shared_basis", "version", *of_inits}


def _options_of(function: Initializer) -> list[str]:
    return list(inspect.signature(function).parameters)[1:]


def _check_none(options: dict[str, Any]) -> None:
    """Raises ValueError for an option of one initialisation, as "auto" is another one for each layer."""
    for name in options:
        takers = [init for init in initializers() if name in _options_of(find_initializer(init))]
        which = f"name one that does: {', '.join(takers)}" if takers else "no init does"
        raise ValueError(f'init "auto" takes no option {name!r}, only density, gain, shared_basis and version: {which}')


def _check_options(init: str, function: Initializer, options: dict[str, Any]) -> None:
    accepted = _options_of(function)
    for name in options:
        if name not in accepted:
            takes = f"density, gain, shared_basis, version{''.join(', ' + a for a in accepted)}"
            raise ValueError(f"init {init!r} takes no option {name!r}; it takes {takes}")
    for name, what in _GIVEN.items():
        if name in accepted and options.get(name) is None:
            raise ValueError(f"init {init!r} {what}, got None")


def _check_shared_basis(init: str, rank: int | None, k2: int, options: dict[str, Any]) -> None:
    if rank is None:
        return
    if "weight" in options:
        raise ValueError(f"shared_basis is for inits that draw filters, got {rank} with {init!r}: use rank= or energy=")
    if type(rank) is not int or not 1 <= rank <= k2:  # True would be an int
        raise ValueError(f"shared_basis must be 1 to kh*kw = {k2}, got {rank}")


def _check_finite(init: str, bank: FilterBank) -> None:
    """Raises ValueError for NaN or infinity, of a given weight or of an initialisation of the user's."""
    numbers = [t for t in bank.tensors if type(t) is torch.Tensor and not t.is_meta]
    if not all(bool(torch.isfinite(t).all()) for t in numbers):
        raise ValueError(f"init {init!r} must make finite filters, got NaN or infinity")


def _mix(function: Initializer, layer: Layer, rank: int, options: dict[str, Any]) -> FilterBank:
    """Makes `rank` filters by the initialisation, and a bank that mixes these with normal coefficients."""
    few = function(dataclasses.replace(layer, out_channels=rank, in_channels=1, groups=1), **options)
    basis = few.weight(torch.float64).squeeze(1)
    return layer.bank(basis, layer.stream("shared_basis").normal(layer.filters, rank) / math.sqrt(rank))


def _thin_out(bank: FilterBank, layer: Layer, density: float) -> FilterBank:
    """Sets all but round(density * O * I) filters (at least one) to zero: those first in a random order stay."""
    if bank.hadamard is not None:
        return _without_stages(bank, bank.hadamard, layer, density)
    kept = max(1, round(density * layer.filters))
    order = torch.from_numpy(layer.stream("density").permutation(1, layer.filters)[0])
    zero = torch.ones(layer.filters, dtype=torch.bool)
    zero[order[:kept]] = False
    zero = zero.reshape(layer.out_channels, layer.in_channels)
    if bank.index is not None:
        return dataclasses.replace(bank, index=bank.index.masked_fill(zero, ZERO_FILTER))
    assert bank.coeff is not None  # a bank has an index or coefficients
    return dataclasses.replace(bank, coeff=bank.coeff.masked_fill(zero[..., None], 0))


def _without_stages(bank: FilterBank, filters: HadamardFilters, layer: Layer, density: float) -> FilterBank:
    """Leaves stages of the transform out, those first in a random order; a filter for each output stays. So its scale
    keeps the layer's variance."""
    if density != 2.0 ** round(math.log2(density)):
        raise ValueError(f"density must be a power of two for hadamard filters, such as 0.5 or 0.125, got {density}")
    bits = filters.order.bit_length() - 1
    left_out = layer.stream("density").permutation(1, bits)[0][: round(-math.log2(density))] if bits else []
    stages = filters.stages & ~sum(1 << int(bit) for bit in left_out)
    scale = bank.scale * math.sqrt(2.0 ** len(left_out))
    return dataclasses.replace(bank, hadamard=dataclasses.replace(filters, stages=stages), scale=scale)


def _kaiming_scale(bank: FilterBank) -> float:
    """Returns the factor that makes the squared norm of an output's filters 2 on average.

    A convolution and a ReLU then keep the variance (He et al. 2015).
    """
    weight = bank.weight(torch.float64)
    mean_square = (weight**2).sum().item() / len(weight)
    return math.sqrt(2 / mean_square) if mean_square > 0 else 1.0


def remake_bank(recipe: Recipe, shape: list[int] | tuple[int, ...], groups: int | None = None) -> FilterBank:
    """Makes a recipe's bank, of `shape` (O, I/groups, kh, kw), for `groups`. Those of most inits are for any (None)."""
    out_channels, per_group, kh, kw = shape
    groups = groups or 1
    return make_bank(
        recipe.init,
        out_channels,
        per_group * groups,
        (kh, kw),
        groups=groups,
        seed=recipe.seed,
        density=recipe.density,
        gain=recipe.gain,
        version=recipe.version,
        **recipe.options,
    )
