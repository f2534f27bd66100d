"""Defines what all drop-ins share, and puts one in a module's place (`exchange`) or takes it away for save.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from . import functions
from .notes import note, replay_of
from .regions import Region
from .replay import Replay, keep, keep_int8, scaled

_SMALL_PLANE = 256  # pixels
# Another subclass may give each operation a meaning of its own; a FakeTensor's are torch's, without numbers.
PLAIN = (Tensor, nn.Parameter, FakeTensor)


class Saving(NamedTuple):
    """Holds what save_memory decided for a module. It is pickled with the module.

    Attributes:
        mode: "exact", "recompute" or "int8".
        region: of a model that version 0.1 has pickled, the Region whose hooks are to be removed; else None.
    """

    mode: str
    region: Region | None = None

    @property
    def reruns(self) -> bool:
        """Tells whether convolutions run again in the backward pass."""
        return self.mode != "exact"


class MemorySaver(nn.Module):
    """Tells, for all drop-ins, whether one applies to a call, and keeps its input or the replay of that."""

    _saving: Saving
    _dims: Sequence[int] = (4,)  # numbers of axes that the drop-in takes

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuses torch.jit.script, which asks for this first."""
        raise RuntimeError(
            'torch.jit.script cannot compile what save_memory has put into the model: call save_memory(model, "off") '
            "before it, or use torch.jit.trace or torch.export"
        )

    def _applies(self, x: Any, *others: Tensor | None) -> bool:
        """Says whether this is an ordinary call whose gradient is wanted, by x or by a parameter."""
        if not self._ordinary(x, *others):
            return False
        return x.requires_grad or any(t is not None and t.requires_grad for t in others)

    def _ordinary(self, x: Any, *others: Tensor | None) -> bool:
        """Says whether torch's autograd alone records this call, on a batch with gradients on; else the plain
        class runs."""
        if torch.compiler.is_compiling() or torch._C._is_tracing() or not torch.is_grad_enabled():
            return False
        for t in (x, *others):
            if t is not None and (type(t) not in PLAIN or t.is_inference()):
                return False
        return (
            x.ndim in self._dims
            and x.is_floating_point()
            and x.numel() > 0
            and not torch._C._are_functorch_transforms_active()
            and torch.autograd.forward_ad._current_level < 0
        )

    def _keep(self, x: Tensor) -> Replay:
        """Returns the replay of x. Where it has none, x itself is kept, and a note tells its other consumers."""
        found = replay_of(x)
        if found is not None and not found.deep:
            return found
        kept = self._keep_value(x, x.requires_grad)
        if x.grad_fn is not None:  # no tensor of the user's
            note(x, kept)
        return kept

    def _keep_value(self, x: Tensor, computed: bool) -> Replay:
        """Keeps x itself, or in mode "int8" 8 bits of it if the network computed it: an image is there anyway.

        Small planes stay exact: they take little, and much of the error came from them (efficientnet_b0's gradients are
        off by 1.2 % with them in 8 bits, by 0.8 % without). So do sequences and volumes, which no kernel takes.
        """
        lossy = self._saving.mode == "int8" and computed and x.ndim == 4 and x.shape[2:].numel() > _SMALL_PLANE
        return keep_int8(x) if lossy else keep(x)

    def _scale_channels(self, x: Tensor, scale: Tensor) -> Tensor:
        """Multiplies x by scale (N, C, 1, 1), as squeeze-and-excitation does."""
        replay = replay_of(x) if self._applies(x, scale) else None
        if replay is None or replay.deep:
            return x * scale
        y = functions.ChannelScale.apply(x, scale, replay)
        note(y, replay.then(scaled, (scale,), batched=True))
        return y


def exchange(module: nn.Module, drop_in: type[MemorySaver], saving: Saving) -> None:
    """Makes a module a drop-in."""
    module.__dict__["__module__"] = type(module).__module__  # by which torch.fx keeps modules of torch.nn whole
    module.__class__ = drop_in
    module.__dict__["_saving"] = saving


def restore(module: MemorySaver, plain: type[nn.Module]) -> None:
    """Gives a drop-in its plain class back. The hooks of its region go too."""
    saving: Saving = module.__dict__.pop("_saving")
    module.__dict__.pop("__module__", None)
    module.__class__ = plain  # type: ignore[assignment]
    if saving.region is not None:
        saving.region.remove()
