"""Replays compute a tensor again, whole or some images of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from explainfix_ext.memory.replay import (
    Program,
    Rebuilt,
    Replay,
    activated,
    affine,
    concatenated,
    keep,
    keep_int8,
    scaled,
)

LARGE = (4, 2, 512, 512)  # two million elements: enough to be rebuilt in parts


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def rebuild(replay: Replay, images: slice = slice(None)) -> Tensor:
    return replay.program.rebuild(replay.tensors, images)


def test_images_of_several_steps() -> None:
    x, scale = random(4, 3, 5, 5), random(4, 6, 1, 1)
    replay = concatenated([keep(x), keep(x + 1)]).then(scaled, (scale,), batched=True)
    expected = torch.cat([x, x + 1], 1) * scale
    assert torch.equal(rebuild(replay), expected)
    assert torch.equal(rebuild(replay, slice(1, 3)), expected[1:3])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_large_ones_of_several_steps_run_some_images_at_a_time(layout: torch.memory_format) -> None:
    def negative(inputs: list[Tensor], tensors: list[Tensor]) -> Tensor:
        sizes.append(len(inputs[0]))
        return -inputs[0]

    sizes: list[int] = []
    x = random(*LARGE).contiguous(memory_format=layout)
    twice = rebuild(keep(x).then(negative, ()).then(negative, ()))
    assert torch.equal(twice, x)
    assert twice.is_contiguous(memory_format=layout)
    assert sizes == [2, 2, 2, 2]  # two parts, two steps


def test_deep_and_lossy_pass_on() -> None:
    x = random(2, 3, 20, 20)
    deep, lossy = keep(x).then(scaled, (x,), deep=True), keep_int8(x)
    assert (deep.deep, deep.lossy, lossy.deep, lossy.lossy) == (True, False, False, True)
    for both in (concatenated([deep, lossy]), concatenated([lossy, deep]).then(scaled, (x,))):
        assert both.deep
        assert both.lossy


def test_int8_is_off_by_half_a_step_of_each_channel() -> None:
    x = random(2, 3, 20, 20) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    error = (rebuild(keep_int8(x)) - x).abs().amax((2, 3))
    ranges = x.amax((2, 3)) - x.amin((2, 3))
    assert (error <= ranges / 510 * 1.001).all()
    assert (error > 0).all()


def test_an_activation_joins_an_affine_step() -> None:
    x, factors = random(2, 3, 4, 4), random(4, 3)
    normalized = affine(keep(x), factors)
    alpha, beta = factors[2:, :, None, None]
    expected = torch.nn.functional.silu(x * alpha + beta)
    result = activated(normalized, "silu", 0.0)
    assert result is not None
    torch.testing.assert_close(rebuild(result), expected)
    assert len(result.program.steps) == len(normalized.program.steps)
    assert torch.equal(result.program.without_last.rebuild(result.tensors), x)
    for other, of in ((result, expected), (keep(x), x)):
        after = activated(other, "relu", 0.0)
        assert after is not None
        torch.testing.assert_close(rebuild(after), of.relu())


def whole_or_parts(replay: Replay, *, twice: bool = False) -> int:
    return len(Rebuilt(replay.program, replay.tensors, replay.tensors[0].shape, twice=twice, given=None).slices)


def test_rebuilt_in_parts_where_these_are_large_and_cheap() -> None:
    x = random(8, *LARGE[1:])
    cheap = affine(keep(x), random(4, 2))
    deep = keep(x).then(scaled, (x,), deep=True)
    assert whole_or_parts(cheap) == whole_or_parts(cheap, twice=True) == 8
    assert whole_or_parts(keep(x)) == 1  # it is only read
    assert whole_or_parts(affine(keep(x[:, :, :16, :16]), random(4, 2))) == 1  # small
    assert (whole_or_parts(deep), whole_or_parts(deep, twice=True)) == (8, 1)  # a convolution would run twice
    source = Rebuilt(cheap.program, cheap.tensors, x.shape, twice=True, given=None)
    assert torch.equal(torch.cat([source.part(i) for i in source.slices]), rebuild(cheap))


def test_what_is_given_is_not_rebuilt() -> None:
    x = random(*LARGE)
    source = Rebuilt(Program(()), (), x.shape, twice=True, given=x)
    (everything,) = source.slices
    assert source.part(everything) is source.whole() is x
