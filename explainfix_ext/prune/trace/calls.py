"""This module holds Call: one operation of a traced network, which can be repeated on other tensors.

The walk (fx_trace.py) and its rules ask a Call what kind of operation it is, and try it on numbers and on ids.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate, map_arg

from .numbers import Number, is_number
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
_SPLITTING = {"split", torch.split}
_CHUNKING = {"chunk", torch.chunk}
# Operations that mix channels, if by little.
_MIXING_MODULES = (nn.LocalResponseNorm, nn.CrossMapLRN2d)
_PRODUCTS = {"mul", "mul_", torch.mul, torch.multiply, operator.mul, operator.imul}


class Call:
    """Repeats the operation of one torch.fx node: `call(tensors)`, with one tensor for each Value in its arguments.

    Attributes:
        node: the torch.fx node.
        args, kwargs: its arguments, with Values in place of tensors.
        module: the module that it calls, or None.
        numbers: nodes among the arguments that are numbers -> how they are computed for fewer channels.
        takes_sizes: True if a number among the arguments is computed from the size of a tensor, as of the image.
    """

    def __init__(
        self,
        runner: fx.Interpreter,
        root: nn.Module,
        node: fx.Node,
        args: Any,
        kwargs: Any,
        numbers: Mapping[fx.Node, Number],
    ) -> None:
        self.node, self.args, self.kwargs = node, args, kwargs
        self.module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
        self._inputs = {one: runner.env[one] for one in node.all_input_nodes}
        self.numbers = {one: numbers[one] for one in self._inputs if one in numbers}
        self.takes_sizes = any(is_number(v) for one, v in self._inputs.items() if not _of_attributes(numbers.get(one)))
        self._run = partial(getattr(runner, str(node.op)), node.target)

    def __call__(self, tensors: list[Tensor], sizes: Mapping[fx.Node, Any] = MappingProxyType({})) -> Any:
        """Repeats the operation with these tensors, and with other numbers for the nodes in `sizes`."""
        replacements, inputs = iter(tensors), {**self._inputs, **sizes}
        arguments: Any = map_aggregate(
            tuple(map_arg(part, inputs.__getitem__) for part in (self.node.args, self.node.kwargs)),
            lambda v: next(replacements) if isinstance(v, Value) else v,
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
    def chunks(self) -> bool:
        return self.node.target in _CHUNKING

    @property
    def splits(self) -> bool:
        return self.node.target in _SPLITTING

    @property
    def reshapes(self) -> bool:
        return self.node.target in _RESHAPING

    @property
    def narrows(self) -> bool:
        return self.node.target in ("narrow", torch.narrow)

    @property
    def indexes(self) -> bool:
        return self.node.target is operator.getitem

    @property
    def multiplies(self) -> bool:
        return self.node.target in _PRODUCTS

    @property
    def shuffled_groups(self) -> int:
        """Returns the number of groups of a channel shuffle; 0 for other operations."""
        if self.node.target is torch.channel_shuffle:
            return self.args[1]
        return getattr(self.module, "groups", 0)


def _of_attributes(number: Number | None) -> bool:
    """Says whether a number is computed from attributes of modules alone, so that it is the same for other images."""
    return number is not None and bool(number.attributes) and not number.from_sizes
