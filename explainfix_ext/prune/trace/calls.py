"""This module holds Call: one operation of a traced network, which can be repeated on other tensors.

The walk (fx_trace.py) and its rules ask a Call what kind of operation it is, and try it on numbers and on ids.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from .values import Value

# Operations that move elements and compute nothing.
_MOVING_MODULES = (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)
_MOVING_METHODS = (
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "movedim", "squeeze", "unsqueeze", "expand",
    "repeat", "contiguous", "flip", "roll", "chunk", "split", "unbind", "narrow", "select",
)  # fmt: skip
_MOVING = {getattr(torch, name) for name in _MOVING_METHODS if hasattr(torch, name)} | {
    torch.cat, torch.concat, torch.concatenate, torch.stack, operator.getitem,
    F.pixel_shuffle, F.pixel_unshuffle, torch.pixel_shuffle, torch.channel_shuffle,
}  # fmt: skip
_RESHAPING = {"view", "reshape", torch.reshape}
_SPLITTING = {"chunk", "split", torch.chunk, torch.split}
# Operations that mix channels, if by little.
_MIXING_MODULES = (nn.LocalResponseNorm, nn.CrossMapLRN2d)
_PRODUCTS = {"mul", "mul_", torch.mul, torch.multiply, operator.mul, operator.imul}


class Call:
    """Repeats the operation of one torch.fx node: `call(tensors)`, with one tensor for each Value in its arguments.

    Attributes:
        node: the torch.fx node.
        args, kwargs: its arguments, with Values in place of tensors.
        module: the module that it calls, or None.
        takes_sizes: True if a number among the arguments is computed, as from the size of the image.
    """

    def __init__(self, runner: fx.Interpreter, root: nn.Module, node: fx.Node, args: Any, kwargs: Any) -> None:
        self.node, self.args, self.kwargs = node, args, kwargs
        self.module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
        self.takes_sizes = any(_is_number(runner.env[one]) for one in node.all_input_nodes)
        self._run = partial(getattr(runner, str(node.op)), node.target)

    def __call__(self, tensors: list[Tensor]) -> Any:
        replacements = iter(tensors)
        arguments: Any = map_aggregate(
            (self.args, self.kwargs), lambda v: next(replacements) if isinstance(v, Value) else v
        )
        with torch.no_grad():
            return self._run(tuple(arguments[0]), dict(arguments[1]))

    def __str__(self) -> str:
        if self.module is not None:
            return f"{self.node.target} ({type(self.module).__name__})"
        return f"{getattr(self.node.target, '__name__', self.node.target)} ({self.node.name})"

    @property
    def moves(self) -> bool:
        """Says whether the operation only puts elements elsewhere, as a reshape or a concatenation does."""
        named = self.node.op == "call_method" and self.node.target in _MOVING_METHODS
        return isinstance(self.module, _MOVING_MODULES) or self.node.target in _MOVING or named

    @property
    def mixes(self) -> bool:
        """Says whether the operation is known to compute with several channels at once; others are tried out."""
        return isinstance(self.module, _MIXING_MODULES) or self.node.target is F.local_response_norm

    @property
    def splits(self) -> bool:
        return self.node.target in _SPLITTING

    @property
    def multiplies(self) -> bool:
        return self.node.target in _PRODUCTS

    @property
    def shuffled_groups(self) -> int:
        """Returns the number of groups of a channel shuffle; 0 for other operations."""
        if self.node.target is torch.channel_shuffle:
            return self.args[1]
        return getattr(self.module, "groups", 0)

    def variants(self, parts: int) -> Iterator[Callable[[list[Tensor]], Any]]:
        """Yields the operation as it is, then as it will run in the pruned model if its sizes are computed there.

        Sizes that the code computes (`x.shape[1] // 2`) shrink with the channels. Tried are a split into `parts` equal
        parts, and reshapes in which torch infers one of the computed sizes.
        """
        yield self
        args, nodes = list(self.args), list(self.node.args)
        if self.splits and len(nodes) > 1 and isinstance(nodes[1], fx.Node):
            axis = self.kwargs.get("dim", args[2] if len(args) > 2 else 0)
            yield lambda tensors: tensors[0].chunk(parts, axis)
        if self.node.target in _RESHAPING:
            if len(args) == 2 and isinstance(args[1], (tuple, list)) and isinstance(nodes[1], (tuple, list)):
                args, nodes = [args[0], *args[1]], [nodes[0], *nodes[1]]
            for i, (arg, node) in enumerate(zip(args, nodes, strict=True)):
                if i and isinstance(node, fx.Node) and isinstance(arg, int):
                    yield partial(_reshaped, [-1 if k == i else a for k, a in enumerate(args)][1:])


def _is_number(value: Any) -> bool:
    return any(map(_is_number, value)) if isinstance(value, (tuple, list)) else isinstance(value, (int, float))


def _reshaped(sizes: list[int], tensors: list[Tensor]) -> Tensor:
    return tensors[0].reshape(sizes)
