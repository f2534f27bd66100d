"""Training with fewer activations kept: `save_memory`, and `memory_report` to see it.

kernels (passes over an activation) -> recipe (how a tensor is made again) -> functions (autograd) -> modules, blocks
(drop-in classes) -> save. trace proves what may be overwritten.
"""

from .report import MemoryReport, memory_report
from .save import MODES, MemoryChanges, save_memory

__all__ = ["MODES", "MemoryChanges", "MemoryReport", "memory_report", "save_memory"]
