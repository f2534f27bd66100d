"""Drop-in classes for blocks that work between modules: torchvision's dense layers and squeeze-and-excitation."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models import densenet
from torchvision.ops.misc import SqueezeExcitation

from .modules import DROP_IN
from .replay import concatenated, note
from .saver import MemorySaver


class _Concatenating(MemorySaver):
    def _concatenate(self, parts: list[Tensor]) -> Tensor:
        """torch.cat of channels. Whoever would keep the result keeps the parts, which others keep too."""
        x = torch.cat(parts, 1)
        if self._applies(x):
            note(x, concatenated([self._keep(part) for part in parts]))
        return x


class MemoryDenseLayer(_Concatenating, densenet._DenseLayer):
    """torchvision's layer of a DenseNet."""

    def bn_function(self, inputs: list[Tensor]) -> Tensor:
        return self.conv1(self.relu1(self.norm1(self._concatenate(inputs))))  # type: ignore[operator]


class MemoryDenseBlock(_Concatenating, densenet._DenseBlock):
    """torchvision's block of a DenseNet."""

    def forward(self, init_features: Tensor) -> Tensor:
        features = [init_features]
        for layer in self.values():  # type: ignore[operator]
            features.append(layer(features))
        return self._concatenate(features)


class MemorySqueezeExcitation(MemorySaver, SqueezeExcitation):
    """torchvision's scaling of channels by what they hold."""

    def forward(self, x: Tensor) -> Tensor:
        return self._scale_channels(x, self._scale(x))  # type: ignore[operator]


DROP_IN[densenet._DenseLayer] = MemoryDenseLayer
DROP_IN[densenet._DenseBlock] = MemoryDenseBlock
DROP_IN[SqueezeExcitation] = MemorySqueezeExcitation
