"""Convolutional networks whose spatial filters are fixed (ExplainFix 2023). `status()` says what runs here."""

from importlib.metadata import version

from . import _loader, functional
from .bank import FilterBank, Recipe
from .basis import dct_basis, frequency_order, ghaar2d, polynomial_sine, steer
from .conv import FixedConv2d
from .convert import ConversionReport, convert, revert
from .explain import Spectra, explainsteer
from .functional import fixed_conv2d
from .initializers import initializers, make_bank
from .memory import MemoryReport, memory_report, save_memory
from .prune import PruneReport, apply_plan, channelprune, keep_zeros, soft_prune
from .saliency import saliency
from .status import Status, status
from .steering import Steering, fit_steering
from .summary import Summary, summary

__version__ = version("explainfix_ext")
__all__ = [
    "ConversionReport",
    "FilterBank",
    "FixedConv2d",
    "MemoryReport",
    "PruneReport",
    "Recipe",
    "Spectra",
    "Status",
    "Steering",
    "Summary",
    "apply_plan",
    "channelprune",
    "convert",
    "dct_basis",
    "explainsteer",
    "fit_steering",
    "fixed_conv2d",
    "frequency_order",
    "functional",
    "ghaar2d",
    "initializers",
    "keep_zeros",
    "make_bank",
    "memory_report",
    "polynomial_sine",
    "revert",
    "saliency",
    "save_memory",
    "soft_prune",
    "status",
    "steer",
    "summary",
]

_loader.load()
