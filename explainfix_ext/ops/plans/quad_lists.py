"""Lays out which rows of z each output adds and subtracts, four outputs at a time: a part of `pack_cpu_index`."""

from __future__ import annotations

import numpy as np

from .packed_words import PackedWords

# csrc/shared/packed_layout.h has the same numbers; tests/ops/plans/test_packed_layout.py compares them.
QUAD_LIST_WORDS = 3
QUAD_WORDS = 5
QUAD_OUTPUTS = 4

STRIP_OUTPUTS = 16  # pads the lists of "sdct4" by 2 %, by 13 % at a density of 0.3; strips of 8 or 32 pad more


def quad_list(
    words: PackedWords, nonzero: np.ndarray, minus: np.ndarray, row: np.ndarray, edge: bool, chunk_size: int = 0
) -> np.ndarray:
    """Appends the quads of a block and their rows.

    The outputs of a chunk go in fours, longest lists first, so that little is padded with row 0: by the rows that they
    add, and those of a strip by the rows that they subtract.

    Args:
        nonzero, minus, row: (outputs, inputs); an output adds `row` where it is `nonzero`, or subtracts it if `minus`.
        edge: sums start or end in this block, and every output is named; other blocks skip outputs without rows.
        chunk_size: outputs of a chunk; 0: all.

    Returns:
        (chunks, 3), for the table of quad lists.
    """
    outputs = len(nonzero)
    chunk_size = chunk_size or max(outputs, 1)
    padded = -(-outputs // QUAD_OUTPUTS) * QUAD_OUTPUTS
    signs = [nonzero & ~minus, nonzero & minus] if minus.any() else [nonzero]
    counts = np.zeros((2, padded), np.int64)
    for count, sign in zip(counts, signs, strict=False):
        count[:outputs] = sign.sum(1)
    chunk = np.arange(padded) // chunk_size
    order = np.lexsort((-counts[0], chunk))
    strip = np.empty(padded, np.int64)
    strip[order] = np.arange(padded) // STRIP_OUTPUTS
    order = np.lexsort((-counts[0], -counts[1], strip))
    quad_chunk = chunk[order[::QUAD_OUTPUTS]]
    added, subtracted = counts[:, order].reshape(2, -1, QUAD_OUTPUTS).max(2)
    start = np.cumsum(added + subtracted) - added - subtracted

    rows = np.zeros((int((added + subtracted).sum()) + 4, QUAD_OUTPUTS), np.uint16)  # the kernel reads one step ahead
    place = np.empty(padded, np.int64)
    place[order] = np.arange(padded)
    for sign, before in zip(signs, (0, added), strict=False):
        o, i = np.nonzero(sign)
        step = (start + before)[place[o] // QUAD_OUTPUTS] + (np.cumsum(sign, 1) - 1)[o, i]
        rows[step, place[o] % QUAD_OUTPUTS] = row[o, i]

    keep = (added + subtracted > 0) | edge
    heads = (added | subtracted << 16)[:, None]
    quads = np.concatenate([heads, np.minimum(order, outputs).reshape(-1, QUAD_OUTPUTS)], 1)[keep]
    quads_at, rows_at = words.add(quads), words.add(rows.view(np.int32))
    size = np.bincount(quad_chunk[keep], minlength=max(1, -(-outputs // chunk_size)))
    first = np.cumsum(size) - size
    start = np.append(start[keep], 0)[np.minimum(first, len(quads))]
    words_a_row = QUAD_OUTPUTS // 2  # uint16
    lists = np.stack([size, quads_at + QUAD_WORDS * first, rows_at + words_a_row * start], 1)
    return lists.reshape(len(size), QUAD_LIST_WORDS)
