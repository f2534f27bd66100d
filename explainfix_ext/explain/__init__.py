"""This room explains what a network does with images.

`saliency`, `explainsteer` and `Spectra` are about its filters and their frequencies, `relevance` and
`frequency_relevance` about where in an image its answer comes from, `class_purity`, `class_features`, `patterns` and
`prca` about what channels, groups of images and directions say of classes. `plain` copies it for libraries that read
weights.
"""

from .class_features import ClassFeatures, class_features
from .class_purity import ClassPurity, class_purity
from .explainsteer import explainsteer
from .frequency_relevance import FrequencyMaps, frequency_relevance
from .patterns import Patterns, patterns
from .plain import plain
from .prca import ClassSubspaces, prca
from .relevance import Relevance, relevance
from .saliency import saliency
from .spectra import Spectra

__all__ = [
    "ClassFeatures",
    "ClassPurity",
    "ClassSubspaces",
    "FrequencyMaps",
    "Patterns",
    "Relevance",
    "Spectra",
    "class_features",
    "class_purity",
    "explainsteer",
    "frequency_relevance",
    "patterns",
    "plain",
    "prca",
    "relevance",
    "saliency",
]
