"""Lays an index bank out as the CPU kernels read it: `packed`, int32. csrc/shared/packed_layout.h has the same structs.

The response z[i, l] is input channel i filtered by basis function l. A kernel computes the responses of a block of
input channels at the pixels of a tile, and stores each as a row; row 0 is zero. Then each output adds the rows that its
filters name, and subtracts those of filters that are the negative of a function. Offsets are in words (int32) from the
start of `packed`.

    header     offset of the forward section; of the input gradient's; the stride that the latter is for, and
               whether functions go by their number in the DCT
    section    groups, blocks, chunks, rows and channels of the largest block, nonzero filters; then the number of each
               group's first block, and of all blocks; then the blocks
    block      channels [first, end), number of rows, of segments; offset of the segments, of the ops, of the quad
               lists
    segment    ops of one kind: u (or SQUARE), columns, ops [first, end)
    op         channel, first row, columns (bit v: compute function (u, v)), a channel to prefetch or -1
    quad list  for each chunk of 64 outputs: number of quads, their offset, the offset of their rows
    quad       uint16 counts of rows to add and to subtract, four output channels (value O = padding)
    rows       uint16 [count][4]: the next row that each of the four outputs adds, and then those that it subtracts;
               padded with row 0

With stride 1 the input gradient's section is the same with inputs and outputs exchanged. With stride 2 it names, for
each function of each input channel, the outputs whose filter it is, for their gradients are summed before they are
filtered:

    section    groups, blocks of a group, blocks of the outputs, functions, rows and channels of the largest block,
               nonzero filters; then the blocks
    block      channels [first, end), offset of its rows, offset of its quad lists (one for each block of outputs)
    rows       [channel][function]: which sum that is, counted from 1; 0 if no filter uses it
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from explainfix_ext.ops.binaries import cpu_isa

from .bank_facts import SignedDct
from .packed_words import PackedWords, split_rows
from .quad_lists import quad_list

# csrc/shared/packed_layout.h has the same numbers; tests/ops/plans/test_packed_layout.py compares them.
HEADER_WORDS = 3
SECTION_WORDS = 6
BLOCK_WORDS = 7
SEGMENT_WORDS = 4
OP_WORDS = 4
CHUNK_OUTPUTS = 64  # outputs whose lists are sorted together; a task takes whole chunks
# In place of a u, which may be K or more where there are more than K^2 functions: all (u, v) with bits u and v set in
# the columns, which are the lowest two or all K.
SQUARE = 2**31 - 1
STRIDE2_SECTION_WORDS = 7
STRIDE2_BLOCK_WORDS = 4
STRIDE2_OUTPUTS = 128  # of a block; 64 to 512 are within 15 %

STRIDE2_ROWS = 144  # sums of a block, at most
LIST_ROWS = 14  # of a block, that an output adds: more would not pay
MOST_ROWS = 640  # of a block's z
PREFETCH = 6  # ops between asking for a channel and using it
ALL_FROM = 0.7  # share of the functions of a square from which on it is faster to compute all of them at once


def outputs_fit(outputs: int, stride: int) -> bool:
    """Tells whether there can be lists for so many outputs of a group. With stride 2 an output is a row, by number, of
    what the gradient's lists add."""
    return stride == 1 or outputs < 2**16


def pack_index(
    index: Tensor,
    kernel_size: int,
    rank: int,
    groups: int,
    stride: int = 1,
    dct: SignedDct | None = None,
    forward_only: bool = False,
) -> Tensor:
    """Makes the `packed` argument of the index plan on the CPU, int32.

    Args:
        index: (O, I/groups) uint8; `rank` or more is the zero filter.
        kernel_size: K of the K x K filters.
        rank: L, the number of basis functions.
        groups, stride: of the convolution; stride 1 or 2.
        dct: what the functions are, where all are DCT functions and negatives of these.
        forward_only: leave the input gradient's section out, which then begins at the words' end.
    """
    # Wider than uint8: functions are counted up to the next multiple of K, which may be more than 255.
    names, minus = np.arange(256, dtype=np.int16), np.zeros(256, bool)
    if dct is not None:
        names[:rank], names[rank:], minus[:rank] = dct.number, kernel_size**2, dct.negative
        rank = kernel_size**2
    by_group = index.cpu().numpy().reshape(groups, len(index) // groups, index.shape[1])
    forward = Filters(names[by_group], minus[by_group], kernel_size, rank)
    words = PackedWords()
    _, header = words.reserve(HEADER_WORDS)
    forward_at = words.size
    _add_section(words, forward)
    gradient_at = words.size
    if forward_only:
        pass
    elif stride == 1:
        _add_section(words, forward.transposed())
    else:
        _add_stride2_grad_section(words, forward)
    header[:] = (forward_at, gradient_at, stride + (0 if dct is None else 1 << 16))
    return torch.from_numpy(words.array())


class Filters(NamedTuple):
    """Each filter's function `name` (rank or more: the zero filter) and whether it is `minus` that one, both
    (groups, O/groups, I/groups)."""

    name: np.ndarray
    minus: np.ndarray
    kernel_size: int
    rank: int

    def transposed(self) -> Filters:
        return self._replace(name=self.name.transpose(0, 2, 1), minus=self.minus.transpose(0, 2, 1))


def _add_section(words: PackedWords, filters: Filters) -> None:
    kernel_size, rank = filters.kernel_size, filters.rank
    groups, outputs, channels = filters.name.shape
    nonzero = filters.name < rank
    used = [_used_rows(name, kernel_size, rank) for name in filters.name]
    target = _block_rows(nonzero.mean() if nonzero.size else 1.0, np.sum(used) / max(1, groups * channels))
    longest = [math.ceil(u.sum() / max(1, round(u.sum() / target))) for u in used]
    ranges = [split_rows(u.sum(1), max(1, most)) for u, most in zip(used, longest, strict=True)]
    blocks = sum(map(len, ranges))
    chunks = -(-outputs // CHUNK_OUTPUTS)
    _, header = words.reserve(SECTION_WORDS + groups + 1)
    _, table = words.reserve(BLOCK_WORDS * blocks)
    table = table.reshape(-1, BLOCK_WORDS)
    block, largest = 0, (0, 0)
    for g in range(groups):
        header[SECTION_WORDS + g] = block
        for begin, end in ranges[g]:
            ops, segments, row_of, rows = _transform(used[g][begin:end], begin, kernel_size)
            largest = (max(largest[0], rows), max(largest[1], end - begin))
            edge = begin == 0 or end == channels
            part = np.s_[g, :, begin:end]
            row = row_of[np.arange(end - begin), np.minimum(filters.name[part], row_of.shape[1] - 1)]
            lists = words.add(quad_list(words, nonzero[part], filters.minus[part], row, edge, CHUNK_OUTPUTS))
            table[block] = (begin, end, rows, len(segments), words.add(segments), words.add(ops), lists)
            block += 1
    header[SECTION_WORDS + groups] = block
    header[:SECTION_WORDS] = (groups, blocks, chunks, *largest, int(nonzero.sum()))


def _add_stride2_grad_section(words: PackedWords, filters: Filters) -> None:
    rank, (groups, outputs, channels) = filters.rank, filters.name.shape
    functions = max(rank, filters.kernel_size**2)
    largest = max(1, STRIDE2_ROWS // rank)
    blocks = -(-channels // largest)
    bounds = np.append(np.arange(0, outputs, STRIDE2_OUTPUTS), outputs)
    _, header = words.reserve(STRIDE2_SECTION_WORDS)
    _, table = words.reserve(STRIDE2_BLOCK_WORDS * groups * blocks)
    most = 0
    for row, (g, i) in zip(table.reshape(-1, STRIDE2_BLOCK_WORDS), np.ndindex(groups, blocks), strict=True):
        begin, end = i * largest, min((i + 1) * largest, channels)
        uses = filters.name[g, :, begin:end, None] == np.arange(rank)  # (outputs, channels, functions)
        used = uses.any(0)
        rows = np.zeros((end - begin, functions), np.int32)
        rows[:, :rank][used] = np.arange(1, used.sum() + 1)
        most = max(most, int(used.sum()))
        sums, minus = uses[:, used].T, filters.minus[g, :, begin + np.nonzero(used)[0]]
        row_of = np.broadcast_to(np.arange(1, outputs + 1), sums.shape)
        lists = [
            quad_list(words, sums[:, a:b], minus[:, a:b], row_of[:, a:b], a == 0) for a, b in pairwise(bounds.tolist())
        ]
        row[:] = (begin, end, words.add(rows), words.add(np.concatenate(lists)))
    nonzero = int((filters.name < rank).sum())
    header[:] = (groups, blocks, len(bounds) - 1, functions, most, min(largest, channels), nonzero)


def _block_rows(density: float, functions: float) -> int:
    """Chooses about how many rows of z a block has, for this share of nonzero filters and functions that a channel is
    filtered by.

    z about fits the first-level cache: with AVX-512 a row is 448 bytes, with AVX2 96. But a list is to have about 14
    rows, for an output's sums are loaded and stored once a block. Measured on Sapphire Rapids, 64 to 512 channels,
    K = 3, 5, 7, densities 0.1 to 1: within 10 % of the best of 48 to 1000 rows."""
    least = 96 if cpu_isa() == "avx512" else 320
    return int(min(max(LIST_ROWS * functions / max(density, 1e-3), least), MOST_ROWS))


def _used_rows(matrix: np.ndarray, kernel_size: int, rank: int) -> np.ndarray:
    """Finds which functions of which channel any filter uses: (I, L rounded up to a multiple of K) bool."""
    functions = -(-rank // kernel_size) * kernel_size
    used = np.zeros((matrix.shape[1], functions), bool)
    outputs, channels = np.nonzero(matrix < rank)
    used[channels, matrix[outputs, channels]] = True
    if rank == kernel_size**2:
        used[used.mean(1) >= ALL_FROM] = True
        four = _lowest_four(kernel_size)
        if not used[:, ~four].any():  # here and there it would be one kind of ops more
            used[used[:, four].mean(1) >= ALL_FROM] = four
    return used


def _lowest_four(kernel_size: int) -> np.ndarray:
    """Marks the functions (u, v) of u, v < 2 among K^2."""
    low = np.arange(kernel_size) < 2
    return np.outer(low, low).ravel()


def _transform(used: np.ndarray, first: int, kernel_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Makes the ops of a block that begins at channel `first`.

    Ops of one kind follow each other, so that the processor predicts the kernel's branch on the kind.

    Returns:
        (ops, segments, the row of each (channel, function), number of rows)
    """
    table = used.reshape(len(used), -1, kernel_size)
    columns = table @ (1 << np.arange(kernel_size))
    side = np.zeros(len(used), np.int64)  # of a channel's square, if its functions are one
    if used.shape[1] == kernel_size**2:
        side[used.all(1)] = kernel_size
        four = _lowest_four(kernel_size)
        side[~used[:, ~four].any() & used[:, four].all(1)] = 2
    channel, kind = np.nonzero(columns * (side == 0)[:, None])
    squares = np.flatnonzero(side)
    column = np.append(columns[channel, kind], (1 << side[squares]) - 1)
    channel = np.append(channel, squares)
    kind = np.append(kind, np.full(len(squares), SQUARE))
    order = np.lexsort((channel, column, kind))
    channel, kind, column = channel[order], kind[order], column[order]

    part = kind != SQUARE
    sizes = np.where(part, table[channel, np.minimum(kind, table.shape[1] - 1)].sum(1), side[channel] ** 2)
    row = 1 + np.cumsum(sizes) - sizes
    row_of_u = np.zeros(columns.shape, np.int64)
    row_of_u[channel[part], kind[part]] = row[part]
    square = channel[~part]
    row_of_u[square] = row[~part, None] + side[square, None] * np.arange(columns.shape[1])
    row_of = (row_of_u[..., None] + np.cumsum(table, 2) - 1).reshape(used.shape)

    prefetch = np.full(len(channel), -1)
    _, first_touch = np.unique(channel, return_index=True)
    ahead = first_touch[first_touch >= PREFETCH]
    prefetch[ahead - PREFETCH] = channel[ahead] + first
    ops = np.stack([channel + first, row, column, prefetch], 1).reshape(len(channel), OP_WORDS)
    change = np.flatnonzero(np.diff(kind, prepend=-1) | np.diff(column, prepend=-1))
    ends = np.append(change[1:], len(kind))[: len(change)]
    segments = np.stack([kind[change], column[change], change, ends], 1).reshape(len(change), SEGMENT_WORDS)
    return ops, segments, row_of, int(sizes.sum()) + 1
