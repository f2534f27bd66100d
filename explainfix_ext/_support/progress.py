"""This module shows a progress bar over batches, drawn by rich."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

Batch = TypeVar("Batch")


def with_progress(batches: Iterable[Batch], description: str, count: int | None) -> Iterator[Batch]:
    """Returns an iterator over the batches that shows a bar on stderr, full after `count` of them (None: after all).

    Raises:
        ImportError: rich is not installed.
    """
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        raise ImportError('progress=True needs rich: pip install "explainfix_ext[demo]"') from None
    total = len(batches) if isinstance(batches, Sized) else count
    if total is not None and count is not None:
        total = min(total, count)
    return iter(track(batches, description, total, console=Console(stderr=True)))
