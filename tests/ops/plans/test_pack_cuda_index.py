"""The lists of the filter-sparse CUDA kernel, read back and compared with the index that they were made of."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import explainfix_ext as efx
from explainfix_ext.ops.plans.bank_facts import dct_functions
from explainfix_ext.ops.plans.pack_cuda_index import ROWS, pack_sparse_index


def read(packed: np.ndarray, gradient: bool, groups: int, channels: int, outputs: int, k: int) -> np.ndarray:
    """(groups, outputs, channels) function + 1 of each filter, negative where its sign is, 0 for none. Sizes are those
    of a group."""
    head = packed[gradient * (groups + 1) :]
    blocks = packed[2 * (groups + 1) :][: 4 * head[groups]].reshape(-1, 4)
    pitch = 4 if k == 3 else 8
    names = np.zeros((groups, outputs, channels), int)
    for g in range(groups):
        mine = blocks[head[g] : head[g + 1]]
        assert np.array_equal(np.append(mine[:, 0], (g + 1) * channels), np.append(g * channels, mine[:, 1]))
        assert not ((mine[:, 0] - g * channels) % 4).any()
        for first, last, rows_at, bounds_at in mine:
            table = packed[rows_at:][: (last - first) * k * pitch].reshape(-1, k, pitch)
            rows = table[:, :, :k].transpose(0, 2, 1).reshape(-1)  # of each response
            made = rows[rows > 0]
            assert len(set(made)) == len(made)
            assert made.size == 0 or (made.min() >= 8 and made.max() < ROWS)
            response_of = {row: at for at, row in enumerate(rows) if row}
            bounds = packed[bounds_at:][: -(-outputs // 16) + 1]
            for m, (begin, end) in enumerate(pairwise(bounds)):
                assert begin % 32 == end % 32 == 0
                for step in packed[begin:end].view(np.uint32).reshape(-1, 32):
                    for row, output, sign in read_step(step):
                        channel, function = divmod(response_of[row], k * k)
                        assert names[g, 16 * m + output, first - g * channels + channel] == 0
                        names[g, 16 * m + output, first - g * channels + channel] = sign * (function + 1)
    return names


def read_step(words: np.ndarray) -> list[tuple[int, int, int]]:
    """(row, output, sign) of each factor that is not 0."""
    numbers = (words & 0xFF) * 8 + np.arange(32) % 8
    assert np.array_equal(numbers[:16], numbers[16:])
    found = []
    for lane in range(32):
        for register in range(4):
            for half in range(2):
                code = int(words[lane]) << 2 * register >> (14 + 16 * half) & 3
                assert code != 2  # -0
                place = lane % 4 * 2 + half + register // 2 * 8
                if code:
                    found.append((int(numbers[place]), lane // 4 + register % 2 * 8, 1 if code == 1 else -1))
    return found


def random_index(rng: random.Random, outputs: int, channels: int, rank: int, density: float) -> Tensor:
    index = torch.randint(rank, (outputs, channels), dtype=torch.uint8)
    index[torch.rand(outputs, channels) >= density] = rng.choice([rank, 255])
    return index


@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("k", [3, 5, 7])
def test_lists_are_the_index(k: int, density: float) -> None:
    rng = random.Random(k)
    for groups, rank in ((1, 2), (3, k * k), (2, 255)):
        channels, outputs = rng.randint(1, 90), rng.randint(1, 50)
        repeated = -(-rank // (k * k)) * [*range(k * k)]  # a basis may have a function more than once
        functions = rng.sample(repeated, rank)
        index = random_index(rng, groups * outputs, channels, rank, density)
        packed = pack_sparse_index(index, functions, k, groups)
        assert packed.dtype == torch.int32
        assert torch.equal(packed, pack_sparse_index(index, functions, k, groups))

        table = np.array([f + 1 for f in functions] + [0] * (256 - rank))
        want = table[index.numpy()].reshape(groups, outputs, channels)
        got = read(packed.numpy(), False, groups, channels, outputs, k)
        assert np.array_equal(got, want)
        gradient = read(packed.numpy(), True, groups, outputs, channels, k)
        function = np.maximum(want - 1, 0)
        sign = 1 - 2 * ((function // k + function % k) % 2)
        assert np.array_equal(gradient, (want * sign).transpose(0, 2, 1))


@pytest.mark.parametrize(
    ("size", "density", "most"), [(256, 0.1, 1.12), (512, 0.1, 1.12), (256, 0.01, 1.3), (64, 1.0, 1.12)]
)
def test_few_places_of_lists_are_empty(size: int, density: float, most: float) -> None:
    index = random_index(random.Random(0), size, size, 9, density)
    packed = pack_sparse_index(index, list(range(9)), 3, 1).numpy()
    bounds = [packed[at : at + size // 16 + 1] for at in packed[4 : 4 + 4 * packed[1]].reshape(-1, 4)[:, 3]]
    places = sum(int(b[-1] - b[0]) for b in bounds) // 2
    table = torch.cat([torch.eye(9), torch.zeros(247, 9)])[index.long()]  # (O, I, functions)
    entries = int(table.unflatten(0, (-1, 16)).amax(1).sum())
    assert entries <= places <= most * entries


def test_functions_are_found_in_any_order() -> None:
    for k in (3, 5, 7):
        order = torch.randperm(k * k)[: k + 2]
        assert dct_functions(efx.dct_basis((k, k))[order]) == order.tolist()
    assert dct_functions(efx.dct_basis((3, 3)).flip(1)) is None
    assert dct_functions(torch.randn(2, 3, 3)) is None
    assert dct_functions(efx.dct_basis((3, 5))) is None


def test_no_filters_pack_to_empty_sections() -> None:
    for shape in ((0, 4), (4, 0), (0, 0)):
        packed = pack_sparse_index(torch.empty(shape, dtype=torch.uint8), list(range(9)), 3, 1).numpy()
        assert read(packed, False, 1, shape[1], shape[0], 3).size == 0
        assert read(packed, True, 1, *shape, 3).size == 0
