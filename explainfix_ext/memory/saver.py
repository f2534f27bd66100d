"""MemorySaver: what every drop-in module shares."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import functions, replay
from .regions import Region, watched
from .replay import Recipe, keep, keep_int8, note, recipe_of

_SMALL_PLANE = 256  # pixels


class Saving(NamedTuple):
    """What save_memory decided for a module.

    Attributes:
        mode: "exact", "recompute" or "int8".
        region: of a convolution whose output goes to one BatchNorm and nowhere else: where that is known to be so.
    """

    mode: str
    region: Region | None = None

    @property
    def reruns(self) -> bool:
        return self.mode != "exact"


class MemorySaver(nn.Module):
    """Mixed into every drop-in module. `_saving` is set when the class is exchanged."""

    _saving: Saving

    def _applies(self, x: Any, *others: Tensor | None) -> bool:
        """Is this an ordinary call whose gradient is wanted?"""
        return self._ordinary(x) and any(t is not None and t.requires_grad for t in (x, *others))

    def _ordinary(self, x: Any) -> bool:
        return (
            isinstance(x, Tensor)
            and x.ndim == 4
            and x.is_floating_point()
            and x.numel() > 0
            and torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and not torch.onnx.is_in_onnx_export()
            and not torch._C._are_functorch_transforms_active()
            and torch.autograd.forward_ad._current_level < 0
        )

    def _note_output(self, y: Tensor, made: Recipe) -> None:
        """Of a convolution. Whoever is its only reader may overwrite it; a hook is a reader too."""
        region = self._saving.region
        note(y, made, only_reader=region is not None and region.running and not watched(self))

    def _keep(self, x: Tensor) -> Recipe:
        """The recipe of x; where it has none, x itself is kept, and says so to its other users."""
        found = recipe_of(x)
        if found is not None and not found.deep:
            return found
        kept = self._keep_value(x, x.requires_grad)
        if x.grad_fn is not None:  # no leaf of the user's
            note(x, kept)
        return kept

    def _keep_value(self, x: Tensor, computed: bool) -> Recipe:
        """x itself, or in 8 bits. What the network did not compute, an image, is there anyway. Small planes stay exact:
        they take little, and much of the error came from them (efficientnet_b0's gradients: 1.2 % with them in 8 bits,
        0.8 without)."""
        small = x.shape[2] * x.shape[3] <= _SMALL_PLANE
        return keep_int8(x) if self._saving.mode == "int8" and computed and not small else keep(x)

    def _scale_channels(self, x: Tensor, scale: Tensor) -> Tensor:
        """x * scale, as squeeze-and-excitation has it."""
        kept = recipe_of(x)
        if kept is None or kept.deep or not self._applies(x, scale):
            return x * scale
        y = functions.ChannelScale.apply(x, scale, kept)
        note(y, kept.then(replay.scaled, (scale,), batched=True))
        return y
