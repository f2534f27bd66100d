"""Training with fewer activations kept for the backward pass: `save_memory`, and `memory_report` to see the effect.

torch keeps the input of most layers until the backward pass. Here a layer keeps what is cheaper, and computes the rest
again. The words that the files of this room share:

    drop-in     a subclass (MemoryReLU) that `save_memory` puts in place of a module's class (nn.ReLU); the module, its
                parameters and its hooks stay. All drop-ins derive from MemorySaver.
    replay      how a tensor is computed again in the backward pass: a program and the tensors that it starts from.
    note        a replay is noted on the tensor that it is for, so that the next layer can keep the replay instead.
    deep        a replay that runs a convolution again. BatchNorm and activations may use one; a convolution may not, or
                one rerun would need another: of convolutions in a chain, every other one runs again.
    lossy       a replay that starts from 8-bit values, so that its result is not exact.

No output of a module is overwritten, unless the module is inplace as torch's is: nobody can know who else in Python
holds a tensor, be it an attribute, a list or a hook.

Each file builds on those before it: replay, notes, ownership (may a gradient be overwritten?), ranks (of
SyncBatchNorm) -> functions (autograd) -> saver (what drop-ins share) -> modules, blocks_torchvision, blocks_timm
(drop-ins), blocks (checkpoints) -> save, flatten.
Measuring: count -> plots, report.
"""

from .flatten import flatten
from .report import MemoryReport, memory_report
from .save import MODES, MemoryChanges, save_memory

__all__ = [
    "MODES",
    "MemoryChanges",
    "MemoryReport",
    "flatten",
    "memory_report",
    "save_memory",
]
