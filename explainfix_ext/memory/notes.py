"""Writes notes on the tensors that modules pass on: how one is computed again, and whether it may be overwritten.

A module that knows how its output is computed again notes a Replay on it (`note`). The next module may then keep the
replay's tensors instead of its input (`replay_of`): they are kept already, so that costs nothing. Where there is no
note, the input itself is kept, as torch does.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .replay import Replay

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


class _Note(NamedTuple):
    """Holds what is noted on a tensor.

    It counts only while the tensor's version is the one it was written for: `out += identity` changes the version.
    """

    replay: Replay | None = None
    version: int = 0
    single_consumer: bool = False
    handover: Handover | None = None


_NOTHING = _Note()


def note(
    tensor: Tensor, replay: Replay | None, *, single_consumer: bool = False, handover: Handover | None = None
) -> None:
    """Writes on a tensor how it is computed again.

    Args:
        single_consumer: only one module will read the tensor, and may overwrite it.
        handover: where an activation of the tensor leaves the rebuilt input of the BatchNorm that made the tensor.
    """
    setattr(tensor, _NOTE, _Note(replay, tensor._version, single_consumer, handover))


def _noted(tensor: Tensor) -> _Note:
    found: _Note | None = getattr(tensor, _NOTE, None)
    return found if found is not None and found.version == tensor._version else _NOTHING


def replay_of(tensor: Tensor) -> Replay | None:
    """Returns the replay that is noted on a tensor, if the tensor has not been written to since."""
    return _noted(tensor).replay


def has_single_consumer(tensor: Tensor) -> bool:
    return _noted(tensor).single_consumer


def handover_of(tensor: Tensor) -> Handover | None:
    return _noted(tensor).handover
