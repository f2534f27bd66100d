"""This module defines the initialisations, one function each, which `make_bank` finds by name in the registry.

Source: ExplainFix 2023, unless a line says otherwise; the name in brackets is the paper's. The random draws of each
function are part of checkpoints: a bank is saved as its recipe, so a change here needs a new RECIPE_VERSION.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .bank import ZERO_FILTER, FilterBank
from .basis import dct_basis, ghaar2d, span
from .hadamard import MOST_PLACES, HadamardFilters
from .mixture import FilterMixture
from .random_streams import Stream
from .registry import Layer, register


def _low_dct(layer: Layer, frequencies: list[tuple[int, int]]) -> Tensor:
    """Returns the DCT-II functions of these frequencies (u, v), (L, kh, kw) float64."""
    kh, kw = layer.kernel_size
    rows = sorted({min(u, kh - 1) * kw + min(v, kw - 1) for u, v in frequencies})  # a 1 x K kernel has fewer
    return dct_basis(layer.kernel_size)[rows]


# --- index banks: every filter is one basis function ---------------------------------------------------------------


@register("dct2", "each filter one DCT-II function, every output a random permutation of them (the paper's DCT2)")
def _dct2(layer: Layer) -> FilterBank:
    return layer.bank(dct_basis(layer.kernel_size), layer.spread(layer.k2))


@register("sdct4", "each filter plus or minus one of the four lowest DCT-II functions, as often plus as minus")
def _sdct4(layer: Layer) -> FilterBank:
    basis = _low_dct(layer, [(0, 0), (0, 1), (1, 0), (1, 1)])
    signed = torch.cat([basis, -basis])
    # One filter an output: the functions are spread over the outputs instead.
    shape = (1, layer.out_channels) if layer.in_channels == 1 else (layer.out_channels, layer.in_channels)
    # Whole rounds, cut: every output draws from all of them, however few its inputs are.
    rounds = layer.stream("index").permutation(shape[0], -(-shape[1] // len(signed)) * len(signed))
    return layer.bank(signed, rounds[:, : shape[1]] % len(signed))


@register("dct2_fill0", "each input gives every DCT-II function to one random output; all other filters are zero")
def _dct2_fill0(layer: Layer) -> FilterBank:
    used = min(layer.out_channels, layer.k2)
    outputs = layer.stream("outputs").permutation(layer.in_channels, layer.out_channels)[:, :used]
    functions = layer.stream("functions").permutation(layer.in_channels, layer.k2)[:, :used]
    index = np.full((layer.out_channels, layer.in_channels), -1)  # -1: the zero filter
    np.put_along_axis(index.T, outputs, functions, axis=1)
    if layer.k2 <= ZERO_FILTER:
        return layer.bank(dct_basis(layer.kernel_size), np.where(index < 0, ZERO_FILTER, index))
    one_hot = np.eye(layer.k2 + 1)[index][..., :-1]  # -1 is the last row, which is zero without its last column
    return layer.bank(dct_basis(layer.kernel_size), one_hot)


@register("identity", "each filter passes its input through: 1 in the centre, 0 elsewhere (baseline)")
def _identity(layer: Layer) -> FilterBank:
    impulse = torch.zeros(1, *layer.kernel_size, dtype=torch.float64)
    impulse[0, layer.kernel_size[0] // 2, layer.kernel_size[1] // 2] = 1
    return layer.bank(impulse, np.zeros(layer.filters, dtype=int))


@register("ones", "each filter is a plain sum: 1 everywhere (baseline)")
def _ones(layer: Layer) -> FilterBank:
    return layer.bank(torch.ones(1, *layer.kernel_size, dtype=torch.float64), np.zeros(layer.filters, dtype=int))


# --- low rank: a few basis functions for the layer -----------------------------------------------------------------


def _few_dct(layer: Layer, frequencies: list[tuple[int, int]]) -> FilterBank:
    basis = _low_dct(layer, frequencies)
    return layer.bank(basis, layer.stream("weights").normal(layer.filters, len(basis)))


@register("ghaar4_s1", "normal weights on the four lowest DCT-II functions: rank 4, the fast one (GHaar4.s1)")
def _ghaar4_s1(layer: Layer) -> FilterBank:
    return _few_dct(layer, [(0, 0), (0, 1), (1, 0), (1, 1)])


@register("ghaar9_s1", "normal weights on the nine lowest DCT-II functions: as ghaar4_s1, for stems of 7x7 and more")
def _ghaar9_s1(layer: Layer) -> FilterBank:
    return _few_dct(layer, [(u, v) for u in range(3) for v in range(3)])


@register("ghaar4_s2", "normal weights on DCT-II functions 0, 2, 2K, 2K+1: rank 4, one scale finer (GHaar4.s2)")
def _ghaar4_s2(layer: Layer) -> FilterBank:
    return _few_dct(layer, [(0, 0), (0, 2), (2, 0), (2, 1)])


def _haar_bank(layer: Layer, f: np.ndarray, norm: bool) -> FilterBank:
    """Makes generalised Haar filters of frequencies f (one for each filter), over a basis of the space they span.

    That space has dimension 4K - 4, or 3 if all filters have the same frequency.
    """
    h, v, d = layer.stream("weights").uniform(3, layer.filters, low=-1, high=1)
    h, v, d, frequency = (torch.from_numpy(draw) for draw in (h, v, d, f))
    filters = ghaar2d(layer.kernel_size, h, v, d, f=frequency, norm=norm)
    period = 2 * (max(layer.kernel_size) - 1)
    # Filters of a fine grid of frequencies, each with one of h, v, d alone, span the space.
    grid = torch.linspace(0, period, 8 * period + 1, dtype=torch.float64) if np.ptp(f) else torch.tensor([f[0]])
    parts = [ghaar2d(layer.kernel_size, h, v, d, f=grid, norm=False) for h, v, d in np.eye(3).tolist()]
    basis = span(torch.cat(parts))
    return layer.bank(basis, filters.flatten(1) @ basis.flatten(1).T)


@register("ghaar", "generalised Haar filters of random frequency, not normalised (GHaar, ghaarA)")
def _ghaar(layer: Layer) -> FilterBank:
    high = 2 * (max(layer.kernel_size) - 1)
    return _haar_bank(layer, layer.stream("frequency").uniform(layer.filters, high=high), norm=False)


@register(
    "haar", 'Haar filters (frequency 1) of unit norm: rank 3; compat="paper": frequency U(0, n+1) of the n-th filter'
)
def _haar(layer: Layer, compat: str | None = None) -> FilterBank:
    if compat not in (None, "paper"):
        raise ValueError(f'compat must be None or "paper", got {compat!r}')
    f = np.ones(layer.filters)
    if compat == "paper":
        f = layer.stream("frequency").uniform(layer.filters) * (1 + np.arange(layer.filters))
    return _haar_bank(layer, f, norm=True)


# --- mixed by a fast transform ---------------------------------------------------------------------------------------


@register("hadamard", "signs of a Hadamard matrix times a column for each output and a row for each input: O(log C)")
def _hadamard(layer: Layer, terms: int = 1, functions: int = 2) -> FilterBank:
    """Makes columns and rows of the lowest `functions` DCT-II functions of their axis, added with random signs, `terms`
    times. Scaled so that an output's filters have a squared norm of 2 on average (He et al. 2015)."""
    kh, kw = layer.kernel_size
    for name, value, most in (("terms", terms, layer.k2), ("functions", functions, max(kh, kw, 2))):
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(f"{name} must be 1 to {most}, got {value!r}")
    groups, outputs, inputs = layer.groups, layer.out_channels // layer.groups, layer.in_channels
    if max(outputs, inputs) > MOST_PLACES:
        raise ValueError(f"hadamard filters must have at most {MOST_PLACES} channels, got {max(outputs, inputs)}")
    order = 1 << min(outputs, inputs).bit_length() - 1
    column_of, row_of = (dct_basis((k,))[:functions] for k in layer.kernel_size)

    def mixes(purpose: str, of: Tensor, *shape: int) -> Tensor:
        signs = np.where(layer.stream(purpose).uniform(terms, *shape, len(of)) < 0.5, -1.0, 1.0)
        return (torch.from_numpy(signs) @ of).float()

    columns = mixes("columns", column_of, layer.out_channels)
    rows = mixes("rows", row_of, -(-outputs // order), groups, inputs)
    places = torch.arange(max(outputs, inputs), dtype=torch.int16)
    input_places = (places[:inputs] % order).repeat(groups, 1)
    filters = HadamardFilters(columns, rows, places[:outputs].repeat(groups), input_places, order, order - 1)
    basis = torch.einsum("uh,vw->uvhw", column_of, row_of).flatten(0, 1)
    scale = math.sqrt(2 / (terms * len(basis) * inputs))
    return FilterBank(basis, scale=scale, hadamard=filters)


# --- full rank: every filter has its own functions -----------------------------------------------------------------


def _few_of_all(layer: Layer, rank: int, power: np.ndarray | None = None) -> FilterBank:
    """Makes each filter of `rank` distinct random DCT-II functions, with normal weights raised to `power`."""
    functions = layer.stream("functions").permutation(layer.filters, layer.k2)[:, :rank]
    weights = layer.stream("weights").normal(layer.filters, rank)
    coeff = np.zeros((layer.filters, layer.k2))
    np.put_along_axis(coeff, functions, weights if power is None else weights**power, axis=1)
    return layer.bank(dct_basis(layer.kernel_size), coeff)


def _random_rank(layer: Layer) -> int:
    return round(2 ** float(layer.stream("rank").uniform(1, high=math.log2(layer.k2))[0]))


@register("ghaar2_ms", "each filter two distinct random DCT-II functions, normal weights (GHaar2.ms)")
def _ghaar2_ms(layer: Layer) -> FilterBank:
    return _few_of_all(layer, min(2, layer.k2))


@register("ghaar4_ms", "each filter four distinct random DCT-II functions, normal weights (GHaar4.ms)")
def _ghaar4_ms(layer: Layer) -> FilterBank:
    return _few_of_all(layer, min(4, layer.k2))


@register("ghaar_r_ms", "each filter R random DCT-II functions, normal weights; one random R a layer (GHaarR.ms)")
def _ghaar_r_ms(layer: Layer) -> FilterBank:
    return _few_of_all(layer, _random_rank(layer))


@register("psine_r_ms", "as ghaar_r_ms, the weights raised to random integer powers (PsineR.ms)")
def _psine_r_ms(layer: Layer) -> FilterBank:
    rank = _random_rank(layer)
    high = math.ceil(max(2, 1 + (rank - 1) / 2))
    return _few_of_all(layer, rank, layer.stream("power").integers(1, high, layer.filters, rank))


CHUNK = 1 << 14  # filters that are made at a time: about 300,000 terms, 25 MB at 3x3


def psine_filters(n: int, kernel_size: tuple[int, int], stream: Callable[[str], Stream]) -> np.ndarray:
    """Makes n filters (n, kh*kw) of unit l2 norm for the initialisation "psine".

    Each filter is `polynomial_sine` of L = int(3 + 2^(6 U)) terms: frequencies U(0, fmax) with fmax ~ U(1, 5), phases
    U(0, 2 pi), powers round(U ((L-1)/2 - 1) + 1), weights 2 u / sum(u) - 1; then rescaled to [-1, 1] and normalised.
    """
    terms = (3 + 2 ** (6 * stream("terms").uniform(n))).astype(int)
    fmax = stream("fmax").uniform(n, low=1, high=5)
    draws = {name: stream(name) for name in ("frequency", "phase", "power", "weight")}
    parts = [slice(a, min(a + CHUNK, n)) for a in range(0, n, CHUNK)]
    return np.concatenate([_psine_chunk(terms[part], fmax[part], kernel_size, draws) for part in parts])


def _psine_chunk(
    terms: np.ndarray, fmax: np.ndarray, kernel_size: tuple[int, int], draws: dict[str, Stream]
) -> np.ndarray:
    """Makes filters of `terms[n]` terms each. The terms of all filters lie in flat arrays, one filter after another."""
    total, first = int(terms.sum()), np.concatenate([[0], np.cumsum(terms)[:-1]])  # first: where a filter's terms begin
    f = draws["frequency"].uniform(2, total) * np.repeat(fmax, terms)
    t = draws["phase"].uniform(2, total, high=2 * math.pi)
    p = np.rint(draws["power"].uniform(total) * ((np.repeat(terms, terms) - 1) / 2 - 1) + 1)
    u = draws["weight"].uniform(total)
    w = 2 * u / np.repeat(np.add.reduceat(u, first), terms) - 1
    rows, cols = (
        np.sin(np.linspace(0, math.pi, size) * f[axis][:, None] + t[axis][:, None])
        for axis, size in enumerate(kernel_size)
    )
    # (rows cols)^p = rows^p cols^p takes powers of kh + kw numbers for each term instead of kh * kw.
    rows, cols = rows ** p[:, None] * w[:, None], cols ** p[:, None]
    filters = np.add.reduceat((rows[:, :, None] * cols[:, None, :]).reshape(total, -1), first)
    low, high = filters.min(1, keepdims=True), filters.max(1, keepdims=True)
    filters = 2 * (filters - low) / np.maximum(high - low, 1e-300) - 1
    return filters / np.linalg.norm(filters, axis=1, keepdims=True)


@register("psine", "polynomials of sines of random frequency and phase, of unit norm (Psine)")
def _psine(layer: Layer) -> FilterBank:
    return layer.pixels(psine_filters(layer.filters, layer.kernel_size, layer.stream))


@register("kaiming_uniform", "uniform within 1/sqrt(fan in), as nn.Conv2d starts (baseline)")
def _kaiming_uniform(layer: Layer) -> FilterBank:
    bound = 1 / math.sqrt(layer.in_channels * layer.k2)
    return layer.pixels(layer.stream("weights").uniform(layer.filters, layer.k2, low=-bound, high=bound))


# --- from given filters --------------------------------------------------------------------------------------------


def _given(layer: Layer, weight: Tensor) -> Tensor:
    if not isinstance(weight, Tensor):
        raise ValueError(f"weight must be a tensor, got {type(weight).__name__}")
    expected = [layer.out_channels, layer.in_channels, *layer.kernel_size]
    if list(weight.shape) != expected:
        raise ValueError(f"weight must be [O, I/groups, kh, kw] = {expected}, got {list(weight.shape)}")
    if not weight.is_floating_point():
        raise ValueError(f"weight must be floating, got {weight.dtype}")
    weight = weight.detach()
    return weight if weight.is_meta else weight.cpu()


@register("unchanged", "the layer's own (pretrained) filters, exactly; energy= or rank= compresses them")
def _unchanged(
    layer: Layer, weight: Tensor, energy: float = 1.0, rank: int | None = None, energy_transfer: bool = False
) -> FilterBank:
    return FilterBank.from_weight(_given(layer, weight), energy, rank, energy_transfer)


@register("fill_zero", "the layer's own filters with the zeros filled: normal within a filter, kaiming for a whole one")
def _fill_zero(layer: Layer, weight: Tensor) -> FilterBank:
    if weight.is_meta:
        raise ValueError("weight must hold numbers for fill_zero to repair, and is on the meta device")
    w = _given(layer, weight).double().reshape(layer.filters, layer.k2)
    noise = torch.from_numpy(layer.stream("weights").normal(*w.shape))
    filled = torch.where(w == 0, w.mean(1, keepdim=True) + noise * w.std(1, keepdim=True, correction=0), w)
    fresh = _kaiming_uniform(layer).weight(torch.float64).reshape(w.shape)
    filled = torch.where((w == 0).all(1, keepdim=True), fresh, filled)
    return layer.pixels(filled)


@register("guided_steer", "like a pretrained layer's filters: drawn from what fit_steering found of it (GuidedSteer)")
@register("svd_steer", "as guided_steer, with one basis for all layers of a kernel size (SVDsteering)")
@register("dct_steer", "as guided_steer, on the DCT-II basis, whose fast kernels it keeps (DCT2steering)")
def _steered(layer: Layer, steering: FilterMixture) -> FilterBank:
    if not isinstance(steering, FilterMixture):
        raise ValueError(f"steering must be a FilterMixture (fit_steering(m).layers), got {type(steering).__name__}")
    if steering.kernel_size != layer.kernel_size:
        sizes = ["{}x{}".format(*size) for size in (layer.kernel_size, steering.kernel_size)]
        raise ValueError(f"steering must be of filters of {sizes[0]}, got {sizes[1]}")
    return layer.bank(steering.basis, steering.draw(layer.filters, layer.stream))
