"""Defines the drop-ins for timm's blocks: norms, squeeze-and-excitation, and Ghost modules.

`load_blocks` of save.py imports this file, by name, where timm is in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import BatchNormAct2d, LayerNorm, LayerNorm2d
from timm.layers.activations import GELU
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models.ghostnet import GhostModule, GhostModuleV2
from torch import Tensor, nn
from torch.autograd import Function

from .modules import DROP_IN, MemoryActivation, MemoryBatchNorm2d
from .norms import MemoryChannelNorm, MemoryLayerNorm
from .notes import note, replay_of
from .ownership import once_differentiable
from .replay import Replay, concatenated, shallow
from .saver import MemorySaver


class MemoryBatchNormAct2d(MemoryBatchNorm2d, BatchNormAct2d):
    """Replaces timm's BatchNormAct2d. Its activation is a module of its own, with a drop-in of its own."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if not self._applies(x, weight, bias):
            return BatchNormAct2d.forward(self, x)
        return self.act(self.drop(self._normalize(x, weight, bias)))


class MemoryTimmLayerNorm(MemoryLayerNorm, LayerNorm):
    """Replaces timm's LayerNorm."""


class MemoryTimmLayerNorm2d(MemoryChannelNorm, LayerNorm2d):
    """Replaces timm's LayerNorm2d."""


class MemorySqueezeExcite(MemorySaver, SqueezeExcite):
    """Replaces timm's SqueezeExcite: keeps the replay of the tensor that it scales."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.conv_expand(self.act1(self.conv_reduce(x.mean((2, 3), keepdim=True))))
        return self._scale_channels(x, self.gate(scale))


class MemoryTimmGELU(MemoryActivation, GELU):
    """Replaces timm's GELU."""

    _act = "gelu"


class _Ghost(MemorySaver):
    """Lets consumers of a Ghost module's halves keep the first, which makes the cheap one again."""

    primary_conv: nn.Module
    cheap_operation: nn.Module
    out_chs: int

    def _halves(self, x: Tensor) -> Tensor:
        first = self.primary_conv(x)
        kept = self._keep(first) if self._applies(first) else None  # now, so that the cheap half is made of it
        cheap = self.cheap_operation(first)
        y = torch.cat([first, cheap], 1)
        if y.shape[1] != self.out_chs:
            return y[:, : self.out_chs]
        if kept is not None and self._applies(y):
            known = replay_of(cheap)
            note(y, concatenated([kept, self._keep(cheap) if known is None else shallow(known)]))
        return y


class MemoryGhostModule(_Ghost, GhostModule):  # type: ignore[misc]
    """Replaces timm's GhostModule."""

    def forward(self, x: Tensor) -> Tensor:
        return self._halves(x)


class Gate(Function):
    """Multiplies x by a gate of fewer pixels, and keeps the gate and a replay of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, replay: Replay) -> Tensor:
        ctx.program = replay.program
        ctx.save_for_backward(gate, *replay.tensors)
        return _gated([x], [gate])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        gate, *tensors = ctx.saved_tensors
        x, gate = ctx.program.rebuild(tensors), gate.detach().requires_grad_()
        with torch.enable_grad():
            wide = _enlarged(gate, x.shape[2:])
        return grad * wide.detach(), *torch.autograd.grad(wide, gate, grad * x), None


class MemoryGhostModuleV2(_Ghost, GhostModuleV2):  # type: ignore[misc]
    """Replaces timm's GhostModuleV2: keeps neither the concatenation nor the gate at its full size."""

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate_fn(self.short_conv(nn.functional.avg_pool2d(x, 2, 2)))
        y = self._halves(x)
        replay = replay_of(y) if self._applies(y, gate) else None
        if replay is None or replay.deep or gate.dtype is not y.dtype:
            return y * _enlarged(gate, y.shape[2:])
        result = Gate.apply(y, gate, replay)
        note(result, replay.then(_gated, (gate,), batched=True))
        return result


def _enlarged(gate: Tensor, size: torch.Size) -> Tensor:
    return nn.functional.interpolate(gate, size=size, mode="nearest")


# A step of replays: see the end of replay.py.
def _gated(inputs: list[Tensor], tensors: Sequence[Tensor]) -> Tensor:
    return inputs[0] * _enlarged(tensors[0], inputs[0].shape[2:])


DROP_IN[GELU] = MemoryTimmGELU
DROP_IN[GhostModule] = MemoryGhostModule
DROP_IN[GhostModuleV2] = MemoryGhostModuleV2
DROP_IN[BatchNormAct2d] = MemoryBatchNormAct2d
DROP_IN[SqueezeExcite] = MemorySqueezeExcite
DROP_IN[LayerNorm] = MemoryTimmLayerNorm
DROP_IN[LayerNorm2d] = MemoryTimmLayerNorm2d
