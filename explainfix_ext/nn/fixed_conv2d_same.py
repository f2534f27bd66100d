"""FixedConv2dSame is the fixed counterpart of timm's Conv2dSame, a convolution that pads as TensorFlow does."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from explainfix_ext._support.layout import same_padding

from .fixed_conv2d import FixedConv2d
from .replaceable import REPLACEMENTS

_LEARNED = "timm.layers.conv2d_same.Conv2dSame"  # known by name: timm need not be installed


class FixedConv2dSame(FixedConv2d):
    """This layer is a FixedConv2d with TensorFlow's "same" padding, which depends on the input's size."""

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[-2], x.shape[-1])
        return super().forward(F.pad(x, same_padding(size, self.kernel_size, self.stride, self.dilation)))


def pads_like_tensorflow(conv: Any) -> bool:
    """Returns whether a Conv2d, fixed or learned, has TensorFlow's "same" padding, whatever its `padding` says."""
    return isinstance(conv, FixedConv2dSame) or type(conv).__name__ == _LEARNED.rpartition(".")[2]


REPLACEMENTS[_LEARNED] = FixedConv2dSame
