"""FixedConv1d: nn.Conv1d whose filters are a fixed bank of kernels (1, K). fixed_conv.py has what it does."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from explainfix_ext._support.layout import as_pair
from explainfix_ext.filters.bank import FilterBank

from .fixed_conv import FixedConv


class FixedConv1d(FixedConv, nn.Conv1d):
    """This is `nn.Conv1d` with fixed filters: no weight is stored or learned, and no input is kept for its gradient.

    It does for signals what `FixedConv2d` does for images, which says more of each argument. Its bank has kernels of
    (1, K). Where "auto" chooses the plan, it is the dense one, torch's own convolution, but for hadamard filters.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as `nn.Conv1d`.
        device: of the bias and of the bank.
        dtype: of the bias, and of `weight` when it is composed.
        init: how to make the filters: "auto", which is "dct2" for signals, or another initialisation.
        seed: of the filters; None draws one from torch's default generator.
        bank: a FilterBank to use instead of init and seed, of shape (O, I/groups, 1, K).
        learn_coeff: learn the coefficients `coeff` (O, I/groups, L) of a fixed basis.
        plan: the kernel, "auto" or one that FixedConv2d takes.
        pointwise: a learned convolution of kernel size 1 follows the fixed one: the Parameter `pointwise` (O, O, 1).
        **options: of `make_bank`: density, gain, shared_basis, and those of the init, such as `rate` of "sinc".

    x is (N, C, L) or (C, L), floating.

    Raises:
        ValueError: unknown init or option, or a bank that does not fit the layer; at a call, x of another shape.

    Examples:
        >>> conv = FixedConv1d(16, 32, 9, padding="same", init="dct2", seed=0)
        >>> conv(torch.randn(1, 16, 100)).shape, conv.bank.shape
        (torch.Size([1, 32, 100]), (32, 16, 1, 9))

        The equivalent PyTorch:

        >>> x = torch.randn(1, 16, 100)
        >>> torch.allclose(conv(x), F.conv1d(x, conv.weight, conv.bias, padding="same"), atol=1e-4)
        True

    Source: ExplainFix 2023, section 3, in one dimension.
    """

    _plain_class = nn.Conv1d
    _plain_conv = staticmethod(F.conv1d)

    @classmethod
    def from_conv1d(
        cls,
        conv: nn.Conv1d,
        init: str | FilterBank = "unchanged",
        *,
        seed: int = 0,
        learn_coeff: bool = False,
        pointwise: bool = False,
        plan: str = "auto",
        **options: Any,
    ) -> FixedConv1d:
        """Makes a FixedConv1d to take the place of `conv`, as `FixedConv2d.from_conv2d` does of a Conv2d.

        Args:
            conv: a Conv1d. Its bias, hooks, mode and attributes are taken over: do not use it any more.
            init: as FixedConv1d has it, or a FilterBank. "unchanged" and "fill_zero" start from conv's weight.
            seed, learn_coeff, pointwise, plan, **options: as FixedConv1d takes them.

        Raises:
            TypeError: `conv` is no Conv1d, or one of a kind that cannot be replaced; the message says why.
            ValueError: as `make_bank`.

        Examples:
            >>> conv = nn.Conv1d(3, 8, 5)
            >>> torch.equal(FixedConv1d.from_conv1d(conv).weight, conv.weight)
            True
        """
        return cls._from_conv(conv, init, seed=seed, learn_coeff=learn_coeff, pointwise=pointwise, plan=plan, **options)

    def to_conv1d(self, requires_grad: bool = False) -> nn.Conv1d:
        """Returns a plain convolution that computes the same, of the class that this layer replaced. The layer stays.

        With `requires_grad` the filters of the plain one are to be learned.

        Raises:
            TypeError: a Parameter of the layer is parametrized, by a class that torch made for that.
        """
        return self._to_conv(requires_grad)

    def _run_filters(self, x: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any) -> Tensor:
        """Convolves signals as pictures of one row."""
        if x.ndim not in (2, 3):
            raise ValueError(f"x must be [N, C, L] or [C, L], got {list(x.shape)}")
        padding = padding if isinstance(padding, str) else as_pair(padding, 0)
        return super()._run_filters(x.unsqueeze(-2), bias, as_pair(stride), padding, as_pair(dilation)).squeeze(-2)
