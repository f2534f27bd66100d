"""CoConv2d is the learned layer with several dilations: what `revert` makes of a fixed one, and `convert` fixes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .levels import Levels, convolve_by_levels, split_levels


class CoConv2d(nn.Conv2d):
    """This is `nn.Conv2d` whose output channels are split over dilations, with as many weights and multiply-adds.

    Args:
        in_channels, out_channels, kernel_size, **options: as `nn.Conv2d`; dilation is 1.
        dilations: of the levels, 1 to 5 positive integers. Two, three, four and five levels have 1/2 1/2, 1/2 1/4 1/4,
            four times 1/4, and three times 1/4 and twice 1/8 of the output channels. Level d pads by (d - 1)(K - 1) / 2
            more, so that all maps have one size.

    Attributes:
        levels: ((dilation, output channels), ...), in the order of the channels.

    Raises:
        ValueError: the dilations are none, or not for such a layer.

    Examples:
        >>> conv = CoConv2d(16, 32, 3, padding=1, dilations=(1, 2))
        >>> conv.levels
        ((1, 16), (2, 16))

        The equivalent PyTorch:

        >>> x, w, b = torch.randn(2, 16, 8, 8), conv.weight, conv.bias
        >>> near, far = F.conv2d(x, w[:16], b[:16], padding=1), F.conv2d(x, w[16:], b[16:], padding=2, dilation=2)
        >>> torch.allclose(conv(x), torch.cat([near, far], 1), atol=1e-6)
        True

    Source: Duta, Georgescu and Ionescu 2021, Contextual Convolutional Neural Networks.
    """

    levels: Levels = ()

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        dilations: Sequence[int],
        **options: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **options)
        self.levels = split_levels(self, dilations)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return convolve_by_levels(self, input, weight, bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, levels={self.levels}"
