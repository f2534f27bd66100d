"""The initialisations for signals against their formulas, and against figures of the authors' filters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import explainfix_ext as efx
from explainfix_ext.filters.make_bank import remake_bank
from explainfix_ext.filters.signal_filters import band_passes, mel_bands

BANDS = {"rate": 16000.0, "low": 30.0, "min_low": 50.0, "min_band": 50.0}


def authors_filters(count: int = 80, size: int = 251, **bands: float) -> Tensor:
    """Filters with the window of the authors' code, whose steps are a little longer than a sample."""
    bands = bands or BANDS
    steps = torch.linspace(0, size / 2 - 1, size // 2, dtype=torch.float64)
    window = 0.54 - 0.46 * torch.cos(2 * math.pi * steps / size)
    return band_passes(*mel_bands(count, **bands), bands["rate"], window)


def near(got: Tensor, expected: list[float], tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), atol=tolerance, rtol=0)


def test_bands_are_those_of_sincnet() -> None:
    lower, upper = mel_bands(80, **BANDS)
    near(lower[:3], [80, 102.857108, 126.429897])
    near(upper[:3], [152.857108, 176.429897, 200.740776])
    near(torch.stack([lower[79], upper[79]]), [7688.8998, 8000], 1e-4)


def test_taps_are_those_of_sincnet() -> None:
    filters = authors_filters()
    near(filters[0, 120:126], [0.969628, 0.980508, 0.989013, 0.995110, 0.998777, 1])
    near(filters[40, 120:126], [-0.804158, -0.988101, -0.635823, 0.062868, 0.728835, 1])
    near(filters[79, 120:126], [-0.935561, 0.958445, -0.976488, 0.989507, -0.997371, 1])
    near(filters[[0, 40, 79]].norm(dim=1), [6.722923, 6.193221, 4.863914])
    near(filters.norm(), 54.098086)
    assert torch.equal(filters, filters.flip(1))


def test_the_bank_has_them_but_for_the_window() -> None:
    bank = efx.make_bank("sinc", 80, 2, (1, 251), seed=0)
    weight = bank.weight(torch.float64)
    assert torch.equal(weight[:, 0], weight[:, 1])  # alike for every input
    found, theirs = weight[:, 0, 0], authors_filters()
    assert float((found - theirs).norm() / theirs.norm()) == pytest.approx(2.4e-5, rel=0.05)
    assert bank.index is not None
    lower, upper = mel_bands(80, **BANDS)
    power = torch.fft.rfft(found, 8192).abs() ** 2
    hertz = torch.arange(power.shape[1]) * 16000 / 8192
    for k, share in ((0, 0.680), (40, 0.857), (79, 0.982)):
        inside = (hertz >= lower[k]) & (hertz <= upper[k])
        assert float(power[k, inside].sum() / power[k].sum()) == pytest.approx(share, abs=2e-3)


def test_a_small_bank() -> None:
    options = {"rate": 100, "low": 30, "min_low": 2, "min_band": 2}
    near(authors_filters(8, 9, **options)[0, :5], [-0.048753, 0.217423, -0.239404, -0.476469, 1])
    bank = efx.make_bank("sinc", 8, 1, (1, 9), seed=0, **options)
    lower, upper = (float(band[0]) for band in mel_bands(8, **options))
    steps = [2 * math.pi * t / 100 for t in range(-4, 0)]
    window = [0.54 - 0.46 * math.cos(2 * math.pi * n / 8) for n in range(4)]
    ideal = [(math.sin(upper * s) - math.sin(lower * s)) / (s * (upper - lower)) for s in steps]
    row = bank.weight(torch.float64)[0, 0, 0]
    near(row[:5], [*(tap * w for tap, w in zip(ideal, window, strict=True)), 1], 1e-12)
    assert torch.equal(row, row.flip(0))
    assert bank.recipe.options == options
    assert torch.equal(remake_bank(bank.recipe, bank.shape).weight(), bank.weight())


@pytest.mark.parametrize(
    ("kernel", "options", "message"),
    [
        ((1, 40), {}, r"sinc filters must be for signals and of odd length, \(1, K\), got \(1, 40\)"),
        (3, {}, r"got \(3, 3\)"),
        ((1, 9), {"rate": 0}, "rate must be a positive number of Hz, got 0"),
        ((1, 9), {"min_band": "wide"}, "min_band must be a positive number of Hz, got 'wide'"),
        ((1, 9), {"rate": 200}, r"rate / 2 must be more than low \+ min_low \+ min_band = 130, got 100"),
    ],
)
def test_sinc_refuses(kernel, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        efx.make_bank("sinc", 8, 1, kernel, seed=0, **options)


def test_minirocket_kernels() -> None:
    bank = efx.make_bank("minirocket", 16, 100, (1, 9), seed=0)
    kernels = bank.basis[:, 0]
    assert kernels.shape == (84, 9)
    assert len(kernels.unique(dim=0)) == 84
    assert torch.equal((kernels == 2).sum(1), torch.full((84,), 3))
    assert torch.equal((kernels == -1).sum(1), torch.full((84,), 6))
    assert kernels.sum(1).abs().max() == 0
    near(kernels.norm(dim=1), [math.sqrt(18)] * 84)
    counts = torch.stack([torch.bincount(row.long(), minlength=84) for row in bank.index])
    assert counts.min() == 1
    assert counts.max() == 2
    assert torch.equal(bank.index, efx.make_bank("minirocket", 16, 100, (1, 9), seed=0).index)
    assert not torch.equal(bank.index, efx.make_bank("minirocket", 16, 100, (1, 9), seed=1).index)


def test_minirocket_refuses_other_kernels() -> None:
    with pytest.raises(ValueError, match=r"minirocket filters must be of \(1, 9\), got \(3, 3\)"):
        efx.make_bank("minirocket", 8, 8, 3, seed=0)
