"""This module scores filters by what a layer's output loses without them, from its inputs alone.

No labels and no gradients are needed: a forward pass gives the second moments of each layer's input patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext._support.models import eval_mode
from explainfix_ext.explain.saliency import first_batches, patches

Batches = Iterable[tuple[Tensor, Tensor]]

LARGEST = 4608  # rows of the matrices that `obs` inverts, such as 512 inputs of 3x3: 170 MB each
_DAMPING = 1e-2  # of the mean of the diagonal, added to it: inputs that are not independent have no inverse
_FLOATS_AT_ONCE = 2**22  # of unfolded input


def each_call(
    model: nn.Module, layers: dict[str, Any], data: Batches, see: Callable[[str, Tensor, Tensor], None]
) -> int:
    """Runs the model in eval mode on every batch, and shows each call of a layer: (name, its input, its output).

    Returns:
        The number of samples.

    Raises:
        ValueError: data is empty, or a batch is not a pair (x, y).
    """

    def hook(name: str) -> Callable[[Any, Any, Any, Tensor], None]:
        def forward(module: Any, args: Any, kwargs: Any, y: Tensor) -> None:
            see(name, (args[0] if args else kwargs["input"]).detach(), y.detach())

        return forward

    handles = [layer.register_forward_hook(hook(name), with_kwargs=True) for name, layer in layers.items()]
    device = next(iter(model.parameters()), torch.empty(0)).device
    samples = 0
    try:
        with eval_mode(model), torch.no_grad():
            for x, _ in first_batches(data, None):
                model(x.to(device))
                samples += len(x)
    finally:
        for handle in handles:
            handle.remove()
    if not samples:
        raise ValueError("data is empty: expected batches (x, y)")
    return samples


def response_scores(model: nn.Module, layers: dict[str, Any], data: Batches) -> dict[str, Tensor]:
    """Scores a filter by w^T H_i w, H_i being the second moments of its input channel's patches.

    That is the mean square of what it adds to its output channel, so exactly the error of setting it to zero. Of a
    layer with a learned 1x1 it is the output before that.

    Returns:
        Name -> (O, I/groups) float64 on the CPU.
    """
    moments = _input_moments(model, layers, data, {name: layer.in_channels for name, layer in layers.items()})
    scores = {}
    for name, h in moments.items():
        w = _filters(layers[name])
        inputs = h.reshape(len(w), 1, w.shape[2], *h.shape[1:])
        scores[name] = ((w[..., None, :] @ inputs) @ w[..., None])[..., 0, 0].flatten(0, 1)
    return scores


def obs_scores(model: nn.Module, layers: dict[str, Any], data: Batches) -> dict[str, Tensor]:
    """Scores a filter by w_i^T ([H^-1]_ii)^-1 w_i, H being the second moments of all of the layer's input patches.

    That is the error of setting it to zero once the other filters of its output channel have made up for it as well as
    they can (Optimal Brain Surgeon, a filter at a time).

    Returns:
        Name -> (O, I/groups) float64 on the CPU.

    Raises:
        ValueError: a layer's matrix would have more than LARGEST rows.
    """
    for name, layer in layers.items():
        rows = layer.weight[0].numel()
        if rows > LARGEST:
            raise ValueError(
                f'criterion "obs" inverts matrices of at most {LARGEST} rows, and {name} has {rows} inputs times taps: '
                f'ignore it, or take "response"'
            )
    moments = _input_moments(model, layers, data, {name: layer.groups for name, layer in layers.items()})
    scores = {}
    for name, h in moments.items():
        w = _filters(layers[name])
        inputs, taps = w.shape[2:]
        diagonal = h.diagonal(dim1=1, dim2=2)
        diagonal += _DAMPING * diagonal.mean(1, keepdim=True).clamp(min=1e-30)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(h)).reshape(-1, inputs, taps, inputs, taps)
        own = inverse.diagonal(dim1=1, dim2=3).movedim(-1, 1)[:, None]  # (groups, 1, I/groups, K^2, K^2)
        scores[name] = (w * torch.linalg.solve(own, w[..., None])[..., 0]).sum(-1).flatten(0, 1)
    return scores


def _filters(layer: Any) -> Tensor:
    """Returns (groups, O/groups, I/groups, K^2) float64 on the CPU."""
    w = layer.weight.detach().double().cpu()
    return w.reshape(layer.groups, -1, w.shape[1], w[0, 0].numel())


def _input_moments(
    model: nn.Module, layers: dict[str, Any], data: Batches, blocks: dict[str, int]
) -> dict[str, Tensor]:
    """Computes E[p p^T] over samples and pixels, p being the patches that a filter of the layer is multiplied with.

    Args:
        blocks: name -> into how many blocks the layer's inputs are divided; products are taken within a block.

    Returns:
        Name -> (blocks, d, d) float64 on the CPU, d being the numbers of a patch in a block.
    """
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def see(name: str, x: Tensor, y: Tensor) -> None:
        layer = layers[name]
        places = y[0, 0].numel()
        step = max(1, _FLOATS_AT_ONCE // (layer.weight[0].numel() * layer.groups * places))
        for part in x.split(step):
            found = patches(layer, part).reshape(len(part), blocks[name], -1, places)
            found = found.transpose(0, 1).transpose(1, 2).flatten(2)
            product = (found @ found.transpose(1, 2)).double().cpu()
            sums[name] = product if name not in sums else sums[name].add_(product)
        counts[name] += len(x) * places

    each_call(model, layers, data, see)
    return {name: total / counts[name] for name, total in sums.items()}
