"""Recipe: how a tensor is made again, in the backward pass, from tensors that are kept anyway.

A module that knows the recipe of its output notes it on the tensor. The next module may then keep the recipe's tensors
instead of its input: they are kept already, so that costs nothing. The note counts only as long as the tensor's version
is the one that it was written for: `out += identity` changes it. Where there is no recipe, the input itself is kept, as
torch does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from explainfix_ext._support.layout import memory_format_of
from explainfix_ext.ops import passes

ALL = slice(None)
PART = 2**20  # elements of a part: few enough to be little memory, enough to be worth a call
_NOTE = "_explainfix_recipe"


class Step(NamedTuple):
    """One operation of a recipe: run(results of `inputs` earlier steps, `takes` kept tensors, *static). `batched`: the
    kept tensors have a part for each image, along axis 0."""

    run: Callable[..., Tensor]
    inputs: int
    takes: int
    static: tuple[Any, ...] = ()
    batched: bool = False


@dataclass(frozen=True)
class Recipe:
    """A program for a stack of tensors.

    Attributes:
        steps: in order; each takes its inputs from the stack and puts its result there.
        tensors: what is kept, in the order in which the steps take them.
        deep: a convolution is run again. Modules that only need values (BatchNorm, activations) may use such a recipe;
            another convolution may not, or reruns would nest.
        lossy: the result is not exact.
        handoff: what one user of a deep recipe has made again, for the next one, whose turn comes right after.
    """

    steps: tuple[Step, ...]
    tensors: tuple[Tensor, ...]
    deep: bool = False
    lossy: bool = False
    handoff: list[Tensor] = field(default_factory=list, compare=False)

    @property
    def program(self) -> Recipe:
        """Without the tensors, which go through save_for_backward."""
        return replace(self, tensors=())

    @property
    def before_last(self) -> Recipe:
        """The program without its last step."""
        return replace(self, steps=self.steps[:-1], tensors=())

    def then(
        self,
        run: Callable[..., Tensor],
        tensors: Sequence[Tensor],
        *static: Any,
        deep: bool = False,
        batched: bool = False,
    ) -> Recipe:
        """With one more step."""
        step = Step(run, 1, len(tensors), static, batched)
        kept = tuple(t.detach() for t in tensors)
        return Recipe((*self.steps, step), (*self.tensors, *kept), self.deep or deep, self.lossy)


def rebuild(steps: Sequence[Step], tensors: Sequence[Tensor], images: slice = ALL) -> Tensor:
    """The tensor that a recipe is for, or some of its images.

    Recipes of several steps run a few images at a time where these are large, so that what lies between the first and
    the last step takes little memory.
    """
    batch = tensors[0].shape[0]
    parts = min(batch, sum(t.numel() for t in _batched(steps, tensors)) // PART)
    if len(steps) < 3 or images != ALL or parts < 2:
        return _run(steps, tensors, images)
    slices = [slice(batch * i // parts, batch * (i + 1) // parts) for i in range(parts)]
    first = _run(steps, tensors, slices[0])
    size = (batch, *first.shape[1:])
    result = torch.empty(size, dtype=first.dtype, device=first.device, memory_format=memory_format_of(first))
    result[slices[0]] = first
    del first
    for images in slices[1:]:
        result[images] = _run(steps, tensors, images)
    return result


def _batched(steps: Sequence[Step], tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    taken = 0
    for step in steps:
        if step.batched:
            yield from tensors[taken : taken + step.takes]
        taken += step.takes


def _run(steps: Sequence[Step], tensors: Sequence[Tensor], images: slice) -> Tensor:
    stack: list[Tensor] = []
    taken = 0
    for step in steps:
        inputs = [stack.pop() for _ in range(step.inputs)][::-1]
        kept = tensors[taken : taken + step.takes]
        if step.batched and images != ALL:
            kept = [t[images] for t in kept]
        stack.append(step.run(inputs, kept, *step.static))
        taken += step.takes
    (result,) = stack
    return result


def keep(x: Tensor) -> Recipe:
    """The tensor itself."""
    return Recipe((Step(_kept, 0, 1, batched=True),), (x.detach(),))


def keep_int8(x: Tensor) -> Recipe:
    """8 bits an element: an error of up to 1/510 of the range of its image and channel."""
    step = Step(_dequantized, 0, 3, (x.dtype,), batched=True)
    return Recipe((step,), tuple(passes.quantize(x.detach())), lossy=True)


def concatenated(parts: Sequence[Recipe]) -> Recipe:
    """Of the channels of several tensors."""
    steps = (*(s for part in parts for s in part.steps), Step(_concatenate, len(parts), 0))
    tensors = tuple(t for part in parts for t in part.tensors)
    return Recipe(steps, tensors, any(p.deep for p in parts), any(p.lossy for p in parts))


def affine(recipe: Recipe, alpha: Tensor, beta: Tensor) -> Recipe:
    """alpha x + beta, for each channel. A deep recipe's users share what they make again."""
    then = recipe.then(affine_activation, (alpha, beta), "identity", 0.0)
    return replace(then, handoff=recipe.handoff)


def activated(recipe: Recipe, act: str, slope: float) -> Recipe | None:
    """The activation of an affine function, in the same step; None where the recipe does not end in one."""
    *steps, last = recipe.steps
    if last.run is not affine_activation or last.static[0] != "identity":
        return None
    return replace(recipe, steps=(*steps, last._replace(static=(act, slope))), handoff=[])


class _Note(NamedTuple):
    recipe: Recipe | None
    version: int
    only_reader: bool


_NOTHING = _Note(None, 0, False)


def note(tensor: Tensor, recipe: Recipe | None, only_reader: bool = False) -> None:
    """Write the recipe of a tensor on it. `only_reader`: only one module will read the tensor."""
    setattr(tensor, _NOTE, _Note(recipe, tensor._version, only_reader))


def recipe_of(tensor: Tensor) -> Recipe | None:
    """The recipe that is noted on a tensor, if it has not been written to since."""
    found: _Note = getattr(tensor, _NOTE, _NOTHING)
    return found.recipe if found.version == tensor._version else None


def has_only_reader(tensor: Tensor) -> bool:
    return getattr(tensor, _NOTE, _NOTHING).only_reader


# --- steps ---------------------------------------------------------------------------------------------------------


def _kept(inputs: list[Tensor], kept: Sequence[Tensor]) -> Tensor:
    return kept[0]


def _dequantized(inputs: list[Tensor], kept: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return passes.dequantize(*kept, dtype)


def _concatenate(inputs: list[Tensor], kept: Sequence[Tensor]) -> Tensor:
    return torch.cat(inputs, 1)


def affine_activation(inputs: list[Tensor], kept: Sequence[Tensor], act: str, slope: float) -> Tensor:
    return passes.affine_act(inputs[0], kept[0], kept[1], passes.ACTIVATIONS[act], slope)


def scaled(inputs: list[Tensor], kept: Sequence[Tensor]) -> Tensor:
    return inputs[0] * kept[0]


def pooled(inputs: list[Tensor], kept: Sequence[Tensor], *geometry: Any) -> Tensor:
    return torch.ops.aten.max_pool2d_with_indices(inputs[0], *geometry)[0]
