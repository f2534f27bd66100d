"""FixedConv2d: nn.Conv2d whose spatial filters are a fixed bank.

bank_state.py has how it is saved, moved and copied; held_bank.py what it holds of its filters; levels.py several
dilations; composed_weight.py what `weight` returns; refusals.py what it says to tools that want to store a weight;
plain_conv2d.py the plain layer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainfix_ext._support.models import class_name
from explainfix_ext.filters.bank import FilterBank, checked_bank
from explainfix_ext.filters.basis import compose_weight
from explainfix_ext.filters.choose_init import AUTO, init_of_layer
from explainfix_ext.filters.make_bank import make_bank, remake_bank
from explainfix_ext.filters.random_streams import SEED_BITS, Stream
from explainfix_ext.ops.plans.plan import DENSE_PLAN, ConvPlan

from .bank_state import BankState
from .coconv2d import CoConv2d
from .composed_weight import ComposedWeight
from .filtering import filtered
from .held_bank import HeldBank
from .levels import Levels, convolve_by_levels, split_levels
from .plain_conv2d import OWN, plain_conv2d
from .refusals import NO_WEIGHT, Refusals
from .replaceable import REPLACEMENTS, obstacle


class FixedConv2d(BankState, Refusals, nn.Conv2d):
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
        dilations: split the output channels over these dilations, as `CoConv2d` does; dilation is then 1. The bank and
            its state_dict are the same as without; `levels` tells which channels have which.
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

    coeff: nn.Parameter | None
    pointwise: nn.Parameter | None
    levels: Levels = ()
    _plain_class: type[nn.Conv2d] = nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        init: str = AUTO,
        seed: int | None = None,
        bank: FilterBank | None = None,
        learn_coeff: bool = False,
        pointwise: bool = False,
        plan: str = "auto",
        dilations: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        # On meta, Conv2d's own weight takes no memory; register_parameter then turns it away.
        geometry = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        super().__init__(*geometry, False, padding_mode, "meta", dtype)
        self._split(dilations)
        device = torch.empty(0, device=device).device  # None: torch's default device
        if bank is None:
            seed = int(torch.randint(2 ** (SEED_BITS - 1), (), device="cpu")) if seed is None else seed
            init = init_of_layer(init, learn_coeff)
            bank = make_bank(init, out_channels, in_channels, self.kernel_size, groups=groups, seed=seed, **options)
        elif options or seed is not None or init != AUTO:
            given = [*options, *(["seed"] if seed is not None else []), *(["init"] if init != AUTO else [])]
            raise ValueError(f"a bank needs no init, seed or options, got {', '.join(given)}")
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        self._adopt(checked_bank(bank).to(device), dtype or torch.get_default_dtype(), learn_coeff, pointwise, plan)
        self._reset_bias()

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
        dilations: Sequence[int] | None = None,
        **options: Any,
    ) -> FixedConv2d:
        """Makes a FixedConv2d to take the place of `conv`: its bias Parameter, hooks, mode, device and any attribute
        set on it are taken over, not copied, so that `conv` should not be used any more.

        Args:
            conv: a Conv2d, or a subclass that is known.
            init: as FixedConv2d has it, or a FilterBank. "unchanged" and "fill_zero" start from conv's weight.
            seed, learn_coeff, pointwise, plan, dilations, **options: as FixedConv2d takes them.

        Raises:
            TypeError: `conv` is no Conv2d, or one of a kind that cannot be replaced; the message says why.
            ValueError: as `make_bank`.

        Examples:
            >>> conv = nn.Conv2d(3, 8, 3)
            >>> torch.equal(FixedConv2d.from_conv2d(conv).weight, conv.weight)
            True
        """
        if isinstance(conv, FixedConv2d):
            conv = conv.to_conv2d()
        if reason := obstacle(conv):
            raise TypeError(f"conv cannot be replaced: {type(conv).__name__}: {reason}")
        if not isinstance(init, str):
            bank = checked_bank(init)
        else:
            if init in ("unchanged", "fill_zero"):
                options = options | {"weight": conv.weight}
            shape = (conv.out_channels, conv.in_channels, conv.kernel_size)
            bank = make_bank(init_of_layer(init, learn_coeff), *shape, groups=conv.groups, seed=seed, **options)
        fixed_class = REPLACEMENTS.get(class_name(conv), cls)
        fixed = fixed_class.__new__(fixed_class)
        fixed.__dict__.update({k: v for k, v in conv.__dict__.items() if k not in OWN})
        fixed._parameters = {name: p for name, p in conv._parameters.items() if name != "weight"}
        fixed._plain_class = type(conv)
        fixed._split(dilations)
        fixed._adopt(bank.to(conv.weight.device), conv.weight.dtype, learn_coeff, pointwise, plan)
        return fixed

    def _split(self, dilations: Sequence[int] | None) -> None:
        """Splits the output channels over dilations, if there are any."""
        if dilations is not None:
            if type(self).forward is not FixedConv2d.forward:
                raise ValueError(f"dilations are not for {self._plain_class.__name__}, which pads in its own way")
            self.levels, self._plain_class = split_levels(self, dilations), CoConv2d

    def _adopt(self, bank: FilterBank, dtype: torch.dtype, learn_coeff: bool, pointwise: bool, plan: str) -> None:
        """Takes a bank, and makes the Parameters that go with it."""
        self._check_fit(bank)
        self.register_parameter("coeff", nn.Parameter(bank.coefficients().to(dtype)) if learn_coeff else None)
        self.register_parameter(
            "pointwise", nn.Parameter(_mixing(bank, self.out_channels, dtype)) if pointwise else None
        )
        self._held = HeldBank(bank, dtype, bank.device, plan)
        self._hold(bank.without_steering() if learn_coeff else bank)

    @property
    def bank(self) -> FilterBank:
        """Returns the filters. Assign another FilterBank of the same shape to replace them."""
        if self.coeff is None:
            return self._held.bank
        return dataclasses.replace(self._held.bank, coeff=self.coeff.detach().clone(), recipe=None)

    @bank.setter
    def bank(self, bank: FilterBank) -> None:
        self._check_fit(checked_bank(bank))
        bank = bank.to(self._held.device)
        if self.coeff is not None:
            self.coeff.data = bank.coefficients().to(self.coeff.dtype)
            bank = bank.without_steering()
        self._hold(bank)

    @property
    def kernel_plan(self) -> ConvPlan:
        """Tells which kernel runs the layer (its first level), in autocast's dtype where that is on, and what is packed
        for it. Where "auto" chose it, some calls run dense all the same, which is faster there."""
        return self._held.plans_now()[0] if self.coeff is None else DENSE_PLAN

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """Composes (O, I/groups, kh, kw) at each read, in the layer's dtype. To change it, assign `bank`."""
        bank, dtype = self._held.bank, self._held.dtype
        weight = bank.weight(dtype) if self.coeff is None else compose_weight(bank.basis, self.coeff, bank.scale, dtype)
        if type(weight) is Tensor and not torch.compiler.is_compiling():
            weight.__class__ = ComposedWeight  # no copy, and no view
        return weight

    @weight.setter
    def weight(self, value: Any) -> None:
        raise AttributeError(NO_WEIGHT)

    def reset_parameters(self) -> None:
        """Initialises what is learned: the bias as Conv2d does; coeff and pointwise from the bank."""
        if "_held" not in self.__dict__:
            return  # called by Conv2d.__init__
        self._reset_bias()
        with torch.no_grad():
            if self.pointwise is not None:
                self.pointwise.copy_(_mixing(self._held.bank, self.out_channels, self._held.dtype))
            if self.coeff is not None and self._held.bank.recipe is not None:
                self.coeff.copy_(remake_bank(self._held.bank.recipe, self._shape, self.groups).coefficients())

    def _reset_bias(self) -> None:
        if self.bias is not None:
            bound = 1 / math.sqrt(math.prod(self._shape[1:]))
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        pointwise, bias = self.pointwise, self.bias  # once each: a Module takes a while to find them
        if pointwise is None:
            return self._filtered(x, bias)
        return F.conv2d(self._filtered(x, None), pointwise, bias)

    def _filtered(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Convolves with the fixed filters, and adds the bias."""
        return filtered(self, x, bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolves with the weight given: the layer's own, where someone kept `conv.forward` of the Conv2d that
        `convert` made this of; another where someone standardises it."""
        if type(weight) is ComposedWeight and bias is self.bias and torch.equal(weight, self.weight):
            return self.forward(input)
        first = bias if self.pointwise is None else None
        y = (convolve_by_levels if self.levels else nn.Conv2d._conv_forward)(self, input, weight, first)
        return y if self.pointwise is None else F.conv2d(y, self.pointwise, bias)

    def to_conv2d(self, requires_grad: bool = False) -> nn.Conv2d:
        """Returns a plain convolution that computes the same, of the class that this layer replaced. The layer stays.

        With `requires_grad` the filters of the plain one are to be learned. A layer with dilations gives a `CoConv2d`
        or, with a learned 1x1 to fold in, a Conv2d whose kernel has zeros between the pixels.

        Raises:
            TypeError: a Parameter of the layer is parametrized, by a class that torch made for that.
        """
        return plain_conv2d(self, requires_grad)

    def _plan(self) -> ConvPlan:
        """Returns the plan for the dtype that autocast, or else the layer, runs in."""
        return self._held.plan(self._held.call_dtype(), self.training)

    def train(self, mode: bool = True) -> FixedConv2d:
        self._held.drop_weight()
        return super().train(mode)

    def extra_repr(self) -> str:
        bank = self._held.bank
        init = bank.recipe.init if bank.recipe is not None else "given filters"
        levels = f", levels={self.levels}" if self.levels else ""
        return f"{super().extra_repr()}, bank={init}, rank={bank.rank}{levels}"


REPLACEMENTS[f"{CoConv2d.__module__}.{CoConv2d.__qualname__}"] = FixedConv2d


def _mixing(bank: FilterBank, channels: int, dtype: torch.dtype) -> Tensor:
    """Makes the first 1x1 (O, O, 1, 1): random, of unit gain, after drawn filters; the identity after given ones."""
    if bank.recipe is None:
        mix = torch.eye(channels, dtype=torch.float64, device="cpu")
    else:
        mix = torch.from_numpy(Stream(bank.recipe.seed, "pointwise").normal(channels, channels)) / math.sqrt(channels)
    return mix[..., None, None].to(device=bank.device, dtype=dtype)
