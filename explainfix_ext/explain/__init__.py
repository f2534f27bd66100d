"""This room explains what a network's filters and channels do: saliency, frequencies, classes, and pictures of them."""

from .class_features import ClassFeatures, class_features
from .class_purity import ClassPurity, class_purity
from .explainsteer import explainsteer
from .patterns import Patterns, patterns
from .prca import ClassSubspaces, prca
from .saliency import saliency
from .spectra import Spectra

__all__ = [
    "ClassFeatures",
    "ClassPurity",
    "ClassSubspaces",
    "Patterns",
    "Spectra",
    "class_features",
    "class_purity",
    "explainsteer",
    "patterns",
    "prca",
    "saliency",
]
