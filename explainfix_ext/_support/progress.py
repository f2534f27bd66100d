"""A progress bar over batches, where rich is installed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

Batch = TypeVar("Batch")


def with_progress(batches: Iterable[Batch], description: str, count: int | None) -> Iterator[Batch]:
    """The batches, with a bar on stderr that is full after `count` of them (None: after all).

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
