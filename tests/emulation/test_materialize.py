"""The CUDA kernels that compose a weight, run on the CPU against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from emulation.host_compiler import compile_for_host

import explainfix_ext as efx


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return compile_for_host("materialize", tmp_path_factory.mktemp("emulation"))


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("blocks", [1, 3, 64])
@pytest.mark.parametrize(
    "shape", [(1, 1, (3, 3)), (5, 7, (3, 3)), (4, 3, (1, 5)), (3, 2, (7, 7)), (6, 5, (4, 2))], ids=str
)
@pytest.mark.parametrize("init", ["dct2", "ghaar4_s1", "psine"])
def test_materialize_kernels_equal_the_reference(kernels, init: str, shape, blocks: int, channels_last: bool) -> None:
    o, i, k = shape
    bank = efx.make_bank(init, o, i, k, seed=0, density=0.7, gain="kaiming")
    expected = bank.weight().permute(0, 2, 3, 1) if channels_last else bank.weight()
    weight = np.full(expected.shape, np.nan, np.float32)
    kernel = kernels.materialize_index if bank.index is not None else kernels.materialize_coeff
    kernel(bank.steering.numpy(), bank.basis.flatten(1).numpy(), bank.scale, channels_last, weight, blocks)
    torch.testing.assert_close(torch.from_numpy(weight), expected.contiguous(), rtol=1e-5, atol=1e-6)
