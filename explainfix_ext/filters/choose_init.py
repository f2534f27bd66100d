"""choose_init says which initialisation "auto", the default, is for a layer: the best by bench/claims.md."""

from __future__ import annotations

from .hadamard import MOST_PLACES
from .registry import Layer, find_initializer, initializers

AUTO = "auto"
LINE = (
    "hadamard; ghaar4_s1, in 7x7 stems ghaar9_s1, for fewer than 8 inputs a group; sdct4 with density; "
    "dct2 for signals (the default)"
)
_FEW = 8  # inputs of an output, with which a transform mixes too little


def choose_init(layer: Layer, density: float) -> str:
    """Returns the name of an initialisation.

    Args:
        layer: as make_bank makes it.
        density: the share of filters that are not to be zero; a transform has only powers of two.
    """
    if layer.in_channels < _FEW or max(layer.in_channels, layer.out_channels // layer.groups) > MOST_PLACES:
        stem = layer.groups == 1 and min(layer.kernel_size) >= 7
        return "ghaar9_s1" if stem else "ghaar4_s1"
    return "sdct4" if density < 1 else "hadamard"


def init_names() -> dict[str, str]:
    """Returns "auto" and all registered initialisations, with one line on each."""
    return {AUTO: LINE, **initializers()}


def check_init(name: str) -> None:
    """Raises ValueError, with the nearest names, if `name` is neither "auto" nor an initialisation."""
    if name != AUTO:
        find_initializer(name)


def init_of_layer(init: str, learn_coeff: bool, kernel_size: tuple[int, ...]) -> str:
    """Returns `init`; but where "auto" needs all functions, it is "dct2": for coefficients to be learned, and for the
    kernels of signals, of which the others mix two functions alone (bench/RESULTS.md)."""
    signals = len(kernel_size) == 1 and kernel_size[0] > 1
    return "dct2" if init == AUTO and (learn_coeff or signals) else init
