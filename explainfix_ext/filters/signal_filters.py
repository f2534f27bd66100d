"""This module defines the initialisations for signals: "sinc" and "minirocket". Their kernels are (1, K)."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from .bank import FilterBank
from .registry import Layer, register

_TAPS, _TWOS = 9, 3  # of a kernel of MiniRocket: its length, and how many of its taps are 2


@register("sinc", "band-passes of rising frequency, an output each, evenly spaced as one hears (SincNet)")
def _sinc(
    layer: Layer, rate: float = 16000.0, low: float = 30.0, min_low: float = 50.0, min_band: float = 50.0
) -> FilterBank:
    """Makes an output's filters the band-pass of its band, the same for every input.

    Args:
        rate: samples a second, to which the other options, in Hz, are held.
        low, min_low: the first band begins at their sum.
        min_band: is added to the width of each band.

    Source: SincNet (Ravanelli and Bengio 2018).
    """
    size = layer.kernel_size[1]
    if layer.kernel_size[0] != 1 or size % 2 == 0 or size < 3:
        raise ValueError(f"sinc filters must be for signals and of odd length, (1, K), got {layer.kernel_size}")
    for name, hertz in (("rate", rate), ("low", low), ("min_low", min_low), ("min_band", min_band)):
        if not isinstance(hertz, (int, float)) or not 0 < hertz < math.inf:
            raise ValueError(f"{name} must be a positive number of Hz, got {hertz!r}")
    if not low < rate / 2 - min_low - min_band:
        raise ValueError(
            f"rate / 2 must be more than low + min_low + min_band = {low + min_low + min_band:g}, got {rate / 2:g}"
        )
    lower, upper = mel_bands(layer.out_channels, rate, low, min_low, min_band)
    half = size // 2
    window = 0.54 - 0.46 * torch.cos(2 * math.pi / (size - 1) * torch.arange(half, dtype=torch.float64))  # Hamming's
    index = torch.arange(layer.out_channels)[:, None].expand(-1, layer.in_channels)
    return layer.bank(band_passes(lower, upper, rate, window)[:, None], index)


def mel_bands(count: int, rate: float, low: float, min_low: float, min_band: float) -> tuple[Tensor, Tensor]:
    """Returns the lower and upper frequencies (count,) of bands, in Hz, float64: evenly spaced on the mel scale."""
    ends = torch.tensor([low, rate / 2 - min_low - min_band], dtype=torch.float64)
    mel = 2595 * torch.log10(1 + ends / 700)
    edges = 700 * (10 ** (torch.linspace(float(mel[0]), float(mel[1]), count + 1, dtype=torch.float64) / 2595) - 1)
    lower = min_low + edges[:-1]
    return lower, (lower + min_band + edges.diff()).clamp(min_low, rate / 2)


def band_passes(lower: Tensor, upper: Tensor, rate: float, window: Tensor) -> Tensor:
    """Makes symmetric filters (n, 2 h + 1) that pass the bands from `lower` to `upper` (n,); the centre tap is 1.

    Args:
        lower, upper: in Hz.
        rate: samples a second.
        window: (h,), by which the taps before the centre are multiplied.
    """
    steps = 2 * math.pi / rate * torch.arange(-len(window), 0, dtype=torch.float64)
    left = (torch.sin(upper[:, None] * steps) - torch.sin(lower[:, None] * steps)) / (steps / 2) * window
    left = left / (2 * (upper - lower)[:, None])
    return torch.cat([left, torch.ones(len(left), 1, dtype=torch.float64), left.flip(1)], 1)


@register("minirocket", "each filter one of 84 kernels of 9 taps, three of them 2 and six -1 (MiniRocket)")
def _minirocket(layer: Layer) -> FilterBank:
    """Makes each filter one of the kernels, drawn as those of "dct2" are: of zero mean and norm sqrt(18).

    Source: MiniRocket (Dempster, Schmidt, Webb 2021).
    """
    if layer.kernel_size != (1, _TAPS):
        raise ValueError(f"minirocket filters must be of (1, {_TAPS}), got {layer.kernel_size}")
    kernels = torch.full((math.comb(_TAPS, _TWOS), 1, _TAPS), -1.0, dtype=torch.float64)
    for kernel, places in zip(kernels, itertools.combinations(range(_TAPS), _TWOS), strict=True):
        kernel[0, list(places)] = 2
    return layer.bank(kernels, layer.spread(len(kernels)))
