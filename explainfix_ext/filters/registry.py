"""What an initialisation gets, and the registry of their names.

To add one, write a function `(layer, **options) -> FilterBank` in inits.py that draws from `layer.stream(purpose)`, and
put `@register(name, one line)` above it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from explainfix_ext._support.text import unknown_name

from .bank import ZERO_FILTER, FilterBank
from .random_streams import Stream


@dataclass(frozen=True)
class Layer:
    """What an initialisation knows of the layer: O x I filters (I per group) of kh x kw, and a seed.

    Attributes:
        out_channels, in_channels: O, and I per group.
        kernel_size: (kh, kw).
        seed: of this layer, in [0, 2**63).

    Example:
        >>> layer = Layer(8, 4, (3, 3), seed=0)
        >>> layer.bank(dct_basis((3, 3)), layer.stream("index").integers(0, 9, layer.filters)).shape
        (8, 4, 3, 3)
    """

    out_channels: int
    in_channels: int
    kernel_size: tuple[int, int]
    seed: int

    @property
    def filters(self) -> int:
        """O I, the number of filters."""
        return self.out_channels * self.in_channels

    @property
    def k2(self) -> int:
        """kh kw, the number of pixels of a filter."""
        return math.prod(self.kernel_size)

    def stream(self, purpose: str) -> Stream:
        """Random numbers of this layer, independent for each `purpose`, the same on every machine and version."""
        return Stream(self.seed, purpose)

    def bank(self, basis: Tensor, steering: np.ndarray | Tensor) -> FilterBank:
        """A FilterBank of O I filters over `basis` (L, kh, kw).

        Args:
            basis: (L, kh, kw) floating.
            steering: in any shape that holds O I numbers, integers that name a basis function of each filter (255: the
                zero filter); or O I L floats, the coefficients, which become float32.
        """
        steering = torch.as_tensor(steering)
        shape = (self.out_channels, self.in_channels)
        if steering.is_floating_point():
            return FilterBank(basis, coeff=steering.reshape(*shape, -1).float())
        if len(basis) <= ZERO_FILTER:
            return FilterBank(basis, index=steering.reshape(shape).to(torch.uint8))
        one_hot = torch.nn.functional.one_hot(steering.reshape(shape).long(), len(basis))  # K^2 > 255: no uint8 fits
        return FilterBank(basis, coeff=one_hot.float())

    def pixels(self, filters: np.ndarray | Tensor) -> FilterBank:
        """A FilterBank of given `filters`, O I kh kw floats in any shape, kept as they are: one impulse a pixel."""
        return self.bank(torch.eye(self.k2, dtype=torch.float64).reshape(-1, *self.kernel_size), filters)


Initializer = Callable[..., FilterBank]
_REGISTRY: dict[str, tuple[Initializer, str]] = {}


def register(name: str, line: str) -> Callable[[Initializer], Initializer]:
    """Decorator: make an initialisation known to `make_bank`, `convert` and the command line.

    Args:
        name: under which it is known; one that is taken is replaced.
        line: what it does, in one line.

    The function takes a Layer, and the init's own options by name, and returns a FilterBank. It draws random numbers
    from `layer.stream(purpose)` alone, so that the same seed gives the same filters everywhere.

    Example:
        >>> from explainfix_ext.registry import Layer, register
        >>> @register("low3", "normal weights on the three lowest DCT-II functions")
        ... def low3(layer: Layer, spread: float = 1.0) -> FilterBank:
        ...     basis = dct_basis(layer.kernel_size)[frequency_order(layer.kernel_size)[:3]]
        ...     return layer.bank(basis, spread * layer.stream("weights").normal(layer.filters, 3))
        >>> make_bank("low3", 16, 8, 3, seed=0, spread=0.5).rank
        3
        >>> _ = _REGISTRY.pop("low3")  # so that this example leaves no trace
    """

    def add(function: Initializer) -> Initializer:
        _REGISTRY[name] = (function, line)
        return function

    return add


def initializers() -> dict[str, str]:
    """Names of all registered initialisations, with one line each.

    Example:
        >>> initializers()["kaiming_uniform"]
        'uniform within 1/sqrt(fan in), as nn.Conv2d starts (baseline)'
    """
    return {name: line for name, (_, line) in _REGISTRY.items()}


def find_initializer(name: str) -> Initializer:
    """The function behind a name.

    Raises:
        ValueError: unknown name; the nearest names are given.

    Example:
        >>> find_initializer("dct2")(Layer(8, 4, (3, 3), seed=0)).rank
        9
    """
    if name not in _REGISTRY:
        raise unknown_name("init", name, sorted(_REGISTRY))
    return _REGISTRY[name][0]
