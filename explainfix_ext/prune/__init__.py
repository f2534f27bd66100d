"""This room prunes the filters of a network, and verifies that nothing else changed.

`channelprune` (channelprune.py) runs the steps in turn: trace/ follows the channels, score/ scores the filters, cut/
decides what can go and cuts it, verify.py compares the result with the masked model, report.py says what was done. The
public names are in `explainfix_ext`.

The words that its files share:

    id          the number of one channel of one value of the network; (ids,) tensors have an entry for each
    tied group  channels that go together or stay, known by the smallest id; score/units.py calls it a unit
    protected   a channel that must stay, with the reason; a held value is one whose channels are all protected
    masked      the model with zeros for the pruned filters and all its channels: what the pruned one must equal
    constant    a channel that does not depend on the model's input; zero filters make it one
    gone        (ids,) bool, the channels that are cut
    plan        what is cut, as a dict for JSON; elsewhere in the package a plan is a kernel's (ops/plans)
"""

from explainfix_ext.prune.cut.plan import apply_plan

from .channelprune import channelprune
from .low_rank import soft_low_rank
from .report import PruneReport
from .soft import keep_zeros, soft_prune, spectral_penalty

__all__ = [
    "PruneReport",
    "apply_plan",
    "channelprune",
    "keep_zeros",
    "soft_low_rank",
    "soft_prune",
    "spectral_penalty",
]
