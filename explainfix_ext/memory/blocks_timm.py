"""Defines the drop-ins for timm's blocks: BatchNorm with an activation, and squeeze-and-excitation.

`load_blocks` of save.py imports this file, by name, where timm is in use.
"""

from __future__ import annotations

from timm.layers import BatchNormAct2d
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor

from .modules import DROP_IN, MemoryBatchNorm2d
from .saver import MemorySaver


class MemoryBatchNormAct2d(MemoryBatchNorm2d, BatchNormAct2d):
    """Replaces timm's BatchNormAct2d. Its activation is a module of its own, with a drop-in of its own."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if not self._applies(x, weight, bias):
            return BatchNormAct2d.forward(self, x)
        return self.act(self.drop(self._normalize(x, weight, bias)))


class MemorySqueezeExcite(MemorySaver, SqueezeExcite):
    """Replaces timm's SqueezeExcite: keeps the replay of the tensor that it scales."""

    def forward(self, x: Tensor) -> Tensor:
        scale = self.conv_expand(self.act1(self.conv_reduce(x.mean((2, 3), keepdim=True))))
        return self._scale_channels(x, self.gate(scale))


DROP_IN[BatchNormAct2d] = MemoryBatchNormAct2d
DROP_IN[SqueezeExcite] = MemorySqueezeExcite
