"""This module shows a progress bar over batches, drawn by rich, and tells a program how far its long loops are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, TypeVar

Item = TypeVar("Item")


def with_progress(batches: Iterable[Item], description: str, count: int | None) -> Iterator[Item]:
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


_watcher: Callable[[Sequence[Any], str], Iterator[Any]] | None = None


@contextlib.contextmanager
def watched_by(track: Callable[[Sequence[Any], str], Iterator[Any]]) -> Iterator[None]:
    """Lets `track` show the progress of every `counted` loop in the block, however deep it is."""
    global _watcher
    before, _watcher = _watcher, track
    try:
        yield
    finally:
        _watcher = before


def counted(items: Sequence[Item], name: str) -> Iterator[Item]:
    """Returns an iterator over the items of a long loop, which a program may show, see `watched_by`.

    Args:
        name: what is done with the items, in a few words.
    """
    return iter(items) if _watcher is None else _watcher(items, name)
