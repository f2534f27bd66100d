"""Defines the drop-ins for timm's blocks: norms, squeeze-and-excitation, and Ghost modules.

`load_blocks` of save.py imports this file, by name, where timm is in use.
"""

from __future__ import annotations

import torch
from timm.layers import BatchNormAct2d, LayerNorm, LayerNorm2d
from timm.layers.activations import GELU
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models.ghostnet import GhostModule
from torch import Tensor

from .modules import DROP_IN, MemoryActivation, MemoryBatchNorm2d
from .norms import MemoryChannelNorm, MemoryLayerNorm
from .notes import note, replay_of
from .replay import concatenated, shallow
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


class MemoryGhostModule(MemorySaver, GhostModule):
    """Replaces timm's GhostModule: its consumers keep the first half, which makes the cheap one again."""

    def forward(self, x: Tensor) -> Tensor:
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


DROP_IN[GELU] = MemoryTimmGELU
DROP_IN[GhostModule] = MemoryGhostModule
DROP_IN[BatchNormAct2d] = MemoryBatchNormAct2d
DROP_IN[SqueezeExcite] = MemorySqueezeExcite
DROP_IN[LayerNorm] = MemoryTimmLayerNorm
DROP_IN[LayerNorm2d] = MemoryTimmLayerNorm2d
