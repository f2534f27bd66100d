"""What lanes of a warp do together in the emulation: shuffles, __syncwarp, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from emulation.host_compiler import BUILD, HERE, compile_for_host, goes_wrong

X = np.arange(64, dtype=np.float32) ** 2
LINE = next(n for n, line in enumerate((HERE / "warps.cpp").read_text().splitlines(), 1) if "__syncwarp();" in line)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return compile_for_host("warps", tmp_path_factory.mktemp("emulation"))


@pytest.mark.parametrize("seed", range(5))
def test_lanes_exchange_registers(host, seed: int) -> None:
    host.seed(seed)
    rows = X.reshape(2, 32)
    assert np.array_equal(host.run("sum", X), rows.sum(1).repeat(32))
    assert np.array_equal(host.run("broadcast", X), rows[:, 5].repeat(32))
    shifted = np.concatenate([rows[:, 3:], rows[:, -3:]], 1)  # past the end a lane keeps its own
    assert np.array_equal(host.run("shift", X), shifted.flatten())
    assert np.array_equal(host.run("reverse", X), rows[:, ::-1].flatten())


def test_a_missing_warp_barrier_is_seen(host) -> None:
    def run(skipped: int) -> None:
        host.skip_barrier(skipped)
        assert np.array_equal(host.run("reverse", X), X.reshape(2, 32)[:, ::-1].flatten())

    assert not goes_wrong(lambda: run(0))
    assert goes_wrong(lambda: run(LINE))


@pytest.mark.skipif(BUILD == "tsan", reason="an error leaves threads in the middle of the kernel: races to it")
@pytest.mark.parametrize(
    ("kernel", "threads", "message"),
    [
        ("diverged", 64, "a warp-wide operation that not all threads reach"),
        ("mixed", 64, "lanes of a warp are at different warp-wide operations"),
        ("sum", 40, "a shuffle reads a lane that is not there"),
    ],
)
def test_what_cuda_leaves_undefined_is_an_error(host, kernel: str, threads: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        host.run(kernel, X[:threads].copy())
