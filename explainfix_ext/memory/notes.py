"""Writes notes on the tensors that modules pass on: how one is computed again.

A module that knows how its output is computed again notes a Replay on it (`note`). The next module may then keep the
replay's tensors instead of its input (`replay_of`): they are kept already, so that costs nothing. Where there is no
note, the input itself is kept, as torch does.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .replay import Replay, as_type

_NOTE = "_explainfix_replay"


class Handover:
    """Passes a rebuilt tensor from one backward function to the next, so that a convolution runs again only once.

    A BatchNorm and a SiLU, Hardswish or GELU after it both need the BatchNorm's input. (ReLU and its kin keep bits, and
    leave the Handover empty.) Where that input's replay is deep, each
    call of the BatchNorm makes one Handover and notes it on its output. In the backward pass the activation comes first
    and puts the rebuilt input here; the BatchNorm, whose turn is right after, takes it.
    """

    def __init__(self) -> None:
        self._tensor: Tensor | None = None

    def put(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def take(self) -> Tensor | None:
        """Returns what was put here, once: it is not kept alive any longer than its taker needs it."""
        tensor, self._tensor = self._tensor, None
        return tensor


def taken(handover: Handover | None) -> Tensor | None:
    """Returns what was put into a Handover, if there is one."""
    return None if handover is None else handover.take()


class _Note(NamedTuple):
    """Holds what is noted on a tensor.

    It counts only while the tensor's version is the one it was written for: `out += identity` changes the version. And
    it counts only in the scope it was written in, so that a checkpointed function saves the same tensors when it runs
    again: a note from outside may be gone then, or what its first run noted on its input be new.
    """

    replay: Replay | None = None
    version: int = 0
    scope: Any = None
    handover: Handover | None = None

    def __reduce__(self) -> tuple:
        """Pickles and copies a tensor without what is noted on it, which is worth nothing outside of its graph."""
        return _Note, ()


_NOTHING = _Note()


def _scope() -> Any:
    """Stands for the hooks on saved tensors that are in force: each run of a checkpointed function has its own."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    try:
        return None if hooks is None else weakref.ref(hooks[0])
    except TypeError:  # a method of a class in C
        return hooks[0]


def note(tensor: Tensor, replay: Replay | None, *, handover: Handover | None = None) -> None:
    """Writes on a tensor how it is computed again.

    Args:
        handover: where an activation of the tensor leaves the rebuilt input of the BatchNorm that made the tensor.
    """
    setattr(tensor, _NOTE, _Note(replay, tensor._version, _scope(), handover))


def _noted(tensor: Tensor) -> _Note:
    found: _Note | None = getattr(tensor, _NOTE, None)
    if found is None or found.version != tensor._version or found.scope is not _scope():
        return _NOTHING
    return found


def replay_of(tensor: Tensor) -> Replay | None:
    """Returns the replay that is noted on a tensor, if the tensor has not been written to since."""
    return _noted(tensor).replay


def handover_of(tensor: Tensor) -> Handover | None:
    return _noted(tensor).handover


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Casts x as autocast does. What is noted on it goes along, so that no copy need be kept."""
    y, replay = x.to(dtype), replay_of(x)
    if y is not x and replay is not None:
        note(y, replay.then(as_type, (), dtype))
    return y
