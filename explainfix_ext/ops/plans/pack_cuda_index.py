"""Lays an index bank out as the sparse index CUDA kernel reads it: `packed`, int32. csrc/shared/packed_layout.h has the
same structs; csrc/cuda/device/sparse_index/packed.cuh and lists.cuh read them.

The response z[i, f] is input channel i filtered by DCT function f = (u, v). A kernel computes the responses of a block
of input channels at the pixels of a tile, and stores each as a row in shared memory. Then outputs add, 16 at a time,
the rows that their list names. Offsets are in words (int32) from the start of `packed`.

    head       forward: the number of each group's first block, and of the last one's end; the same of the input
               gradient; then the blocks, first the forward pass's, then the gradient's
    block      channels [first, end), offset of its row numbers, offset of its bounds
    rows       [channel][v][4 if K = 3, else 8]: the row of function (u, v) of the channel; 0: nobody reads it
    bounds     offset of the list of each 16 outputs, and of the last one's end
    list       [step][32], one word for each lane of a warp

A step adds 16 rows of z to 16 outputs by tensor core instructions, whose left operand (16 outputs x 16 rows) is 2, -2
or 0. The row that stands at place k of a step has the remainder k mod 8, for such rows lie in different banks of shared
memory. Rows 0 to 7 are zero, for places where nothing is to be added. The word of lane l has in byte 0 the number of
the row at place l mod 16, divided by 8, and in bytes 1 and 3 the lane's part of the left operand: register j of it is
`word << 2 j`, of which the upper two bits of each half count.

The input gradient's part is the same with inputs and outputs exchanged and the functions flipped. Flipping a product of
two rows of the DCT multiplies it by (-1)^(u + v), hence the -2.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .packed_words import PackedWords, split_rows

# csrc/shared/packed_layout.h has the same numbers; tests/ops/plans/test_packed_layout.py compares them.
BLOCK_WORDS = 4
ROWS = 640  # of z that shared memory has room for; the first BANKS are zero
BANKS = 8  # rows with the same remainder lie in the same banks
OUTPUTS = 16  # of a list
STEP_ROWS = 16  # that a step of a list adds: its places
STEP_WORDS = 32  # one for each lane of a warp; every part begins at a multiple, so that a step is one line of memory
CHANNEL_ALIGN = 4  # blocks begin at a multiple: the kernel may read four channels at once
PITCH_3X3 = 4  # row numbers of one v of a channel where K = 3
PITCH_LARGER = 8  # and where K = 5 or 7


def pack_sparse_index(index: Tensor, functions: list[int], kernel_size: int, groups: int) -> Tensor:
    """Makes the `packed` argument of the index plan on CUDA, int32, on index's device.

    Args:
        index: (O, I/groups) uint8; len(functions) or more is the zero filter.
        functions: the raster number u*K + v in the DCT of each basis function.
        kernel_size: K of the K x K filters.
        groups: of the convolution.
    """
    name_of = np.full(256, -1, np.int16)
    name_of[: len(functions)] = functions
    names = name_of[index.cpu().numpy().reshape(groups, len(index) // groups, index.shape[1])]
    directions = [names, names.transpose(0, 2, 1)]
    blocks = [_blocks(d, kernel_size**2) for d in directions]
    words = PackedWords(align=STEP_WORDS)
    head = words.reserve(2 * (groups + 1) + BLOCK_WORDS * sum(len(channels) for _, channels in blocks))[1]
    tables = [
        _add_direction(words, direction, channels, kernel_size, flipped)
        for direction, (_, channels), flipped in zip(directions, blocks, (False, True), strict=True)
    ]
    words.reserve(STEP_WORDS)  # the kernel reads one step ahead
    firsts = [blocks[0][0], blocks[1][0] + len(tables[0])]
    head[:] = np.concatenate([*firsts, *map(np.ravel, tables)])
    return torch.from_numpy(words.array()).to(index.device)


@dataclass
class _Entries:
    """Entries are what lists are made of: entry e of them says that `list[e]` adds `response[e]` to `outputs[e]`.

    Attributes:
        list: counted over all blocks.
        response: one function of one channel, channel * K^2 + function, with channels counted over all groups.
        outputs: a bit for each of the list's outputs.
    """

    list: np.ndarray
    response: np.ndarray
    outputs: np.ndarray


def _blocks(names: np.ndarray, functions: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts the channels of each group into blocks whose rows fit shared memory.

    Returns:
        (the number of each group's first block and of the last one's end, (blocks, 2) channels [first, end))
    """
    groups, _, channels = names.shape
    used = sum((names == f).any(1).astype(int) for f in range(functions))  # (groups, channels)
    used = np.pad(used, ((0, 0), (0, -channels % CHANNEL_ALIGN))).reshape(groups, -1, CHANNEL_ALIGN).sum(2)
    ranges = [np.minimum(CHANNEL_ALIGN * _split_evenly(u), channels) + g * channels for g, u in enumerate(used)]
    return np.cumsum([0, *map(len, ranges)]), np.concatenate(ranges)


def _split_evenly(rows: np.ndarray) -> np.ndarray:
    """Cuts `rows` into as few and as equal blocks as fit: (blocks, 2) channels [first, end)."""
    total, most = max(1, int(rows.sum())), ROWS - BANKS
    for count in itertools.count(-(-total // most)):
        ranges = np.array(split_rows(rows, -(-total // count)))
        if all(rows[begin:end].sum() <= most for begin, end in ranges):
            break
    return ranges


def _add_direction(
    words: PackedWords, names: np.ndarray, channels: np.ndarray, kernel_size: int, flipped: bool
) -> np.ndarray:
    """Appends the parts of one direction.

    Args:
        names: (groups, outputs, channels), the function of each filter, -1 for none.
        channels: (blocks, 2), [first, end) of each.

    Returns:
        (blocks, BLOCK_WORDS), as the head has them.
    """
    lists = -(-names.shape[1] // OUTPUTS)  # of a block
    blocks = np.arange(len(channels))
    block_of = np.repeat(blocks, channels[:, 1] - channels[:, 0])
    entries = _entries(names, block_of, lists, kernel_size**2)
    rows = _place_rows(entries, block_of, lists, kernel_size**2)
    frequencies = np.indices((kernel_size, kernel_size)).sum(0).ravel()
    steps, list_words = _list_words(entries, rows, frequencies % 2 * flipped, len(blocks) * lists)

    pitch = PITCH_3X3 if kernel_size == 3 else PITCH_LARGER
    table = np.zeros((len(block_of), kernel_size, pitch), int)
    table[:, :, :kernel_size] = rows.reshape(-1, kernel_size, kernel_size).transpose(0, 2, 1)
    rows_at = words.add(table) + channels[:, 0] * kernel_size * pitch
    ends = words.add(list_words) + STEP_WORDS * np.append(0, np.cumsum(steps))
    bounds_at = words.add(ends[blocks[:, None] * lists + np.arange(lists + 1)]) + blocks * (lists + 1)
    return np.column_stack([channels, rows_at, bounds_at])


def _entries(names: np.ndarray, block_of: np.ndarray, lists: int, functions: int) -> _Entries:
    """Collects the entries in the order of their lists: one for all outputs of a list that add the same response."""
    g, o, i = np.nonzero(names >= 0)
    channel = g * names.shape[2] + i
    responses = len(block_of) * functions
    keys = (block_of[channel] * lists + o // OUTPUTS) * responses + channel * functions + names[g, o, i]
    keys, same = np.unique(keys, return_inverse=True)
    outputs = np.bincount(same, 1 << o % OUTPUTS, len(keys)).astype(int)
    return _Entries(keys // max(responses, 1), keys % max(responses, 1), outputs)


def _place_rows(entries: _Entries, block_of: np.ndarray, lists: int, functions: int) -> np.ndarray:
    """Chooses the row of each response; 0 where no list has it.

    A list takes half a step for each row of its most frequent remainder mod 8. So each row gets the remainder that its
    lists have the fewest of; rows in most lists choose first. From 5 % of the filters on, 3 to 15 % of the places are
    then left empty instead of 25 to 60 %. It counts a little, too, that rows of one channel, which are written
    together, should not lie in the same banks. The rows of all blocks are placed side by side, to keep the loop
    short."""
    responses, same = np.unique(entries.response, return_inverse=True)
    in_list = np.zeros((len(responses), lists))
    in_list[same, entries.list % max(lists, 1)] = 1
    channel = responses // functions
    order = np.lexsort((-in_list.sum(1), block_of[channel]))
    count = np.bincount(block_of[channel], minlength=block_of.max(initial=-1) + 1)
    start = np.cumsum(count) - count

    rows = np.zeros(len(block_of) * functions, int)
    in_lists = np.zeros((len(count), BANKS, lists))
    in_channel = np.zeros((len(block_of), BANKS))
    in_block = np.zeros((len(count), BANKS), int)
    for step in range(count.max(initial=0)):
        blocks = np.flatnonzero(count > step)
        placed = order[start[blocks] + step]
        cost = (in_lists[blocks] @ in_list[placed, :, None])[..., 0]
        cost += in_channel[channel[placed]] / 2 + in_block[blocks] / ROWS
        cost[in_block[blocks] == ROWS // BANKS - 1] = np.inf
        bank = cost.argmin(1)
        in_lists[blocks, bank] += in_list[placed]
        in_channel[channel[placed], bank] += 1
        in_block[blocks, bank] += 1
        rows[responses[placed]] = in_block[blocks, bank] * BANKS + bank
    return rows


def _list_words(entries: _Entries, rows: np.ndarray, negative: np.ndarray, lists: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes the words of the lists: (steps of each list, (steps of all, STEP_WORDS) words)."""
    row = rows[entries.response]
    bank = entries.list * BANKS + row % BANKS
    order = np.argsort(bank, kind="stable")
    in_bank = np.bincount(bank, minlength=lists * BANKS)
    turn = np.empty_like(bank)
    turn[order] = np.arange(len(bank)) - np.repeat(np.cumsum(in_bank) - in_bank, in_bank)
    steps = -(-in_bank.reshape(-1, BANKS).max(1, initial=0) // 2)
    step = (np.cumsum(steps) - steps)[entries.list] + turn // 2
    place = turn % 2 * BANKS + row % BANKS

    number = np.zeros((steps.sum(), STEP_ROWS), np.uint32)  # of the row, divided by 8
    factor = np.zeros((OUTPUTS, *number.shape), np.uint8)  # the upper two bits of 2, -2 or 0
    number[step, place] = row // BANKS
    code = 1 + 2 * negative[entries.response % len(negative)]
    factor[:, step, place] = code * (entries.outputs >> np.arange(OUTPUTS)[:, None] & 1)

    lane = np.arange(STEP_WORDS)
    words = number[:, lane % STEP_ROWS]
    for register in range(4):
        output, first = lane // 4 + register % 2 * 8, lane % 4 * 2 + register // 2 * 8
        for half in range(2):
            words |= factor[output, :, first + half].T.astype(np.uint32) << (16 * half + 14 - 2 * register)
    return steps, words.view(np.int32)
