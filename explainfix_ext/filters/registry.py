"""This module keeps the initialisations by name, and defines the Layer that each of them is called with.

To add one to the package, write a function `(layer, **options) -> FilterBank` in initializers.py that draws from
`layer.stream(purpose)`, and put `@register(name, one line)` above it. Programs do the same through
`explainfix_ext.registry`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from explainfix_ext._support.text import unknown_name

from .bank import RECIPE_VERSION, ZERO_FILTER, FilterBank
from .random_streams import Stream


@dataclass(frozen=True)
class Layer:
    """A Layer is what an initialisation knows of the layer it works for: its geometry and its seed.

    Attributes:
        out_channels: O.
        in_channels: I, the inputs of a group; so there are O I filters.
        kernel_size: (kh, kw).
        seed: of this layer, in [0, 2**63).
        groups: of the convolution. Only hadamard banks remember it, so filters of other kinds must not depend on it.
        version: of the rules (`Recipe`): what draws otherwise than before does so from a version on.

    Examples:
        >>> layer = Layer(8, 4, (3, 3), seed=0)
        >>> layer.bank(dct_basis((3, 3)), layer.stream("index").integers(0, 9, layer.filters)).shape
        (8, 4, 3, 3)
    """

    out_channels: int
    in_channels: int
    kernel_size: tuple[int, int]
    seed: int
    groups: int = 1
    version: int = RECIPE_VERSION

    @property
    def filters(self) -> int:
        """O I, the number of filters."""
        return self.out_channels * self.in_channels

    @property
    def k2(self) -> int:
        """kh kw, the number of pixels of a filter."""
        return math.prod(self.kernel_size)

    def stream(self, purpose: str) -> Stream:
        """Makes this layer's stream of random numbers for a `purpose`: the same on every machine and version."""
        return Stream(self.seed, purpose)

    def spread(self, functions: int) -> np.ndarray:
        """Draws a function for each filter: every output has a random permutation of them, or as much of one as it has
        inputs.

        Args:
            functions: how many there are.

        Returns:
            Numbers below `functions`, O I of them.
        """
        inputs, stream = self.in_channels, self.stream("index")
        if inputs == 1:  # one filter per output, so the functions are spread over the outputs instead
            return stream.permutation(1, self.out_channels) % functions
        if inputs < functions and self.version > 1:  # version 1 drew the first ones only: no vertical one for RGB
            return stream.permutation(self.out_channels, functions)[:, :inputs]
        return stream.permutation(self.out_channels, inputs) % functions

    def bank(self, basis: Tensor, steering: np.ndarray | Tensor) -> FilterBank:
        """Makes a FilterBank of the layer's O I filters over a basis.

        Args:
            basis: (L, kh, kw) floating.
            steering: the bank's index or coefficients, in any shape: O I integers, each the basis function of one
                filter (255: the zero filter); or O I L floats, which become float32.
        """
        numbers, shape = torch.as_tensor(steering), (self.out_channels, self.in_channels)
        if numbers.is_floating_point():
            return FilterBank(basis, coeff=numbers.reshape(*shape, -1).float())
        if len(basis) <= ZERO_FILTER:
            return FilterBank(basis, index=numbers.reshape(shape).to(torch.uint8))
        one_hot = torch.nn.functional.one_hot(numbers.reshape(shape).long(), len(basis))  # too many for a uint8
        return FilterBank(basis, coeff=one_hot.float())

    def pixels(self, filters: np.ndarray | Tensor) -> FilterBank:
        """Makes a FilterBank of given `filters`, O I kh kw floats in any shape, over a basis of one impulse a pixel."""
        return self.bank(torch.eye(self.k2, dtype=torch.float64).reshape(-1, *self.kernel_size), filters)


Initializer = Callable[..., FilterBank]
"""An initialisation is a function (layer, **options) that returns the layer's filters."""

_REGISTRY: dict[str, tuple[Initializer, str]] = {}


def register(name: str, line: str) -> Callable[[Initializer], Initializer]:
    """Makes a decorator that adds an initialisation to those of `make_bank`, `convert` and the command line.

    Args:
        name: its name; an initialisation of the same name is replaced.
        line: what it does, in one line.

    The decorated function takes a Layer, and the initialisation's own options by name, and returns a FilterBank. It
    must draw random numbers from `layer.stream(purpose)` alone, so that a seed gives the same filters everywhere.

    Examples:
        >>> from explainfix_ext.registry import Layer, register
        >>> @register("low3", "normal weights on the three lowest DCT-II functions")
        ... def low3(layer: Layer, spread: float = 1.0) -> FilterBank:
        ...     basis = dct_basis(layer.kernel_size)[frequency_order(layer.kernel_size)[:3]]
        ...     return layer.bank(basis, spread * layer.stream("weights").normal(layer.filters, 3))
        >>> make_bank("low3", 16, 8, 3, seed=0, spread=0.5).rank
        3
    """

    def add(function: Initializer) -> Initializer:
        _REGISTRY[name] = (function, line)
        return function

    return add


def initializers() -> dict[str, str]:
    """Returns the names of all registered initialisations, with one line on each.

    Examples:
        >>> initializers()["kaiming_uniform"]
        'uniform within 1/sqrt(fan in), as nn.Conv2d starts (baseline)'
    """
    return {name: line for name, (_, line) in _REGISTRY.items()}


def find_initializer(name: str) -> Initializer:
    """Returns the function that is registered under a name.

    Raises:
        ValueError: the name is unknown; the message has the nearest names.

    Examples:
        >>> find_initializer("dct2")(Layer(8, 4, (3, 3), seed=0)).rank
        9
    """
    if name not in _REGISTRY:
        raise unknown_name("init", name, sorted(_REGISTRY))
    return _REGISTRY[name][0]
