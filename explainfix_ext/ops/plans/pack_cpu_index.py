"""The layout of `packed` for the index kernels: which responses each block of channels needs, and who adds which.

    words      offsets of the forward and the gradient's section, in int32 words from the start; the stride
    section    groups, blocks, chunks, rows and channels of the largest block, nonzero filters, groups' first blocks
    block      first and last channel, rows, segments, their offset, the ops' offset, the offset of its quad lists
    segment    u (or K: all functions), columns, first and last op
    op         channel, first row, columns, channel to prefetch
    quad list  (one for 64 outputs) quads, their offset, the offset of their rows
    quad       count, four outputs (O: nobody's)
    rows       uint16 [count][4]; row 0 adds nothing

With stride 1 the gradient's section is the same with inputs and outputs exchanged. With stride 2 it names, for each
function of each input channel, the outputs whose filter it is:

    section    groups, blocks of a group, blocks of the outputs, functions, rows and channels of the largest block,
               nonzero filters
    block      first and last channel, the offsets of its rows and of its quad lists, one for each block of outputs
    rows       [channel][function]: which sum, 0 for none

csrc/cpu/tiled_conv.h has the same structs.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

CHUNK = 64  # outputs whose lists are sorted together; a thread takes whole chunks
ADJOINT_ROWS = 144  # sums of a block, at most
# Outputs of a block; 64 to 512 are within 15 %. With AVX-512 their dy of a sub-tile takes 56 KB.
ADJOINT_OUTPUTS = 128
PREFETCH = 6  # ops ahead
ALL_FROM = 0.7  # share of the functions from which on computing all of them at once is faster


def pack_index(index: Tensor, kernel_size: int, rank: int, groups: int, stride: int = 1) -> Tensor:
    """The `packed` argument of the index plan, int32.

    Args:
        index: (O, I/groups) uint8; `rank` or more is the zero filter.
        kernel_size: K of the K x K filters.
        rank: L, the number of basis functions.
        groups, stride: of the convolution; stride 1 or 2.
    """
    forward = index.cpu().numpy().reshape(groups, -1, index.shape[1])
    words = _Words([0, 0, stride])
    words.data[0][0] = words.size
    _add_section(words, forward, kernel_size, rank)
    words.data[0][1] = words.size
    if stride == 1:
        _add_section(words, forward.transpose(0, 2, 1), kernel_size, rank)
    else:
        _add_adjoint_section(words, forward, kernel_size, rank)
    return torch.from_numpy(np.concatenate(words.data))


class _Words:
    """An int32 array that grows."""

    def __init__(self, words: list[int]) -> None:
        self.data = [np.array(words, np.int32)]
        self.size = len(words)

    def add(self, words: np.ndarray | list) -> int:
        """Append; where it begins."""
        flat = np.ascontiguousarray(words, dtype=np.int32).ravel()
        self.data.append(flat)
        self.size += len(flat)
        return self.size - len(flat)

    def reserve(self, count: int) -> tuple[int, np.ndarray]:
        """Append zeros to fill in later."""
        begin = self.add(np.zeros(count, np.int32))
        return begin, self.data[-1]


def _add_section(words: _Words, matrices: np.ndarray, kernel_size: int, rank: int) -> None:
    groups, outputs, channels = matrices.shape
    nonzero = matrices < rank
    target = _block_rows(nonzero.mean() if nonzero.size else 1.0, kernel_size)
    used = [_used_rows(m, kernel_size, rank) for m in matrices]
    ranges = [split_rows(u.sum(1), target) for u in used]
    blocks = sum(map(len, ranges))
    chunks = -(-outputs // CHUNK)
    head, header = words.reserve(6 + groups + 1)
    table_at, table = words.reserve(7 * blocks)
    table = table.reshape(-1, 7)
    block, largest = 0, (0, 0)
    for g in range(groups):
        header[6 + g] = block
        for begin, end in ranges[g]:
            ops, segments, row_of, rows = _transform(used[g][begin:end], begin, kernel_size)
            largest = (max(largest[0], rows), max(largest[1], end - begin))
            edge = begin == 0 or end == channels
            part = matrices[g][:, begin:end]
            row = row_of[np.arange(end - begin), np.minimum(part, row_of.shape[1] - 1)]
            lists = words.add(_quad_list(words, nonzero[g][:, begin:end], row, edge, CHUNK))
            table[block] = (begin, end, rows, len(segments), words.add(segments), words.add(ops), lists)
            block += 1
    header[6 + groups] = block
    header[:6] = (groups, blocks, chunks, *largest, int(nonzero.sum()))


def _add_adjoint_section(words: _Words, matrices: np.ndarray, kernel_size: int, rank: int) -> None:
    groups, outputs, channels = matrices.shape
    functions = max(rank, kernel_size**2)
    largest = max(1, ADJOINT_ROWS // rank)
    blocks = -(-channels // largest)
    bounds = np.append(np.arange(0, outputs, ADJOINT_OUTPUTS), outputs)
    _, header = words.reserve(7)
    _, table = words.reserve(4 * groups * blocks)
    most = 0
    for row, (g, i) in zip(table.reshape(-1, 4), np.ndindex(groups, blocks), strict=True):
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
    """Rows of z in a block, 448 bytes each with AVX-512. Dense lists do best when z about fits the first-level cache;
    where few filters are left, blocks must be larger, or lists get too short. Measured on 2 cores of Zen 5: within 10 %
    of the best of 72 to 800 rows on 64@56 to 512@7, densities 0.05 to 1, K = 3, 5, 7."""
    if density < 0.35:
        return 640
    return 128 if density > 0.75 and kernel_size == 3 else 256


def _used_rows(matrix: np.ndarray, kernel_size: int, rank: int) -> np.ndarray:
    """(I, L rounded up to a multiple of K) bool: which functions of which channel any filter reads."""
    functions = -(-rank // kernel_size) * kernel_size
    used = np.zeros((matrix.shape[1], functions), bool)
    outputs, channels = np.nonzero(matrix < rank)
    used[channels, matrix[outputs, channels]] = True
    if rank == kernel_size**2:
        used[used.mean(1) >= ALL_FROM] = True
    return used


def split_rows(rows: np.ndarray, target: int) -> list[tuple[int, int]]:
    """Channel ranges of about equal numbers of rows, `target` at most where a channel alone has no more."""
    total = int(rows.sum())
    count = min(max(1, -(-total // target)), max(1, len(rows)))
    bounds = np.searchsorted(np.cumsum(rows), np.arange(1, count) * (total / count), side="left") + 1
    edges = sorted({0, *np.minimum(bounds, len(rows)).tolist(), len(rows)})
    return list(pairwise(edges)) or [(0, len(rows))]


def _transform(used: np.ndarray, first: int, kernel_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """(ops, segments, the row of each (channel, function), number of rows) of a block that begins at channel `first`.

    Ops of one kind follow each other, so that the kernel's branch on the kind predicts."""
    table = used.reshape(len(used), -1, kernel_size)
    columns = table @ (1 << np.arange(kernel_size))
    whole = used.all(1) & (used.shape[1] == kernel_size**2)
    channel, kind = np.nonzero(columns * ~whole[:, None])
    everything = np.flatnonzero(whole)
    column = np.append(columns[channel, kind], np.full(len(everything), 2**kernel_size - 1))
    channel = np.append(channel, everything)
    kind = np.append(kind, np.full(len(everything), kernel_size))
    order = np.lexsort((channel, column, kind))
    channel, kind, column = channel[order], kind[order], column[order]

    sizes = np.where(kind == kernel_size, used.shape[1], table[channel, np.minimum(kind, table.shape[1] - 1)].sum(1))
    row = 1 + np.cumsum(sizes) - sizes
    row_of_u = np.zeros(columns.shape, np.int64)
    part = kind < kernel_size
    row_of_u[channel[part], kind[part]] = row[part]
    row_of_u[channel[~part]] = row[~part, None] + kernel_size * np.arange(columns.shape[1])
    row_of = (row_of_u[..., None] + np.cumsum(table, 2) - 1).reshape(used.shape)

    prefetch = np.full(len(channel), -1)
    _, first_touch = np.unique(channel, return_index=True)
    ahead = first_touch[first_touch >= PREFETCH]
    prefetch[ahead - PREFETCH] = channel[ahead] + first
    ops = np.stack([channel + first, row, column, prefetch], 1)
    change = np.flatnonzero(np.diff(kind, prepend=-1) | np.diff(column, prepend=-1))
    segments = np.stack([kind[change], column[change], change, np.append(change[1:], len(kind))[: len(change)]], 1)
    return ops, segments, row_of, int(sizes.sum()) + 1


def _quad_list(words: _Words, nonzero: np.ndarray, row: np.ndarray, edge: bool, chunk_size: int = 0) -> np.ndarray:
    """Outputs of a chunk in fours, longest lists first, so that little is padded with row 0; (chunks, 3) for the table
    of lists. Blocks where sums start or end (`edge`) name every output; the others skip those without rows.

    Args:
        nonzero, row: (outputs, inputs); an output adds `row` where it is `nonzero`.
        chunk_size: outputs of a chunk; 0: all.
    """
    outputs = len(nonzero)
    chunk_size = chunk_size or max(outputs, 1)
    padded = -(-outputs // 4) * 4
    counts = np.zeros(padded, np.int64)
    counts[:outputs] = nonzero.sum(1)
    chunk = np.arange(padded) // chunk_size
    order = np.lexsort((-counts, chunk))
    quad_count, quad_chunk = counts[order[::4]], chunk[order[::4]]
    start = np.cumsum(quad_count) - quad_count

    rows = np.zeros((int(quad_count.sum()) + 4, 4), np.uint16)  # the kernel reads one step ahead
    place = np.empty(padded, np.int64)
    place[order] = np.arange(padded)
    o, i = np.nonzero(nonzero)
    step = (np.cumsum(nonzero, 1) - 1)[o, i]
    rows[start[place[o] // 4] + step, place[o] % 4] = row[o, i]

    keep = (quad_count > 0) | edge
    quads = np.concatenate([quad_count[:, None], np.minimum(order, outputs).reshape(-1, 4)], 1)[keep]
    quads_at, rows_at = words.add(quads), words.add(rows.view(np.int32))
    size = np.bincount(quad_chunk[keep], minlength=max(1, -(-outputs // chunk_size)))
    first = np.cumsum(size) - size
    start = np.append(start[keep], 0)[np.minimum(first, len(quads))]
    return np.stack([size, quads_at + 5 * first, rows_at + 2 * start], 1)
