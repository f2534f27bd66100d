"""The fixed counterpart of Conv2dSame: timm's convolution with TensorFlow's padding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .fixed_conv2d import FixedConv2d
from .replaceable import REPLACEMENTS


class FixedConv2dSame(FixedConv2d):
    """FixedConv2d with TensorFlow's "same" padding, which depends on the input's size."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[Any] = []  # a size is a SymInt under torch.export, a Tensor under torch.jit.trace
        for axis in (1, 0):  # F.pad wants the last axis first
            size, k, s, d = x.shape[-2 + axis], self.kernel_size[axis], self.stride[axis], self.dilation[axis]
            lack = (-(-size // s) - 1) * s + d * (k - 1) + 1 - size
            total = lack.clamp(min=0) if isinstance(lack, Tensor) else torch.sym_max(lack, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


REPLACEMENTS["timm.layers.conv2d_same.Conv2dSame"] = FixedConv2dSame
