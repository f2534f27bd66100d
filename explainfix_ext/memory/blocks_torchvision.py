"""Defines the drop-ins for torchvision's own classes: blocks that compute between their modules, LayerNorm2d, Conv3d.

`load_blocks` of save.py imports this file, by name, where torchvision is in use.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models import densenet
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.video import resnet as video
from torchvision.ops.misc import SqueezeExcitation

from .convolutions import MemoryConv3d
from .modules import DROP_IN
from .norms import MemoryChannelNorm
from .notes import note
from .replay import concatenated
from .saver import MemorySaver


class _Concatenating(MemorySaver):
    """Lets the consumers of a concatenation keep its parts, which other layers keep too."""

    def _concatenate(self, parts: list[Tensor]) -> Tensor:
        x = torch.cat(parts, 1)
        if self._applies(x):
            note(x, concatenated([self._keep(part) for part in parts]))
        return x


class MemoryDenseLayer(_Concatenating, densenet._DenseLayer):
    """Replaces the layer of torchvision's DenseNet."""

    def bn_function(self, inputs: list[Tensor]) -> Tensor:
        return self.conv1(self.relu1(self.norm1(self._concatenate(inputs))))  # type: ignore[operator]


class MemoryDenseBlock(_Concatenating, densenet._DenseBlock):
    """Replaces the block of torchvision's DenseNet."""

    def forward(self, init_features: Tensor) -> Tensor:
        features = [init_features]
        for layer in self.values():  # type: ignore[operator]
            features.append(layer(features))
        return self._concatenate(features)


class MemorySqueezeExcitation(MemorySaver, SqueezeExcitation):
    """Replaces torchvision's SqueezeExcitation: keeps the replay of the tensor that it scales."""

    def forward(self, x: Tensor) -> Tensor:
        return self._scale_channels(x, self._scale(x))  # type: ignore[operator]


class MemoryLayerNorm2d(MemoryChannelNorm, LayerNorm2d):
    """Replaces the LayerNorm2d of torchvision's ConvNeXt: keeps the replay of its input."""


class MemoryConv3DSimple(MemoryConv3d, video.Conv3DSimple):
    """Replaces the convolution of torchvision's r3d_18."""


class MemoryConv3DNoTemporal(MemoryConv3d, video.Conv3DNoTemporal):
    """Replaces the convolution of torchvision's mc3_18."""


DROP_IN[densenet._DenseLayer] = MemoryDenseLayer
DROP_IN[densenet._DenseBlock] = MemoryDenseBlock
DROP_IN[SqueezeExcitation] = MemorySqueezeExcitation
DROP_IN[LayerNorm2d] = MemoryLayerNorm2d
DROP_IN[video.Conv3DSimple] = MemoryConv3DSimple
DROP_IN[video.Conv3DNoTemporal] = MemoryConv3DNoTemporal
