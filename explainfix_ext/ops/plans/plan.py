"""ConvPlan: which kernel runs a bank, and the steering laid out for it.

Python decides only on what is static (geometry, dtype, rank, density, instruction set); what depends on N, H or W is
decided inside the kernels, so that dynamic shapes do not recompile. A kernel hands a call that it cannot do, such as
one with float64 input, to the dense plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from explainfix_ext.filters.bank import FilterBank

from . import cpu, cuda
from .bank_facts import factors_of
from .pack_cuda_low_rank import pack_low_rank

# Kernel families, as csrc/conv_params.h numbers them.
DENSE = 0  # materialise the weight into scratch memory, then the library's dense convolution
INDEX = 1  # an addition for each nonzero filter
LOW_RANK = 2  # L multiply-adds for each filter
DEPTHWISE = 3  # one separable function for each channel
LOW_RANK_TF32 = 4  # the same, on tensor cores that read 19 bits of a float32; chosen at each call
PLANS = {"dense": DENSE, "index": INDEX, "low_rank": LOW_RANK, "depthwise": DEPTHWISE}


@dataclass(frozen=True)
class ConvPlan:
    """What the op's `plan` and `packed` arguments are to be.

    Attributes:
        code: the kernel family, as the op's `plan` takes it.
        name: the same for people.
        packed: the steering as that kernel wants it, or None: the kernel reads the bank itself. The dense plan may have
            the composed weight here, for inference, where memory may be spent to save time, and for depthwise filters,
            which are small; else it is composed anew each time, so that no filter-sized tensor lives on.
    """

    code: int
    name: str
    packed: Tensor | None = None
    late: bool = False

    def pack(self, bank: FilterBank, dtype: torch.dtype, groups: int) -> ConvPlan:
        """The plan with what was left for later. A tracer may follow, if `factors_of` was asked before."""
        if torch.compiler.is_compiling():
            return ConvPlan(self.code, self.name, pack_low_rank(bank.steering, factors_of(bank), dtype, groups))
        with torch.inference_mode(False):
            return ConvPlan(self.code, self.name, pack_low_rank(bank.steering, factors_of(bank), dtype, groups))

    def may_be_kept(self) -> bool:
        """Is `packed` good for later calls? Not if a tracer, a transform of torch.func or a CUDA graph made it. On a
        GPU, waits once: the next call may be on another stream."""
        packed = self.packed
        if torch.compiler.is_compiling() or type(packed) is not Tensor:
            return False
        if torch._C._functorch.is_functorch_wrapped_tensor(packed):
            return False
        if packed.device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():
                return False
            torch.cuda.current_stream(packed.device).synchronize()
        return True


DENSE_PLAN = ConvPlan(DENSE, "dense")


def make_plan(
    bank: FilterBank,
    dtype: torch.dtype,
    *,
    stride: Sequence[int] = (1, 1),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    force: str = "auto",
) -> ConvPlan:
    """The plan for inputs of `dtype`.

    Args:
        stride, dilation, groups: of the convolution.
        force: "auto", or the name in PLANS of the kernel to use wherever it can.

    Raises:
        ValueError: unknown name, or a kernel that is not for such a bank.
    """
    geometry = (bank, dtype, stride, dilation, groups)
    name = list(PLANS)[check_plan(force, bank, groups)]
    if bank.device.type not in ("cpu", "cuda"):
        return DENSE_PLAN
    device: Any = cuda if bank.device.type == "cuda" else cpu
    if force == "auto":
        name = device.fastest(*geometry)
    if name == "index" and not device.tiles_fit(bank, dtype, stride, dilation):
        name = "dense"
    if name == "low_rank" and device is cuda:
        if cuda.low_rank_fits(bank, dtype, stride, dilation):
            factors_of(bank)
            return ConvPlan(LOW_RANK, name, late=True)
        name = "dense"
    with torch.inference_mode(False):  # it outlives the mode that it is made in
        packed = device.packed(name, *geometry)
    return ConvPlan(PLANS[name], name, packed) if name != "dense" or packed is not None else DENSE_PLAN


def plan_of(bank: FilterBank, dtype: torch.dtype, **geometry: Any) -> ConvPlan:
    """`make_plan`, made once for each bank and geometry. A tracer cannot follow it: there, what was made before."""
    made = bank.__dict__.get("_plans", {})
    key = (dtype, *geometry.values())
    if torch.compiler.is_compiling():
        return made.get(key, DENSE_PLAN)
    if key not in made:
        plan = make_plan(bank, dtype, **geometry)
        if plan.late:
            plan = plan.pack(bank, dtype, geometry["groups"])
            if not plan.may_be_kept():
                return plan
        made[key] = plan
        bank.__dict__["_plans"] = made
    return made[key]


def check_plan(name: str, bank: FilterBank, groups: int = 1) -> int:
    """The code of the plan `name` ("auto" is dense's), if that kernel is for such a bank.

    Raises:
        ValueError: it is not; the message says what it is for.
    """
    if name == "auto":
        return DENSE
    if name not in PLANS:
        raise ValueError(f'plan must be "auto" or one of {", ".join(PLANS)}, got {name!r}')
    single = bank.shape[1] == 1 and bank.shape[0] % groups == 0 and groups > 1
    depthwise = (bank.index is not None or bank.device.type == "cuda") and single
    needs = {
        "index": (bank.index is not None, "an index bank"),
        "low_rank": (bank.index is None, "a bank of coefficients"),
        "depthwise": (depthwise, "an index bank with one input channel a group"),
    }
    fits, what = needs.get(name, (True, ""))
    if not fits:
        kind = "coefficients" if bank.index is None else "an index bank"
        raise ValueError(f"plan {name!r} needs {what}, got {kind} of shape {list(bank.shape)} and {groups} groups")
    return PLANS[name]
