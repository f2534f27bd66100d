"""This module counts what each layer of a network stores and computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext._support.models import eval_mode
from explainfix_ext.nn.fixed_conv import FixedConv
from explainfix_ext.nn.summary import multiply_adds
from explainfix_ext.prune.cut.layers import channels_of, is_prunable, nonzero_filters
from explainfix_ext.prune.trace.kinds import MIXING, TRANSPOSED


@dataclass(frozen=True)
class LayerCost:
    """Says what one layer has, stores and computes.

    Attributes:
        out_channels: number of its output channels.
        in_channels: number of its input channels.
        filters: number of its filters.
        nonzero: how many of these are not zero.
        parameters: numbers that it stores; those that choose a fixed layer's filters (`index` or `coeff`) count.
        multiply_adds: for one batch of the inputs that `channelprune` was given. A plain layer counts all its weights
            at each pixel, a fixed layer what `summary` says.
        pixels: number of pixels that each filter is computed for: those of the output, or those of the input of a
            transposed convolution.
        spatial: True for a Conv2d larger than 1x1 whose filters can be pruned.
        hadamard: True for a fixed layer whose channels mix by a fast transform.
    """

    out_channels: int
    in_channels: int
    filters: int
    nonzero: int
    parameters: int
    multiply_adds: int
    pixels: int
    spatial: bool
    hadamard: bool = False


@torch.no_grad()
def layer_costs(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, LayerCost]:
    """Returns name -> LayerCost of every convolution and linear layer that runs, in the order of their first run."""
    pixels: dict[str, int] = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def forward(module: Any, args: Any, y: Tensor) -> None:
            inputs, outputs = channels_of(module)
            # A transposed convolution uses its weights once for each pixel of its input.
            here = args[0].numel() // inputs if isinstance(module, TRANSPOSED) else y.numel() // outputs
            pixels[name] = pixels.get(name, 0) + here

        return forward

    layers = {name: m for name, m in model.named_modules() if isinstance(m, MIXING)}
    handles = [m.register_forward_hook(hook(name)) for name, m in layers.items()]
    try:
        with eval_mode(model):
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _cost(layers[name], n) for name, n in pixels.items()}


def _cost(module: Any, pixels: int) -> LayerCost:
    nonzero = nonzero_filters(module)
    inputs, outputs = channels_of(module)
    return LayerCost(
        out_channels=outputs,
        in_channels=inputs,
        filters=nonzero.numel(),
        nonzero=int(nonzero.sum()),
        parameters=sum(p.numel() for p in module.parameters(recurse=False)) + _fixed_numbers(module),
        multiply_adds=multiply_adds(module, pixels),
        pixels=pixels,
        spatial=is_prunable(module),
        hadamard=isinstance(module, FixedConv) and module.bank.hadamard is not None,
    )


def stored_numbers(model: nn.Module) -> int:
    """Counts the Parameters of a model, and the numbers that choose the filters of its fixed layers."""
    return sum(p.numel() for p in model.parameters()) + sum(map(_fixed_numbers, model.modules()))


def _fixed_numbers(module: nn.Module) -> int:
    """Counts the numbers that choose a bank's filters, unless the layer learns them: then they are a Parameter."""
    if not isinstance(module, FixedConv) or module.coeff is not None:
        return 0
    return sum(t.numel() for t in module.bank.tensors[1:])
