"""This room explains what a network's spatial filters do: their saliency, their frequencies, and pictures of both."""

from .explainsteer import explainsteer
from .saliency import saliency
from .spectra import Spectra

__all__ = ["Spectra", "explainsteer", "saliency"]
