"""Convolutional networks whose spatial filters are fixed (ExplainFix 2023). `status()` says what runs here."""

import sys
from importlib import import_module
from importlib.metadata import version

from . import functional
from .conversion.convert import convert
from .conversion.fit_head import fit_head
from .conversion.fit_saab import fit_saab
from .conversion.report import ConversionReport
from .deploy import Optimized, optimize_for_inference
from .explain import (
    ClassFeatures,
    ClassPurity,
    ClassSubspaces,
    FrequencyMaps,
    Patterns,
    Relevance,
    Spectra,
    class_features,
    class_purity,
    explainsteer,
    frequency_relevance,
    patterns,
    plain,
    prca,
    relevance,
    saliency,
)
from .filters.bank import FilterBank, Recipe
from .filters.basis import dct_basis, frequency_order, ghaar2d, polynomial_sine, steer
from .filters.make_bank import initializers, make_bank
from .filters.steering import Steering, fit_steering
from .functional import fixed_conv2d
from .memory import MemoryReport, memory_report, save_memory
from .memory.budget import MemoryPlan, memory_plan
from .memory.streaming import StreamReport, stream, unstream
from .nn.fixed_conv1d import FixedConv1d
from .nn.fixed_conv2d import FixedConv2d
from .nn.summary import Summary, summary
from .nn.swap import revert
from .ops import binaries
from .ops.plans.tune import install as _install_choice
from .ops.plans.tune import tune
from .ops.status import Status, status
from .prune import (
    PruneReport,
    apply_plan,
    channelprune,
    keep_zeros,
    soft_low_rank,
    soft_prune,
    spectral_penalty,
)

__version__ = version("explainfix_ext")
__all__ = [
    "ClassFeatures",
    "ClassPurity",
    "ClassSubspaces",
    "ConversionReport",
    "FilterBank",
    "FixedConv1d",
    "FixedConv2d",
    "FrequencyMaps",
    "MemoryPlan",
    "MemoryReport",
    "Optimized",
    "Patterns",
    "PruneReport",
    "Recipe",
    "Relevance",
    "Spectra",
    "Status",
    "Steering",
    "StreamReport",
    "Summary",
    "apply_plan",
    "channelprune",
    "class_features",
    "class_purity",
    "convert",
    "dct_basis",
    "explainsteer",
    "fit_head",
    "fit_saab",
    "fit_steering",
    "fixed_conv2d",
    "frequency_order",
    "frequency_relevance",
    "functional",
    "ghaar2d",
    "initializers",
    "keep_zeros",
    "make_bank",
    "memory_plan",
    "memory_report",
    "optimize_for_inference",
    "patterns",
    "plain",
    "polynomial_sine",
    "prca",
    "relevance",
    "revert",
    "saliency",
    "save_memory",
    "soft_low_rank",
    "soft_prune",
    "spectral_penalty",
    "status",
    "steer",
    "stream",
    "summary",
    "tune",
    "unstream",
]

binaries.load()
_install_choice()

# torch.save(model) and pickle write the module of each class. Files of version 0.1 name the modules on the left, from
# before the rooms.
for _old, _new in {
    "bank": "filters.bank",
    "conv": "nn.fixed_conv2d",
    "conv_same": "nn.fixed_conv2d_same",
    "convert": "conversion.convert",
    "memory.account": "memory.count",
    "memory.trace": "memory.regions",
    "mixture": "filters.mixture",
    "status": "ops.status",
    "steering": "filters.steering",
    "summary": "nn.summary",
}.items():
    sys.modules[f"{__name__}.{_old}"] = import_module(f".{_new}", __name__)
del _old, _new
