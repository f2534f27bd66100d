"""This module knows the norms whose statistics run over all channels: LayerNorm, and GroupNorm of a single group.

Without a channel their statistics are others, so such a channel cannot go without a change. With `bn_bias="drop"`,
which forgets what removed channels hold, they are taken over the channels that stay, in the pruned model and in the
masked one that it is compared with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def runs_across(module: nn.Module | None) -> bool:
    """Says whether a module is a norm of one axis of channels, or of one group, whose statistics mix all channels."""
    if isinstance(module, nn.GroupNorm):
        return module.num_groups == 1
    return isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1


def channels_across(module: Any) -> int:
    """Returns the number of channels of a norm that `runs_across` them."""
    return module.num_channels if isinstance(module, nn.GroupNorm) else module.normalized_shape[0]


def normalised(module: Any, x: Tensor, axis: int, kept: Tensor) -> Tensor:
    """Returns what a norm gives by definition if only the channels `kept` along `axis` count, and zero elsewhere."""
    part = x.index_select(axis, kept)
    axes = [*range(1, x.ndim)] if isinstance(module, nn.GroupNorm) else [axis]
    variance, mean = torch.var_mean(part, axes, correction=0, keepdim=True)
    y = (part - mean) / torch.sqrt(variance + module.eps)
    along = [-1 if k == axis else 1 for k in range(x.ndim)]
    if module.weight is not None:
        y = y * module.weight[kept].reshape(along)
    if module.bias is not None:
        y = y + module.bias[kept].reshape(along)
    return torch.zeros_like(x).index_copy(axis, kept, y.to(x.dtype))


@torch.no_grad()
def axis_of_norm(module: Any, x: Tensor, y: Tensor) -> int | None:
    """Returns the axis that a norm takes for that of the channels; None if y is not what the norm gives by definition.

    Libraries have LayerNorms of their own, for channels at the second axis or with an activation.
    """
    channels = channels_across(module)
    kept = torch.arange(channels, device=x.device)
    for axis in (x.ndim - 1, 1) if isinstance(module, nn.LayerNorm) else (1,):
        if x.ndim > 1 and x.shape[axis] == channels and y.shape == x.shape:
            expected = normalised(module, x, axis, kept)
            if (expected - y).abs().amax() <= 1e-4 * expected.abs().amax():
                return axis
    return None


class OfKept:
    """Makes a norm ignore channels, as a forward hook of the masked model; of a norm that is cut nothing changes."""

    def __init__(self, module: nn.Module, kept: list[int]) -> None:
        self._channels, self._kept = channels_across(module), kept

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor | None:
        if channels_across(module) != self._channels:
            return None
        axis = axis_of_norm(module, args[0], module.forward(*args))  # y may have come from a hook like this one
        kept = torch.tensor(self._kept, device=y.device)
        return None if axis is None else normalised(module, args[0], axis, kept)
