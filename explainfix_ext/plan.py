"""ConvPlan: which kernel runs a bank, and the steering laid out for it.

Python decides only on what is static (geometry, dtype, rank, density, instruction set); what depends on N, H or W is
decided inside the kernels, so that dynamic shapes do not recompile. A kernel hands a call that it cannot do, such as
one with float64 input, to the dense plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import _loader, crossovers, ops
from .bank import FilterBank
from .basis import dct_basis
from .packing import pack_index

# Kernel families, as csrc/conv_params.h numbers them.
DENSE = 0  # materialise the weight into scratch memory, then the library's dense convolution
INDEX = 1  # an addition for each nonzero filter
LOW_RANK = 2  # L multiply-adds for each filter
DEPTHWISE = 3  # one separable function for each channel
PLANS = {"dense": DENSE, "index": INDEX, "low_rank": LOW_RANK, "depthwise": DEPTHWISE}

ISAS = ("plain", "avx2", "avx512")

_T = TypeVar("_T")


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
    code = _fastest(bank, dtype, stride, dilation, groups) if force == "auto" else check_plan(force, bank, groups)
    if code == INDEX and not _tiles_fit(bank, dtype, stride, dilation):
        code = DENSE
    if code == INDEX:
        return ConvPlan(INDEX, "index", packed_index(bank, groups, stride[0]))
    if bank.shape[1] == 1 and groups > 1 and bank.device.type == "cpu":
        with torch.inference_mode(False):
            # K^2 numbers a channel are little to keep. Where a depthwise kernel hands the call to torch, composing them
            # anew cost up to as much as the convolution: what is allocated each time moves torch's own memory about.
            return ConvPlan(code, list(PLANS)[code], bank.weight(dtype))
    return ConvPlan(code, list(PLANS)[code]) if code != DENSE else DENSE_PLAN


def plan_of(bank: FilterBank, dtype: torch.dtype, **geometry: Any) -> ConvPlan:
    """`make_plan`, made once for each bank and geometry. A tracer cannot follow it: there, what was made before."""
    made = bank.__dict__.get("_plans", {})
    key = (dtype, *geometry.values())
    if torch.compiler.is_compiling():
        return made.get(key, DENSE_PLAN)
    if key not in made:
        made[key] = make_plan(bank, dtype, **geometry)
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
    depthwise = bank.shape[1] == 1 and bank.shape[0] % groups == 0 and groups > 1
    needs = {
        "index": (bank.index is not None, "an index bank"),
        "low_rank": (bank.index is None, "a bank of coefficients"),
        "depthwise": (bank.index is not None and depthwise, "an index bank with one input channel a group"),
    }
    fits, what = needs.get(name, (True, ""))
    if not fits:
        kind = "coefficients" if bank.index is None else "an index bank"
        raise ValueError(f"plan {name!r} needs {what}, got {kind} of shape {list(bank.shape)} and {groups} groups")
    return PLANS[name]


def packed_index(bank: FilterBank, groups: int, stride: int) -> Tensor:
    """`pack_index` of the bank, made once."""
    index = bank.index
    assert index is not None
    with torch.inference_mode(False):  # it outlives the mode that it is made in
        return _once(
            bank,
            f"_packed_{groups}_{stride}",
            lambda: pack_index(index, bank.kernel_size[0], bank.rank, groups, stride),
        )


def cpu_isa() -> str:
    """The instruction set that the CPU kernels use: "avx512", "avx2", or "plain": what every CPU of the kind has."""
    return ISAS[ops.cpu_isa(torch.empty(0), -1)]


def set_cpu_isa(name: str | None) -> str:
    """Limit the CPU kernels of this process to an instruction set (None: the best); returns the one in use. For tests
    and benchmarks: layers that exist keep the plans that they chose."""
    if name is not None and name not in ISAS:
        raise ValueError(f"isa must be one of {', '.join(ISAS)}, got {name!r}")
    return ISAS[ops.cpu_isa(torch.empty(0), len(ISAS) - 1 if name is None else ISAS.index(name))]


def _tiles_fit(bank: FilterBank, dtype: torch.dtype, stride: Sequence[int], dilation: Sequence[int]) -> bool:
    """Is there a tile kernel for this geometry and dtype on this device? csrc/cpu/tiling.cpp asks the same."""
    kernel = bank.kernel_size
    return (
        bank.device.type == "cpu"
        and _loader.LOADED["cpu"] is not None
        and dtype in (torch.float32, torch.bfloat16)
        and kernel[0] == kernel[1]
        and kernel[0] in (3, 5, 7)
        and tuple(stride) in ((1, 1), (2, 2))
        and tuple(dilation) == (1, 1)
    )


def _fastest(bank: FilterBank, dtype: torch.dtype, stride: Sequence[int], dilation: Sequence[int], groups: int) -> int:
    """By the measured crossovers. What the bank's numbers say is looked up once for each bank."""
    if not _tiles_fit(bank, dtype, stride, dilation):
        return DENSE
    out_channels, channels = bank.shape[:2]
    isa, bf16, kernel = cpu_isa(), dtype == torch.bfloat16, bank.kernel_size[0]
    fewer = min(out_channels // groups, channels)
    if bank.index is not None and channels == 1 and groups > 1:
        return DEPTHWISE if crossovers.depthwise_pays(stride[0], _is_dct(bank)) else DENSE
    if bank.index is not None:
        return INDEX if crossovers.index_pays(isa, bf16, kernel, stride[0], fewer, _density(bank)) else DENSE
    if bank.steering.dtype != torch.float32:
        return DENSE
    pays = crossovers.low_rank_pays(isa, bf16, kernel, stride[0], fewer, bank.rank, _is_dct(bank))
    return LOW_RANK if pays else DENSE


def _density(bank: FilterBank) -> float:
    return _once(bank, "_density", lambda: bank.density)


def _is_dct(bank: FilterBank) -> bool:
    """Is every basis function a product of two rows of the DCT-II? Those the kernels compute fast."""

    def check() -> bool:
        dct = dct_basis(bank.kernel_size).flatten(1)
        nearest = (bank.basis.flatten(1)[:, None] - dct).abs().amax(2).amin(1)
        return bool((nearest < 1e-9).all())

    return _once(bank, "_dct", check)


def _once(bank: FilterBank, name: str, make: Callable[[], _T]) -> _T:
    """The bank is immutable, and keeps what was found out about it."""
    if name not in bank.__dict__:
        bank.__dict__[name] = make()
    return bank.__dict__[name]
