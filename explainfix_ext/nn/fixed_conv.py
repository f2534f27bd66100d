"""FixedConv: what FixedConv1d and FixedConv2d have in common, a convolution of torch whose filters are a fixed bank.

bank_state.py has how it is saved, moved and copied; held_bank.py what it holds of its filters; composed_weight.py what
`weight` returns; refusals.py what it says to tools that want to store a weight.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainfix_ext import functional  # called by attribute, where torch.fx.wrap can catch the call
from explainfix_ext._support.layout import as_pair
from explainfix_ext._support.models import class_name
from explainfix_ext.filters.bank import FilterBank, checked_bank
from explainfix_ext.filters.basis import compose_weight
from explainfix_ext.filters.choose_init import AUTO, init_of_layer
from explainfix_ext.filters.make_bank import make_bank, remake_bank
from explainfix_ext.filters.random_streams import SEED_BITS, Stream
from explainfix_ext.ops.plans.plan import DENSE_PLAN, ConvPlan

from .bank_state import BankState
from .composed_weight import ComposedWeight
from .follow_rank0 import follow_rank0
from .held_bank import HeldBank
from .refusals import NO_WEIGHT, Refusals
from .replaceable import REPLACEMENTS, obstacle

# Attributes not taken over when this layer replaces a plain one, or a plain one replaces it. save_memory has two.
_OWN = ("_parameters", "_held", "_plain_class", "_saving", "__module__")
Self = TypeVar("Self", bound="FixedConv")


class FixedConv(BankState, Refusals, nn.modules.conv._ConvNd):
    """This is what a FixedConv1d and a FixedConv2d are. The documentation of FixedConv2d says what it does.

    Each of the two names its plain class, and torch's function for a convolution with a weight.
    """

    coeff: nn.Parameter | None
    pointwise: nn.Parameter | None
    _plain_class: type[nn.modules.conv._ConvNd]
    _plain_conv: Callable[..., Tensor]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
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
        **options: Any,
    ) -> None:
        # On meta, the plain class's own weight takes no memory; register_parameter then turns it away.
        geometry: Any = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        super().__init__(*geometry, False, padding_mode, "meta", dtype)  # type: ignore[call-arg]
        device = torch.empty(0, device=device).device  # None: torch's default device
        if bank is None:
            seed = int(torch.randint(2 ** (SEED_BITS - 1), (), device="cpu")) if seed is None else seed
            init = init_of_layer(init, learn_coeff, self.kernel_size)
            bank = make_bank(init, out_channels, in_channels, self._shape[2:], groups=groups, seed=seed, **options)
        elif options or seed is not None or init != AUTO:
            given = [*options, *(["seed"] if seed is not None else []), *(["init"] if init != AUTO else [])]
            raise ValueError(f"a bank needs no init, seed or options, got {', '.join(given)}")
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        self._adopt(checked_bank(bank).to(device), dtype or torch.get_default_dtype(), learn_coeff, pointwise, plan)
        self._reset_bias()

    @classmethod
    def _from_conv(
        cls: type[Self],
        conv: Any,
        init: str | FilterBank = "unchanged",
        *,
        seed: int = 0,
        learn_coeff: bool = False,
        pointwise: bool = False,
        plan: str = "auto",
        **options: Any,
    ) -> Self:
        """Makes a layer to take the place of `conv`, as `from_conv1d` and `from_conv2d` say."""
        if isinstance(conv, FixedConv):
            conv = conv._to_conv()
        if reason := obstacle(conv, cls._plain_class):
            raise TypeError(f"conv cannot be replaced: {type(conv).__name__}: {reason}")
        if not isinstance(init, str):
            bank = checked_bank(init)
        else:
            kernel = as_pair(conv.kernel_size)
            if init in ("unchanged", "fill_zero"):
                options = options | {"weight": conv.weight.reshape(*conv.weight.shape[:2], *kernel)}
            shape = (conv.out_channels, conv.in_channels, kernel)
            init = init_of_layer(init, learn_coeff, conv.kernel_size)
            bank = make_bank(init, *shape, groups=conv.groups, seed=seed, **options)
        fixed_class = REPLACEMENTS.get(class_name(conv), cls)
        fixed = fixed_class.__new__(fixed_class)
        fixed.__dict__.update({k: v for k, v in conv.__dict__.items() if k not in _OWN})
        fixed._parameters = {name: p for name, p in conv._parameters.items() if name != "weight"}
        fixed._plain_class = type(conv)
        fixed._adopt(bank.to(conv.weight.device), conv.weight.dtype, learn_coeff, pointwise, plan)
        return fixed

    def _adopt(self, bank: FilterBank, dtype: torch.dtype, learn_coeff: bool, pointwise: bool, plan: str) -> None:
        """Takes a bank, and makes the Parameters that go with it."""
        self._check_fit(bank)
        self.register_parameter("coeff", nn.Parameter(bank.coefficients().to(dtype)) if learn_coeff else None)
        self.register_parameter("pointwise", nn.Parameter(self._mixing(bank, dtype)) if pointwise else None)
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
        """Tells which kernel runs the layer, in autocast's dtype where that is on, and what is packed for it. Where
        "auto" chose it, calls of some sizes and layouts run dense all the same, which is faster there."""
        return self._held.plans.get(self._held.call_dtype(), DENSE_PLAN) if self.coeff is None else DENSE_PLAN

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """Composes (O, I/groups, kh, kw), of a FixedConv1d (O, I/groups, K), at each read, in the layer's dtype. To
        change it, assign `bank`."""
        bank, dtype = self._held.bank, self._held.dtype
        weight = bank.weight(dtype) if self.coeff is None else compose_weight(bank.basis, self.coeff, bank.scale, dtype)
        weight = weight if len(self.kernel_size) == 2 else weight.squeeze(2)
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
                self.pointwise.copy_(self._mixing(self._held.bank, self._held.dtype))
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
        return self._plain_conv(self._filtered(x, None), pointwise, bias)

    def _filtered(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Convolves with the fixed filters, and adds the bias."""
        follow_rank0()
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        return self._run_filters(x, bias, self.stride, padding, self.dilation)

    def _run_filters(self, x: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any) -> Tensor:
        """Convolves a picture, (N, C, H, W) or (C, H, W), with the fixed filters; pairs are (height, width)."""
        coeff, bank, geometry = self.coeff, self._held.bank, (stride, padding, dilation, self.groups)
        if coeff is not None:
            return functional.convolve_learned(x, bank.basis, coeff, bias, *geometry, bank.scale)
        return functional.convolve_bank(x, bank, self._plan(), bias, *geometry)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolves with the weight given: the layer's own, where someone kept `conv.forward` of the Conv2d that
        `convert` made this of; another where someone standardises it."""
        if type(weight) is ComposedWeight and bias is self.bias and torch.equal(weight, self.weight):
            return self.forward(input)
        if self.pointwise is None:
            return super()._conv_forward(input, weight, bias)  # type: ignore[misc]
        return self._plain_conv(super()._conv_forward(input, weight, None), self.pointwise, bias)  # type: ignore[misc]

    def _to_conv(self, requires_grad: bool = False) -> Any:
        """Makes a plain convolution, as `to_conv1d` and `to_conv2d` say."""
        if torch.nn.utils.parametrize.is_parametrized(self):
            names = ", ".join(cast(nn.ModuleDict, self.parametrizations))
            raise TypeError(f"the layer's {names} is parametrized: remove_parametrizations first")
        plain = self._plain_class.__new__(self._plain_class)
        plain.__dict__.update({k: v for k, v in self.__dict__.items() if k not in _OWN})
        weight = self.weight.detach()
        if self.pointwise is not None:  # each group's filters, mixed into all outputs: one group then
            mix = self.pointwise.detach().flatten(1)
            groups = zip(mix.chunk(self.groups, 1), weight.chunk(self.groups), strict=True)
            weight = torch.cat([torch.tensordot(m, w, dims=1) for m, w in groups], 1)
            plain.groups = 1
        others = {name: p for name, p in self._parameters.items() if name not in ("coeff", "pointwise")}
        plain._parameters = {"weight": nn.Parameter(weight, requires_grad), **others}
        return plain

    def _plan(self) -> ConvPlan:
        """Returns the plan for the dtype that autocast, or else the layer, runs in."""
        return self._held.plan(self._held.call_dtype(), self.training)

    def train(self: Self, mode: bool = True) -> Self:
        self._held.weight = None
        return super().train(mode)

    def extra_repr(self) -> str:
        bank = self._held.bank
        init = bank.recipe.init if bank.recipe is not None else "given filters"
        return f"{super().extra_repr()}, bank={init}, rank={bank.rank}"

    def _mixing(self, bank: FilterBank, dtype: torch.dtype) -> Tensor:
        """Makes the first 1x1 (O, O, 1, 1) or (O, O, 1): random, of unit gain, after drawn filters; the identity after
        given ones."""
        channels = self.out_channels
        if bank.recipe is None:
            mix = torch.eye(channels, dtype=torch.float64, device="cpu")
        else:
            drawn = Stream(bank.recipe.seed, "pointwise").normal(channels, channels)
            mix = torch.from_numpy(drawn) / math.sqrt(channels)
        return mix.reshape(channels, channels, *(1 for _ in self.kernel_size)).to(device=bank.device, dtype=dtype)
