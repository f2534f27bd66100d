"""ConvPlan: which kernel runs a bank, and the bank laid out as that kernel reads it.

Python decides only on what is static (geometry, dtype, rank, density, instruction set); what depends on N, H or W is
decided inside the kernels, so that dynamic shapes do not recompile. A kernel hands a call that it cannot do, such as
one with float64 input, to the dense plan.

`make_plan` asks cpu.py or cuda.py which kernel is fastest and has it packed. Layers hold their plans; `plan_of` keeps
those of the public function with the bank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from explainfix_ext.filters.bank import FilterBank

from . import cpu, cuda
from .card_check import check_card

# Kernel families, numbered as in csrc/shared/conv_params.h.
DENSE = 0  # composes the weight in scratch memory, then runs the library's dense convolution
INDEX = 1  # an addition for each nonzero filter; on the CPU
LOW_RANK = 2  # L multiply-adds for each filter; on the CPU
DEPTHWISE = 3  # one separable function for each channel
# Added where "auto" chose. The CPU's ops then run dense what torch does faster by its size or memory layout; on a GPU,
# tune.py decides by measurement.
AUTO = 16
HADAMARD = 5  # a fast transform over the channels, between a filter for each input and one for each output
PLANS = {"dense": DENSE, "index": INDEX, "low_rank": LOW_RANK, "depthwise": DEPTHWISE, "hadamard": HADAMARD}


@dataclass(frozen=True)
class ConvPlan:
    """This class holds what the op's `plan` and `packed` arguments are to be.

    Attributes:
        code: the kernel family, and AUTO, as the op's `plan` takes it.
        name: the same for people.
        packed: the bank as that kernel wants it, or None: the kernel reads the bank itself. The dense plan may have the
            composed weight here, for inference, where memory may be spent to save time, and for depthwise filters,
            which are small; else it is composed anew each time, so that no filter-sized tensor lives on.
    """

    code: int
    name: str
    packed: Tensor | None = None


class Kernels(Protocol):
    """The module of a device, cpu.py or cuda.py, answers these questions about its kernels."""

    def fastest(
        self, bank: FilterBank, dtype: torch.dtype, stride: Sequence[int], dilation: Sequence[int], groups: int
    ) -> str:
        """Names the plan that is fastest by the measured crossovers."""
        ...

    def fits(
        self,
        name: str,
        bank: FilterBank,
        dtype: torch.dtype,
        stride: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> bool:
        """Tells whether the kernel of a plan takes such a convolution."""
        ...

    def packed(
        self,
        name: str,
        bank: FilterBank,
        dtype: torch.dtype,
        stride: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> Tensor | None:
        """Packs the bank for a plan."""
        ...


DENSE_PLAN = ConvPlan(DENSE, "dense")


def make_plan(
    bank: FilterBank,
    dtype: torch.dtype,
    *,
    stride: Sequence[int] = (1, 1),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    force: str = "auto",
    device: torch.device | str | None = None,
) -> ConvPlan:
    """Makes the plan of `bank` for inputs of `dtype`.

    Args:
        bank: the filters. What is packed for a kernel stays on their device.
        dtype: of the input.
        stride, dilation, groups: of the convolution.
        force: "auto", or the name in PLANS of the kernel to use wherever it can.
        device: that is to run it; None: the bank's. It need not be here.

    Raises:
        ValueError: unknown name, or a kernel that is not for such a bank.
    """
    device = bank.device if device is None else torch.device(device)
    check_plan(force, bank, groups, device)
    if device.type not in ("cpu", "cuda"):
        return DENSE_PLAN
    if bank.device.type == "cuda" and type(bank.basis) is Tensor:
        check_card(bank.device)
    kernels: Kernels = cuda if device.type == "cuda" else cpu
    geometry = (bank, dtype, stride, dilation, groups)
    name = kernels.fastest(*geometry) if force == "auto" else force
    if not kernels.fits(name, *geometry):
        name = "dense"
    with torch.inference_mode(False):  # the plan outlives the mode that it is made in
        packed = kernels.packed(name, *geometry)
    if name == "dense":
        return DENSE_PLAN if packed is None else ConvPlan(DENSE, name, packed)
    return ConvPlan(PLANS[name] + (AUTO if force == "auto" else 0), name, packed)


def plan_of(bank: FilterBank, dtype: torch.dtype, **geometry: Any) -> ConvPlan:
    """Returns `make_plan(bank, dtype, **geometry)`, made once and kept in the bank's cache.

    A tracer cannot follow how a plan is made; it gets the one that an ordinary call made before, or the dense one.
    """
    key = ("plan", dtype, *geometry.values())
    if torch.compiler.is_compiling():
        return bank.cache.get(key, DENSE_PLAN)
    if key not in bank.cache:
        bank.cache[key] = make_plan(bank, dtype, **geometry)
    return bank.cache[key]


def check_plan(name: str, bank: FilterBank, groups: int = 1, device: torch.device | None = None) -> int:
    """Returns the code of the plan `name` (for "auto" that of dense), if that kernel is for such a bank on `device`,
    or else on the bank's.

    Raises:
        ValueError: it is not; the message says what it is for.
    """
    if name == "auto":
        return DENSE
    if name not in PLANS:
        raise ValueError(f'plan must be "auto" or one of {", ".join(PLANS)}, got {name!r}')
    single = bank.shape[1] == 1 and bank.shape[0] % groups == 0 and groups > 1
    on_gpu = (device or bank.device).type == "cuda"
    depthwise = (bank.index is not None or (bank.coeff is not None and on_gpu)) and single
    needs = {
        "index": (bank.index is not None, "an index bank"),
        "low_rank": (bank.coeff is not None, "a bank of coefficients"),
        "depthwise": (depthwise, "an index bank with one input channel a group"),
        "hadamard": (bank.hadamard is not None, "a hadamard bank"),
    }
    fits, what = needs.get(name, (True, ""))
    if not fits:
        kinds = {"coefficients": bank.coeff, "an index bank": bank.index, "a hadamard bank": bank.hadamard}
        kind = next(name for name, part in kinds.items() if part is not None)
        raise ValueError(f"plan {name!r} needs {what}, got {kind} of shape {list(bank.shape)} and {groups} groups")
    return PLANS[name]
