"""Prune the filters of a network, and prove that nothing else changed. The public names are in `explainfix_ext`."""

from explainfix_ext.prune.cut.plan import apply_plan

from .channelprune import channelprune
from .report import PruneReport
from .soft import keep_zeros, soft_prune

__all__ = ["PruneReport", "apply_plan", "channelprune", "keep_zeros", "soft_prune"]
