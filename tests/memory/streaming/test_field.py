"""Fields cut an axis into tiles: outputs are written once each, and a tile reads what its outputs need."""

import pytest
import torch
import torch.nn.functional as F
from support.compare import relative_error

from explainfix_ext.memory.streaming.field import Field

# A chain of convolutions along an axis: (kernel, stride, padding, dilation) of each, and its field.
CHAINS = [
    ([(3, 1, 1, 1)], Field(1, 1, 1, 1)),
    ([(7, 2, 3, 1), (3, 2, 1, 1)], Field(4, 1, 2, 1)),
    ([(3, 1, 0, 2), (2, 2, 0, 1)], Field(2, 1, 0, 2)),
    ([(1, 3, 0, 1)], Field(3, 1, 0, 0)),
]


@pytest.mark.parametrize(("chain", "field"), CHAINS)
@pytest.mark.parametrize("length", [9, 40, 67])
def test_tiles_give_what_the_whole_gives(chain: list[tuple[int, int, int, int]], field: Field, length: int) -> None:
    torch.manual_seed(length)
    kernels = [torch.randn(1, 1, kernel, dtype=torch.float64) for kernel, *_ in chain]

    def run(x: torch.Tensor) -> torch.Tensor:
        for weight, (_, stride, padding, dilation) in zip(kernels, chain, strict=True):
            x = F.conv1d(x, weight, None, stride, padding, dilation)
        return x

    x = torch.randn(1, 1, length, dtype=torch.float64)
    whole = run(x)
    for pixels in (field.period, 4 * field.period, 1200):
        y = torch.full_like(whole, torch.nan)
        for tile in field.tiles(length, pixels):
            assert y[..., tile.written].isnan().all()
            y[..., tile.written] = run(x[..., tile.read])[..., tile.kept]
        assert relative_error(y, whole) < 1e-14


def test_numbers() -> None:
    field = Field(period=32, steps=1, before=7, after=6)
    assert field.halo == 416
    assert (field.whole_blocks(1000), field.whole_blocks(5)) == (992, 32)
    assert [tile.read for tile in field.tiles(700, 320)] == [slice(0, 512), slice(96, None)]
