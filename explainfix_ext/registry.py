"""What an initialisation gets, and the registry of their names.

To add one, write a function `(layer, **options) -> FilterBank` in inits.py that draws from `layer.stream(purpose)`, and
put `@register(name, one line)` above it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .bank import ZERO_FILTER, FilterBank
from .streams import Stream


@dataclass(frozen=True)
class Layer:
    """What an initialisation knows of the layer: O x I filters (I per group) of kh x kw, and a seed."""

    out_channels: int
    in_channels: int
    kernel_size: tuple[int, int]
    seed: int

    @property
    def filters(self) -> int:
        return self.out_channels * self.in_channels

    @property
    def k2(self) -> int:
        return math.prod(self.kernel_size)

    def stream(self, purpose: str) -> Stream:
        return Stream(self.seed, purpose)

    def bank(self, basis: Tensor, steering: np.ndarray | Tensor) -> FilterBank:
        """Steering of O*I filters, in any shape: integers name a basis function, floats are coefficients."""
        steering = torch.as_tensor(steering)
        shape = (self.out_channels, self.in_channels)
        if steering.is_floating_point():
            return FilterBank(basis, coeff=steering.reshape(*shape, -1).float())
        if len(basis) <= ZERO_FILTER:
            return FilterBank(basis, index=steering.reshape(shape).to(torch.uint8))
        one_hot = torch.nn.functional.one_hot(steering.reshape(shape).long(), len(basis))  # K^2 > 255: no uint8 fits
        return FilterBank(basis, coeff=one_hot.float())

    def pixels(self, filters: np.ndarray | Tensor) -> FilterBank:
        """Given filters, kept as they are: one impulse a pixel."""
        return self.bank(torch.eye(self.k2, dtype=torch.float64).reshape(-1, *self.kernel_size), filters)


Initializer = Callable[..., FilterBank]
_REGISTRY: dict[str, tuple[Initializer, str]] = {}


def register(name: str, line: str) -> Callable[[Initializer], Initializer]:
    """Decorator: make an initialisation known under `name`; `line` says in one line what it does."""

    def add(function: Initializer) -> Initializer:
        _REGISTRY[name] = (function, line)
        return function

    return add


def initializers() -> dict[str, str]:
    """Names of all registered initialisations, with one line each."""
    return {name: line for name, (_, line) in _REGISTRY.items()}


def find_initializer(name: str) -> Initializer:
    """The function behind a name.

    Raises:
        ValueError: unknown name; the nearest names are given.
    """
    if name not in _REGISTRY:
        near = difflib.get_close_matches(str(name), _REGISTRY, n=3, cutoff=0.4) or sorted(_REGISTRY)
        raise ValueError(f"unknown init {name!r}; nearest: {', '.join(near)}")
    return _REGISTRY[name][0]
