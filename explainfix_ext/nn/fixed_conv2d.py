"""FixedConv2d: nn.Conv2d whose spatial filters are a fixed bank. fixed_conv.py has what it does."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import nn

from explainfix_ext.filters.bank import FilterBank

from .fixed_conv import FixedConv


class FixedConv2d(FixedConv, nn.Conv2d):
    """This is `nn.Conv2d` with fixed filters: no weight is stored or learned, and no input is kept for its gradient.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as `nn.Conv2d`.
        device: of the bias and of the bank.
        dtype: of the bias, and of `weight` when it is composed.
        init: how to make the filters: "auto", as `make_bank` has it ("dct2" with learn_coeff), or an initialisation.
        seed: of the filters; None draws one from torch's default generator. `conv.bank.recipe.seed` tells it.
        bank: a FilterBank to use instead of init and seed.
        learn_coeff: the basis stays fixed, the coefficients become the Parameter `coeff` (O, I/groups, L) and are
            learned. This keeps the input for the backward pass, as any learned convolution does.
        plan: the kernel: "auto" (the fastest; on the CPU large calls that torch does faster run dense), "dense",
            "index", "low_rank", "depthwise" or "hadamard", wherever it can; on a GPU "index" and "low_rank" are dense.
            "index" reads nothing where a filter, or a value of its function, is zero: NaN and infinity do not pass
            there, while in torch and in the other plans 0 * NaN is NaN.
        pointwise: a learned 1x1 convolution follows the fixed one: the Parameter `pointwise` (O, O, 1, 1). For networks
            that have no learned 1x1 of their own (Gavrikov and Keuper 2023).
        **options: of `make_bank`: density, gain, shared_basis, and those of the init.

    x (N, C, H, W) or (C, H, W) decides the dtype of the result, since there is no weight to disagree with; a bias must
    have x's.
    The bank is neither Parameter nor buffer: EMA does not average it, and a step under DDP does not send it (the first
    does, so that all ranks have rank 0's). It moves with `.to(device)`, keeps its dtype under `.half()`, and is saved
    in the state_dict as `_extra_state`; loading adopts the one there. `weight` is composed when read; it cannot be set.

    Raises:
        ValueError: unknown init or option, or a bank that does not fit the layer.

    Examples:
        >>> conv = FixedConv2d(16, 32, 3, padding=1, init="dct2", seed=0)
        >>> conv(torch.randn(1, 16, 8, 8)).shape, [name for name, _ in conv.named_parameters()]
        (torch.Size([1, 32, 8, 8]), ['bias'])

        The equivalent PyTorch:

        >>> x = torch.randn(1, 16, 8, 8)
        >>> torch.allclose(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1), atol=1e-4)
        True

    Source: ExplainFix 2023, section 3.
    """

    _plain_class = nn.Conv2d
    _plain_conv = staticmethod(F.conv2d)

    @classmethod
    def from_conv2d(
        cls,
        conv: nn.Conv2d,
        init: str | FilterBank = "unchanged",
        *,
        seed: int = 0,
        learn_coeff: bool = False,
        pointwise: bool = False,
        plan: str = "auto",
        **options: Any,
    ) -> FixedConv2d:
        """Makes a FixedConv2d to take the place of `conv`: its bias Parameter, hooks, mode, device and any attribute
        set on it are taken over, not copied, so that `conv` should not be used any more.

        Args:
            conv: a Conv2d, or a subclass that is known.
            init: as FixedConv2d has it, or a FilterBank. "unchanged" and "fill_zero" start from conv's weight.
            seed, learn_coeff, pointwise, plan, **options: as FixedConv2d takes them.

        Raises:
            TypeError: `conv` is no Conv2d, or one of a kind that cannot be replaced; the message says why.
            ValueError: as `make_bank`.

        Examples:
            >>> conv = nn.Conv2d(3, 8, 3)
            >>> torch.equal(FixedConv2d.from_conv2d(conv).weight, conv.weight)
            True
        """
        return cls._from_conv(conv, init, seed=seed, learn_coeff=learn_coeff, pointwise=pointwise, plan=plan, **options)

    def to_conv2d(self, requires_grad: bool = False) -> nn.Conv2d:
        """Returns a plain convolution that computes the same, of the class that this layer replaced. The layer stays.

        With `requires_grad` the filters of the plain one are to be learned.

        Raises:
            TypeError: a Parameter of the layer is parametrized, by a class that torch made for that.
        """
        return self._to_conv(requires_grad)
