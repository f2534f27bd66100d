"""A limit on what this process may allocate, so that a test of hostile input fails in place of the machine."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def limited_memory(more: int = 1 << 30) -> Iterator[None]:
    """Allows the process `more` bytes of address space than it has; then MemoryError, or torch's RuntimeError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
