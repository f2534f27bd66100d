"""Lays an index bank out as the CPU kernels read it: `packed`, int32. csrc/shared/packed_layout.h has the same structs.

The response z[i, l] is input channel i filtered by basis function l. A kernel computes the responses of a block of
input channels at the pixels of a tile, and stores each as a row; row 0 is zero. Then each output adds the rows that its
filters name. Offsets are in words (int32) from the start of `packed`.

    header     offset of the forward section; of the input gradient's; the stride that the latter is for
    section    groups, blocks, chunks, rows and channels of the largest block, nonzero filters; then the number of each
               group's first block, and of all blocks; then the blocks
    block      channels [first, end), number of rows, of segments; offset of the segments, of the ops, of the quad
               lists
    segment    ops of one kind: u (or ALL_FUNCTIONS), columns, ops [first, end)
    op         channel, first row, columns (bit v: compute function (u, v)), a channel to prefetch or -1
    quad list  for each chunk of 64 outputs: number of quads, their offset, the offset of their rows
    quad       row count, four output channels (value O = padding)
    rows       uint16 [count][4]: the next row that each of the four outputs adds; padded with row 0

With stride 1 the input gradient's section is the same with inputs and outputs exchanged. With stride 2 it names, for
each function of each input channel, the outputs whose filter it is, for their gradients are summed before they are
filtered:

    section    groups, blocks of a group, blocks of the outputs, functions, rows and channels of the largest block,
               nonzero filters; then the blocks
    block      channels [first, end), offset of its rows, offset of its quad lists (one for each block of outputs)
    rows       [channel][function]: which sum that is, counted from 1; 0 if no filter uses it
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from .packed_words import PackedWords, split_rows

# csrc/shared/packed_layout.h has the same numbers; tests/ops/plans/test_packed_layout.py compares them.
HEADER_WORDS = 3
SECTION_WORDS = 6
BLOCK_WORDS = 7
SEGMENT_WORDS = 4
OP_WORDS = 4
QUAD_LIST_WORDS = 3
QUAD_WORDS = 5
QUAD_OUTPUTS = 4
CHUNK_OUTPUTS = 64  # outputs whose lists are sorted together; a task takes whole chunks
ALL_FUNCTIONS = 2**31 - 1  # in place of a u, which may be K or more where there are more than K^2 functions
STRIDE2_SECTION_WORDS = 7
STRIDE2_BLOCK_WORDS = 4
STRIDE2_OUTPUTS = 128  # of a block; 64 to 512 are within 15 %

STRIDE2_ROWS = 144  # sums of a block, at most
PREFETCH = 6  # ops between asking for a channel and using it
ALL_FROM = 0.7  # share of a channel's functions from which on it is faster to compute all of them at once


def outputs_fit(outputs: int, stride: int) -> bool:
    """Tells whether there can be lists for so many outputs of a group. With stride 2 an output is a row, by number, of
    what the gradient's lists add."""
    return stride == 1 or outputs < 2**16


def pack_index(index: Tensor, kernel_size: int, rank: int, groups: int, stride: int = 1) -> Tensor:
    """Makes the `packed` argument of the index plan on the CPU, int32.

    Args:
        index: (O, I/groups) uint8; `rank` or more is the zero filter.
        kernel_size: K of the K x K filters.
        rank: L, the number of basis functions.
        groups, stride: of the convolution; stride 1 or 2.
    """
    # Wider than uint8: functions are counted up to the next multiple of K, which may be more than 255.
    forward = index.cpu().numpy().astype(np.int16).reshape(groups, len(index) // groups, index.shape[1])
    words = PackedWords()
    _, header = words.reserve(HEADER_WORDS)
    forward_at = words.size
    _add_section(words, forward, kernel_size, rank)
    gradient_at = words.size
    if stride == 1:
        _add_section(words, forward.transpose(0, 2, 1), kernel_size, rank)
    else:
        _add_stride2_grad_section(words, forward, kernel_size, rank)
    header[:] = (forward_at, gradient_at, stride)
    return torch.from_numpy(words.array())


def _add_section(words: PackedWords, matrices: np.ndarray, kernel_size: int, rank: int) -> None:
    groups, outputs, channels = matrices.shape
    nonzero = matrices < rank
    target = _block_rows(nonzero.mean() if nonzero.size else 1.0, kernel_size)
    used = [_used_rows(m, kernel_size, rank) for m in matrices]
    ranges = [split_rows(u.sum(1), target) for u in used]
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
            part = matrices[g][:, begin:end]
            row = row_of[np.arange(end - begin), np.minimum(part, row_of.shape[1] - 1)]
            lists = words.add(_quad_list(words, nonzero[g][:, begin:end], row, edge, CHUNK_OUTPUTS))
            table[block] = (begin, end, rows, len(segments), words.add(segments), words.add(ops), lists)
            block += 1
    header[SECTION_WORDS + groups] = block
    header[:SECTION_WORDS] = (groups, blocks, chunks, *largest, int(nonzero.sum()))


def _add_stride2_grad_section(words: PackedWords, matrices: np.ndarray, kernel_size: int, rank: int) -> None:
    groups, outputs, channels = matrices.shape
    functions = max(rank, kernel_size**2)
    largest = max(1, STRIDE2_ROWS // rank)
    blocks = -(-channels // largest)
    bounds = np.append(np.arange(0, outputs, STRIDE2_OUTPUTS), outputs)
    _, header = words.reserve(STRIDE2_SECTION_WORDS)
    _, table = words.reserve(STRIDE2_BLOCK_WORDS * groups * blocks)
    most = 0
    for row, (g, i) in zip(table.reshape(-1, STRIDE2_BLOCK_WORDS), np.ndindex(groups, blocks), strict=True):
        begin, end = i * largest, min((i + 1) * largest, channels)
        uses = matrices[g][:, begin:end, None] == np.arange(rank)  # (outputs, channels, functions)
        used = uses.any(0)
        rows = np.zeros((end - begin, functions), np.int32)
        rows[:, :rank][used] = np.arange(1, used.sum() + 1)
        most = max(most, int(used.sum()))
        sums = uses[:, used].T
        lists = [
            _quad_list(words, sums[:, a:b], np.broadcast_to(np.arange(a + 1, b + 1), (len(sums), b - a)), a == 0)
            for a, b in pairwise(bounds.tolist())
        ]
        row[:] = (begin, end, words.add(rows), words.add(np.concatenate(lists)))
    header[:] = (groups, blocks, len(bounds) - 1, functions, most, min(largest, channels), int((matrices < rank).sum()))


def _block_rows(density: float, kernel_size: int) -> int:
    """Chooses how many rows of z a block has; with AVX-512 a row is 448 bytes.

    Dense lists do best when z about fits the first-level cache. Where few filters are left, blocks must be larger, or
    lists get too short. Measured on 2 cores of Zen 5: within 10 % of the best of 72 to 800 rows on 64@56 to 512@7,
    densities 0.05 to 1, K = 3, 5, 7."""
    if density < 0.35:
        return 640
    return 128 if density > 0.75 and kernel_size == 3 else 256


def _used_rows(matrix: np.ndarray, kernel_size: int, rank: int) -> np.ndarray:
    """Finds which functions of which channel any filter uses: (I, L rounded up to a multiple of K) bool."""
    functions = -(-rank // kernel_size) * kernel_size
    used = np.zeros((matrix.shape[1], functions), bool)
    outputs, channels = np.nonzero(matrix < rank)
    used[channels, matrix[outputs, channels]] = True
    if rank == kernel_size**2:
        used[used.mean(1) >= ALL_FROM] = True
    return used


def _transform(used: np.ndarray, first: int, kernel_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Makes the ops of a block that begins at channel `first`.

    Ops of one kind follow each other, so that the processor predicts the kernel's branch on the kind.

    Returns:
        (ops, segments, the row of each (channel, function), number of rows)
    """
    table = used.reshape(len(used), -1, kernel_size)
    columns = table @ (1 << np.arange(kernel_size))
    whole = used.all(1) & (used.shape[1] == kernel_size**2)
    channel, kind = np.nonzero(columns * ~whole[:, None])
    everything = np.flatnonzero(whole)
    column = np.append(columns[channel, kind], np.full(len(everything), 2**kernel_size - 1))
    channel = np.append(channel, everything)
    kind = np.append(kind, np.full(len(everything), ALL_FUNCTIONS))
    order = np.lexsort((channel, column, kind))
    channel, kind, column = channel[order], kind[order], column[order]

    sizes = np.where(kind == ALL_FUNCTIONS, used.shape[1], table[channel, np.minimum(kind, table.shape[1] - 1)].sum(1))
    row = 1 + np.cumsum(sizes) - sizes
    row_of_u = np.zeros(columns.shape, np.int64)
    part = kind != ALL_FUNCTIONS
    row_of_u[channel[part], kind[part]] = row[part]
    row_of_u[channel[~part]] = row[~part, None] + kernel_size * np.arange(columns.shape[1])
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


def _quad_list(words: PackedWords, nonzero: np.ndarray, row: np.ndarray, edge: bool, chunk_size: int = 0) -> np.ndarray:
    """Appends the quads of a block and their rows.

    The outputs of a chunk go in fours, longest lists first, so that little is padded with row 0.

    Args:
        nonzero, row: (outputs, inputs); an output adds `row` where it is `nonzero`.
        edge: sums start or end in this block, and every output is named; other blocks skip outputs without rows.
        chunk_size: outputs of a chunk; 0: all.

    Returns:
        (chunks, 3), for the table of quad lists.
    """
    outputs = len(nonzero)
    chunk_size = chunk_size or max(outputs, 1)
    padded = -(-outputs // QUAD_OUTPUTS) * QUAD_OUTPUTS
    counts = np.zeros(padded, np.int64)
    counts[:outputs] = nonzero.sum(1)
    chunk = np.arange(padded) // chunk_size
    order = np.lexsort((-counts, chunk))
    quad_count, quad_chunk = counts[order[::QUAD_OUTPUTS]], chunk[order[::QUAD_OUTPUTS]]
    start = np.cumsum(quad_count) - quad_count

    rows = np.zeros((int(quad_count.sum()) + 4, QUAD_OUTPUTS), np.uint16)  # the kernel reads one step ahead
    place = np.empty(padded, np.int64)
    place[order] = np.arange(padded)
    o, i = np.nonzero(nonzero)
    step = (np.cumsum(nonzero, 1) - 1)[o, i]
    rows[start[place[o] // QUAD_OUTPUTS] + step, place[o] % QUAD_OUTPUTS] = row[o, i]

    keep = (quad_count > 0) | edge
    quads = np.concatenate([quad_count[:, None], np.minimum(order, outputs).reshape(-1, QUAD_OUTPUTS)], 1)[keep]
    quads_at, rows_at = words.add(quads), words.add(rows.view(np.int32))
    size = np.bincount(quad_chunk[keep], minlength=max(1, -(-outputs // chunk_size)))
    first = np.cumsum(size) - size
    start = np.append(start[keep], 0)[np.minimum(first, len(quads))]
    words_a_row = QUAD_OUTPUTS // 2  # uint16
    lists = np.stack([size, quads_at + QUAD_WORDS * first, rows_at + words_a_row * start], 1)
    return lists.reshape(len(size), QUAD_LIST_WORDS)
