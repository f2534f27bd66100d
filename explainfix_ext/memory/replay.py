"""Computes a tensor again in the backward pass from tensors that are kept anyway.

The drop-ins make replays; the autograd functions of functions.py keep and run them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from explainfix_ext._support.layout import memory_format_of
from explainfix_ext.ops import passes

_ALL = slice(None)
_PART = 2**20  # elements of a part: few enough to be little memory, enough to be worth a call


class Step(NamedTuple):
    """Describes one operation of a program, which computes run(inputs, tensors, *arguments).

    Attributes:
        run: the function that computes the step's result.
        input_count: how many results of earlier steps it takes from the stack.
        tensor_count: how many of the replay's tensors it takes: the next ones in order.
        arguments: what else the function is given.
        batched: axis 0 of these tensors counts images, so that a slice of them gives a slice of the result.
    """

    run: Callable[..., Tensor]
    input_count: int
    tensor_count: int
    arguments: tuple[Any, ...] = ()
    batched: bool = False


class Program(NamedTuple):
    """Holds the steps of a replay, but not its tensors.

    An autograd function stores the program on ctx, and the tensors by save_for_backward. The steps work on a stack:
    each takes its inputs from it and puts its result there. The last result is the tensor.

    Attributes:
        steps: the operations in order.
        deep: a convolution is among them.
        lossy: the result is not exact.
    """

    steps: tuple[Step, ...]
    deep: bool = False
    lossy: bool = False

    @property
    def without_last(self) -> Program:
        """The program that computes the last step's input."""
        return Program(self.steps[:-1], self.deep, self.lossy)

    def rebuild(self, tensors: Sequence[Tensor], images: slice = _ALL) -> Tensor:
        """Computes the tensor, or the given images of it.

        Programs of several steps run a few images at a time where these are large, so that what lies between the first
        and the last step takes little memory.
        """
        if len(self.steps) < 3 or images != _ALL:
            return self._run(tensors, images)
        batch = tensors[0].shape[0]
        parts = min(batch, sum(t.numel() for t in self._batched(tensors)) // _PART)
        if parts < 2:
            return self._run(tensors, images)
        slices = [slice(batch * i // parts, batch * (i + 1) // parts) for i in range(parts)]
        first = self._run(tensors, slices[0])
        size = (batch, *first.shape[1:])
        result = torch.empty(size, dtype=first.dtype, device=first.device, memory_format=memory_format_of(first))
        result[slices[0]] = first
        del first
        for images in slices[1:]:
            result[images] = self._run(tensors, images)
        return result

    def _batched(self, tensors: Sequence[Tensor]) -> Iterator[Tensor]:
        taken = 0
        for step in self.steps:
            if step.batched:
                yield from tensors[taken : taken + step.tensor_count]
            taken += step.tensor_count

    def _run(self, tensors: Sequence[Tensor], images: slice) -> Tensor:
        stack: list[Tensor] = []
        taken = 0
        for step in self.steps:
            bottom = len(stack) - step.input_count
            inputs, stack[bottom:] = stack[bottom:], []
            own = tensors[taken : taken + step.tensor_count]
            if step.batched and images != _ALL:
                own = [t[images] for t in own]
            stack.append(step.run(inputs, own, *step.arguments))
            taken += step.tensor_count
        (result,) = stack
        return result


class Replay(NamedTuple):
    """Says how one tensor is computed again: by a program, and the tensors that its steps take, in their order."""

    program: Program
    tensors: tuple[Tensor, ...]

    @property
    def is_kept(self) -> bool:
        """Tells whether the tensor itself is kept."""
        return self.program is _KEPT

    @property
    def deep(self) -> bool:
        return self.program.deep

    @property
    def lossy(self) -> bool:
        return self.program.lossy

    @property
    def is_affine(self) -> bool:
        """Tells whether the last step is a BatchNorm's."""
        return self.program.steps[-1] is _AFFINE

    def then(
        self,
        run: Callable[..., Tensor],
        tensors: Sequence[Tensor],
        *arguments: Any,
        deep: bool = False,
        batched: bool = False,
    ) -> Replay:
        """Adds a step that takes this replay's result. The arguments are those of Step and Program."""
        step = Step(run, 1, len(tensors), arguments, batched)
        program = Program((*self.program.steps, step), self.deep or deep, self.lossy)
        return Replay(program, (*self.tensors, *(t.detach() for t in tensors)))


class Rebuilt:
    """Gives a backward function the tensor that a program computes, whole or some images at a time.

    It is whole where that costs little memory or parts would cost much time: it is given, or small; the program only
    reads it; or a convolution would run again for each use. Else each part is computed when it is asked for.

    Args:
        shape: the tensor's.
        twice: all of it will be asked for again.
        given: the tensor, where an earlier backward function has rebuilt it already.
    """

    def __init__(
        self, program: Program, tensors: Sequence[Tensor], shape: torch.Size, *, twice: bool, given: Tensor | None
    ) -> None:
        self._program, self._tensors = program, tensors
        self._tensor = given
        only_reads = len(program.steps) == 1 and not program.lossy
        rerun_twice = twice and program.deep
        self._whole = self._tensor is not None or rerun_twice or only_reads or shape.numel() < 2 * _PART
        step = shape[0] if self._whole else -(-shape[0] // 8)
        self.slices = [_ALL] if self._whole else [slice(i, i + step) for i in range(0, shape[0], step)]

    def of(self, tensor: Tensor, images: slice) -> Tensor:
        """Returns these images of another tensor: itself where they are all."""
        return tensor if self._whole else tensor[images]

    def part(self, images: slice) -> Tensor:
        """Returns the images of one of `slices`."""
        return self.whole() if self._whole else self._program.rebuild(self._tensors, images)

    def whole(self) -> Tensor:
        if self._tensor is None:
            self._tensor = self._program.rebuild(self._tensors)
        return self._tensor


def keep(x: Tensor) -> Replay:
    """Makes the replay that keeps x itself."""
    return Replay(_KEPT, (x.detach(),))


def keep_int8(x: Tensor) -> Replay:
    """Makes the replay that keeps x in 8 bits an element: off by up to 1/510 of the range of its image and channel."""
    step = Step(_dequantized, 0, 3, (x.dtype,), batched=True)
    return Replay(Program((step,), lossy=True), tuple(passes.quantize(x.detach())))


def concatenated(parts: Sequence[Replay]) -> Replay:
    """Joins the replays of several tensors into that of their concatenation along the channels."""
    steps = (*(s for part in parts for s in part.program.steps), Step(_concatenate, len(parts), 0))
    tensors = tuple(t for part in parts for t in part.tensors)
    return Replay(Program(steps, any(p.deep for p in parts), any(p.lossy for p in parts)), tensors)


def shallow(replay: Replay) -> Replay:
    """Lets other layers rebuild by a convolution that is cheap enough to run once for each of them."""
    return Replay(replay.program._replace(deep=False), replay.tensors)


def affine(replay: Replay, factors: Tensor) -> Replay:
    """Adds the step alpha x + beta of a BatchNorm, whose factors are passes.py's."""
    program, tensors = replay
    return Replay(Program((*program.steps, _AFFINE), program.deep, program.lossy), (*tensors, factors))


def activated(replay: Replay, act: str, slope: float) -> Replay | None:
    """Puts an activation into the affine step that `replay` ends in, or adds a step; None after a convolution."""
    program, tensors = replay
    if not replay.is_affine:
        return None if replay.deep else replay.then(acted, (), act, slope)
    step = Step(affine_activation, 1, 1, (act, slope))
    return Replay(Program((*program.steps[:-1], step), program.deep, program.lossy), tensors)


# --- what steps run: (results of earlier steps, the step's tensors, arguments) -> the tensor ------------------------
# A tensor is pickled with its note, which names these functions: they keep their names.


def _kept(inputs: list[Tensor], tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0]


_KEPT = Program((Step(_kept, 0, 1, batched=True),))


def _dequantized(inputs: list[Tensor], tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    codes, low, step = tensors
    return passes.dequantize(codes, low, step, dtype)


def _concatenate(inputs: list[Tensor], tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat(inputs, 1)


def affine_activation(inputs: list[Tensor], tensors: Sequence[Tensor], act: str, slope: float) -> Tensor:
    return passes.affine_act(inputs[0], tensors[0], passes.ACTIVATIONS[act], slope)


def acted(inputs: list[Tensor], tensors: Sequence[Tensor], act: str, slope: float) -> Tensor:
    return passes.activate(inputs[0], act, slope)


_AFFINE = Step(affine_activation, 1, 1, ("identity", 0.0))


def scaled(inputs: list[Tensor], tensors: Sequence[Tensor]) -> Tensor:
    return inputs[0] * tensors[0]


def pooled(inputs: list[Tensor], tensors: Sequence[Tensor], *geometry: Any) -> Tensor:
    return torch.ops.aten.max_pool2d_with_indices(inputs[0], *geometry)[0]


def as_type(inputs: list[Tensor], tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return inputs[0].to(dtype)
