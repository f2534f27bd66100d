"""Training with fewer activations kept: `save_memory`, and `memory_report` to see it.

kernels (passes over an activation) -> recipe (how a tensor is made again) -> functions (autograd) -> modules, blocks_*
(drop-in classes) -> save. trace proves what may be overwritten; flatten lets go of tensors early.
"""

from .flatten import flatten
from .report import MemoryReport, memory_report
from .save import MODES, MemoryChanges, save_memory

__all__ = ["MODES", "MemoryChanges", "MemoryReport", "flatten", "memory_report", "save_memory"]
