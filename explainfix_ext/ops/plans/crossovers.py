"""Crossovers say where a kernel is faster than the dense plan on the CPU, as measured.

bench/tune_cpu.py measures them. Large inputs (bench/wide.py) the op may still hand to the dense plan, call by call
(csrc/cpu/ops/fixed_conv2d.cpp). A geometry is let in if the kernel was at least as fast, beyond noise, in both memory
layouts, forward and backward (bench/results/tune_cpu_*.json). Channels are those of a group, the fewer of input and
output.
"""

from __future__ import annotations

# Index kernel: least channels of 3x3 filters with stride 2. With stride 1, and larger filters, it always pays.
INDEX_STRIDE_2 = {"avx512": 1, "avx2": 16, "plain": 16}
# The same in bfloat16 where the CPU multiplies bfloat16 (AVX-512 here): by stride, for dense banks.
INDEX_BF16 = {1: 32, 2: 64}
# Where it does so with AMX: the same by (kernel size, stride), in NCHW. In channels_last the op takes the dense plan.
INDEX_AMX = {(3, 1): 1, (3, 2): 1, (5, 1): 128, (7, 1): 128}

# Low-rank kernel: (least channels, largest rank), by kernel size.
_Ranks = dict[int, tuple[tuple[int, int], ...]]
LOW_RANK: dict[str, _Ranks] = {
    "avx512": {3: ((64, 6), (8, 4)), 5: ((64, 12), (8, 8)), 7: ((64, 20), (8, 4))},
    "avx2": {3: ((64, 6), (32, 4), (8, 2)), 5: ((64, 12), (32, 8), (8, 4)), 7: ((64, 20), (8, 4))},
    "plain": {3: ((64, 4), (32, 3), (8, 2)), 5: ((64, 8), (32, 6), (8, 4)), 7: ((64, 16), (8, 4))},
}
LOW_RANK_STRIDE_2: _Ranks = {3: ((64, 4), (32, 3), (8, 2)), 5: ((64, 8), (8, 4)), 7: ((64, 8), (16, 4))}
LOW_RANK_BF16: dict[int, _Ranks] = {
    1: {3: ((64, 3), (8, 2)), 5: ((64, 6), (32, 4)), 7: ((64, 6), (32, 4))},
    2: {3: ((64, 4), (8, 2)), 5: ((64, 4),), 7: ((64, 4),)},
}
# Functions that are no product of two DCT rows (PCA): K^2 multiply-adds each. float32, stride 1.
ANY_BASIS: _Ranks = {3: ((128, 6), (64, 3), (16, 2)), 5: ((64, 6), (32, 4)), 7: ((64, 6), (32, 4))}


def index_pays(isa: str, bf16: bool, kernel: int, stride: int, channels: int, density: float, amx: bool) -> bool:
    """Tells whether the index kernel is at least as fast as the dense plan; `amx`: torch uses AMX for such filters."""
    if bf16 and amx:
        few = channels == 1 or (stride == 1 and (channels < 8 or density < 0.5))
        return few or channels >= INDEX_AMX.get((kernel, stride), channels + 1)
    if bf16:
        fast_dense = isa == "avx512"  # elsewhere oneDNN has no bfloat16 arithmetic, and any of our kernels wins
        return not fast_dense or channels >= INDEX_BF16[stride] or (stride == 1 and density < 0.5)
    return stride == 1 or kernel > 3 or channels >= INDEX_STRIDE_2[isa]


def low_rank_pays(isa: str, bf16: bool, kernel: int, stride: int, channels: int, rank: int, dct: bool) -> bool:
    """Tells the same of the low-rank kernel; `dct`: its functions are products of DCT rows, which cost less."""
    if bf16 and isa != "avx512":
        return dct
    if not dct:
        return not bf16 and stride == 1 and _within(ANY_BASIS[kernel], channels, rank)
    ranks = LOW_RANK_BF16[stride] if bf16 else LOW_RANK[isa] if stride == 1 else LOW_RANK_STRIDE_2
    return _within(ranks[kernel], channels, rank)


def depthwise_pays(stride: int, dct: bool) -> bool:
    """Tells the same of the depthwise kernel in NCHW; channels_last and small planes it hands to the dense plan."""
    return stride == 1 and dct


def _within(ranks: tuple[tuple[int, int], ...], channels: int, rank: int) -> bool:
    return any(channels >= least and rank <= largest for least, largest in ranks)
