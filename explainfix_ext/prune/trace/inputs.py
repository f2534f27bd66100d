"""This module prepares example inputs, which may be any nest of tensors: copies, float64, random numbers instead."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from explainfix_ext._support.models import check_has_tensors

Inputs = tuple[Any, ...]


def as_tuple(example_inputs: Any) -> Inputs:
    """Returns the model's positional arguments as a tuple, from a tensor, a tuple or a list.

    Raises:
        TypeError: they hold no tensor.
    """
    check_has_tensors("example_inputs", example_inputs)
    return tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)


def copied(inputs: Inputs) -> Inputs:
    """Clones every tensor, since a model may write into its inputs."""
    return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs)


def to_double(inputs: Inputs) -> Inputs:
    """Returns the inputs with float64 in place of every floating-point tensor."""
    return tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, inputs)


def random_like(inputs: Inputs, seed: int) -> Inputs:
    """Draws normal numbers in place of floats and fair coins in place of bools; integers stay, since they may index."""
    generator = torch.Generator().manual_seed(seed)

    def draw(x: Any) -> Any:
        if isinstance(x, Tensor) and x.dtype == torch.bool:
            return (torch.rand(x.shape, generator=generator) < 0.5).to(x)
        if isinstance(x, Tensor) and x.is_floating_point():
            return torch.randn(x.shape, generator=generator).to(x)
        return x

    return tree_map(draw, inputs)
