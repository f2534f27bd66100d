"""This room prunes the filters of a network, and verifies that nothing else changed.

`channelprune` (channelprune.py) runs the steps in turn: trace/ follows the channels, score/ scores the filters, cut/
decides what can go and cuts it, verify.py compares the result with the masked model, report.py says what was done. The
public names are in `explainfix_ext`.
"""

from explainfix_ext.prune.cut.plan import apply_plan

from .channelprune import channelprune
from .report import PruneReport
from .soft import keep_zeros, soft_prune

__all__ = ["PruneReport", "apply_plan", "channelprune", "keep_zeros", "soft_prune"]
