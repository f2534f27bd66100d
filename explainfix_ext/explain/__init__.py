"""This room explains what a network does with images.

`saliency`, `explainsteer` and `Spectra` are about its filters and their frequencies, `relevance` and
`frequency_relevance` about where in an image its answer comes from. `plain` copies it for libraries that read weights.
"""

from .explainsteer import explainsteer
from .frequency_relevance import FrequencyMaps, frequency_relevance
from .plain import plain
from .relevance import Relevance, relevance
from .saliency import saliency
from .spectra import Spectra

__all__ = [
    "FrequencyMaps",
    "Relevance",
    "Spectra",
    "explainsteer",
    "frequency_relevance",
    "plain",
    "relevance",
    "saliency",
]
