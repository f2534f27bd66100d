"""What a network stores and computes, counted layer by layer, and the time that it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from explainfix_ext._support.models import eval_mode, in_mode
from explainfix_ext.nn.fixed_conv2d import FixedConv2d
from explainfix_ext.prune.cut.layers import TRANSPOSED, is_spatial, nonzero_filters

COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, nn.Linear)


@dataclass(frozen=True)
class LayerCost:
    """What one layer has, stores and computes.

    Attributes:
        out_channels, in_channels: of the layer.
        filters, nonzero: how many it has, and how many of them are not zero.
        parameters: numbers that it stores, the steering of a fixed layer with them.
        multiply_adds: for one batch of the inputs that `channelprune` was given.
        pixels: for which each filter is computed: of the output, or the input of a transposed convolution.
        spatial: it is a Conv2d larger than 1x1, whose filters are pruned.

    An index bank counts an addition for each nonzero filter and pixel, a coefficient bank its rank, a plain layer
    all its weights: what the kernels do.
    """

    out_channels: int
    in_channels: int
    filters: int
    nonzero: int
    parameters: int
    multiply_adds: int
    pixels: int
    spatial: bool


@torch.no_grad()
def layer_costs(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, LayerCost]:
    """LayerCost of every convolution and linear layer that runs, in the order in which they first do."""
    pixels: dict[str, int] = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def forward(module: Any, args: Any, y: Tensor) -> None:
            channels = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            # A transposed convolution uses its weights once for each pixel of its input.
            moved = args[0].numel() // module.in_channels if isinstance(module, TRANSPOSED) else y.numel() // channels
            pixels[name] = pixels.get(name, 0) + moved

        return forward

    layers = {name: m for name, m in model.named_modules() if isinstance(m, COUNTED)}
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
    stored = sum(p.numel() for p in module.parameters(recurse=False))
    linear = isinstance(module, nn.Linear)
    if isinstance(module, FixedConv2d):
        bank = module.bank
        stored += 0 if module.coeff is not None else bank.steering.numel()
        work = int(nonzero.sum()) * (bank.rank if bank.index is None else 1)
        work += module.out_channels**2 if module.pointwise is not None else 0
    else:
        work = module.weight.numel()
    return LayerCost(
        out_channels=module.out_features if linear else module.out_channels,
        in_channels=module.in_features if linear else module.in_channels,
        filters=nonzero.numel(),
        nonzero=int(nonzero.sum()),
        parameters=stored,
        multiply_adds=work * pixels,
        pixels=pixels,
        spatial=is_spatial(module),
    )


def stored_numbers(model: nn.Module) -> int:
    """Parameters, and the steering of fixed layers."""
    fixed = [m.bank.steering.numel() for m in model.modules() if isinstance(m, FixedConv2d) and m.coeff is None]
    return sum(p.numel() for p in model.parameters()) + sum(fixed)


def _infer(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    with eval_mode(model), torch.no_grad():
        model(*inputs)


def _train_step(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Forward and backward in training mode; statistics are put back, and no gradient is left."""
    kept = {name: b.clone() for name, b in model.named_buffers()}
    learned = [p for p in model.parameters() if p.requires_grad]
    try:
        with in_mode(model, True):
            outputs = [leaf for leaf in tree_flatten(model(*inputs))[0] if isinstance(leaf, Tensor)]
            cost = torch.stack([t.float().square().mean() for t in outputs]).sum()
            torch.autograd.grad(cost, learned, allow_unused=True)
    finally:
        for name, b in model.named_buffers():
            b.copy_(kept[name])
