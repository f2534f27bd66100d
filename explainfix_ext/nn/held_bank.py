"""HeldBank: the filters of one FixedConv2d and what follows from them on this machine, in one object.

The layer decides when filters change; this object decides what that means: which plans are packed anew, what `.to()`
moves, what a pickle leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from explainfix_ext.filters.bank import FilterBank
from explainfix_ext.filters.cut_bank import bank_rows
from explainfix_ext.filters.make_bank import remake_bank
from explainfix_ext.functional import autocast_dtype
from explainfix_ext.ops.plans.plan import DENSE, DENSE_PLAN, ConvPlan, check_plan, make_plan

from .levels import Level


class HeldBank:
    """Holds a layer's bank, its plans and, for inference, the composed weight. It has no plans before `hold`.

    Attributes:
        bank: the filters; the basis alone (a bank of no filters) where the layer learns its coefficients.
        dtype, device: the layer's. The bank keeps its own dtypes; it is on `device`, or on meta without numbers.
        groups: of the convolution.
        force: "auto", or the plan that the user asked for.
        plans: dtype of the input -> its plan. They are packed for this machine, so that no pickle has them.
        weight: what the dense plan keeps of the filters in eval mode, composed; or None. No pickle has it.
        parts: of a layer with levels, the filters of each with plans of their own; `plans` is then empty. No pickle has
            them.
    """

    parts: Sequence[HeldBank] = ()

    def __init__(self, bank: FilterBank, dtype: torch.dtype, device: torch.device, force: str) -> None:
        self.bank, self.dtype, self.device, self.force = bank, dtype, device, force
        self.groups = 1
        self.weight: Tensor | None = None
        self.plans: dict[torch.dtype, ConvPlan] = {}

    def hold(
        self,
        bank: FilterBank,
        stride: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        levels: Sequence[Level] = (),
    ) -> None:
        """Takes `bank` in place of the one before, and packs it for the dtypes that may come, where no tracer watches.

        Args:
            bank: for the layer's device.
            stride, dilation, groups: of the convolution, as it is now.
            levels: of a layer that has several dilations.

        Raises:
            ValueError: the plan that the user asked for is not for such a bank. The former bank stays.
        """
        check_plan(self.force, bank, groups)
        self.bank, self.groups, self.weight = bank, groups, None
        self.plans, self.parts = {}, [self._part(level, stride) for level in levels]
        if not levels and all(type(t) is Tensor for t in bank.tensors):
            geometry: Any = {"stride": stride, "dilation": dilation, "groups": groups, "force": self.force}
            autocast = {torch.bfloat16} if bank.device.type == "cpu" else {torch.bfloat16, torch.float16}
            for dtype in {self.dtype} | autocast:
                self.plans[dtype] = make_plan(bank, dtype, **geometry)

    def _part(self, level: Level, stride: Sequence[int]) -> HeldBank:
        """Holds the filters of a level, which are views of the bank's, or of a hadamard bank a few numbers more."""
        part = HeldBank(self.bank, self.dtype, self.device, self.force)
        part.hold(bank_rows(self.bank, level.outputs, self.groups), stride, level.dilation, level.groups)
        return part

    def drop_weight(self) -> None:
        """Forgets the weight that was kept in eval mode."""
        for held in (self, *self.parts):
            held.weight = None

    def moved(self, fn: Callable[[Tensor], Tensor], shape: tuple[int, int, int, int]) -> FilterBank:
        """Follows `.to()` and the like: notes the new dtype and device, and returns the bank for them, to be held.

        Args:
            fn: what `nn.Module._apply` applies to each Parameter.
            shape: (O, I/groups, kh, kw) of the layer's weight.

        From meta nothing can be copied. There a bank with a recipe is made again; one without stays on meta until a
        state_dict brings it.
        """
        probe = fn(torch.empty(1, dtype=self.dtype, device=self.device))
        self.dtype, self.device, self.weight = probe.dtype, probe.device, None
        if self.bank.device.type != "meta" or self.device.type == "meta":
            return self.bank.to(self.device)
        if self.bank.recipe is None:
            return self.bank
        bank = remake_bank(self.bank.recipe, shape, self.groups).to(self.device)
        return bank if self.bank.shape[0] else bank.without_steering()

    def call_dtype(self) -> torch.dtype:
        """Returns the dtype that autocast, or else the layer, runs in."""
        return autocast_dtype(self.device.type, self.dtype) or self.dtype

    def plan(self, dtype: torch.dtype, training: bool) -> ConvPlan:
        """Returns the plan for inputs of `dtype`. Where it is dense, in eval mode without gradients the composed weight
        comes with it, and is kept until train(), to(), another bank, or pickling."""
        plan = self.plans.get(dtype, DENSE_PLAN)
        if (
            plan.code != DENSE
            or plan.packed is not None
            or torch.is_grad_enabled()
            or training
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()  # which would record how the weight is composed, at the first call only
        ):
            return plan
        if self.weight is None or self.weight.dtype != dtype:
            with torch.inference_mode(False):
                weight = self.bank.weight(dtype)
            if type(weight) is not Tensor:  # a FakeTensor, or a wrapper of torch.func, is of this call only
                return plan
            self.weight = weight
        return ConvPlan(DENSE, "dense, weight kept", self.weight)

    def plans_now(self) -> list[ConvPlan]:
        """Returns the plan of each level, or of the one that there is, for the dtype that the layer runs in now."""
        dtype = self.call_dtype()
        return [part.plans.get(dtype, DENSE_PLAN) for part in self.parts or [self]]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"plans": {}, "weight": None, "parts": ()}  # they are this machine's
