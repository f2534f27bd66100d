"""This module shows a tracer which sizes in a model's code are attributes of its modules, such as `self.width`.

torch.fx writes an integer into its graph as a constant. While a model is traced, its modules hold a Size instead of
each integer of their own: it is the same number, and it knows which node of the graph reads or computes it. So the
graph says which attributes must change for a split or a slice to fit fewer channels.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn


class Size(int):
    """Is an integer of the model's code, which the graph computes by a node.

    Args:
        value: the integer.
        tracer: who makes the graph. For any other tracer it is a plain integer.
        make: makes the node, at its first use.
    """

    def __new__(cls, value: int, tracer: Any, make: Callable[[], fx.Node]) -> Size:
        made = super().__new__(cls, value)
        made._tracer, made._make, made._node = weakref.ref(tracer), make, None  # type: ignore[attr-defined]
        return made

    def __fx_create_arg__(self, tracer: Any) -> Any:
        if self._tracer() is not tracer:  # type: ignore[attr-defined]
            return int.__int__(self)
        if self._node is None:  # type: ignore[has-type]
            self._node = self._make()  # type: ignore[attr-defined]
        return self._node

    def __float__(self) -> float:
        _note(float, (self,))
        return int.__float__(self)


def _note(function: Callable[..., Any], args: tuple[Any, ...]) -> fx.Node | None:
    """Makes the node of a function of Sizes; None if their tracer is gone."""
    tracer = next(a._tracer() for a in args if isinstance(a, Size))  # type: ignore[attr-defined]
    if tracer is None:
        return None
    return tracer.create_node("call_function", function, tuple(tracer.create_arg(a) for a in args), {})


def _operator(name: str, function: Callable[..., Any], reflected: bool) -> Callable[..., Any]:
    plain = getattr(int, name)

    def computed(self: Size, *others: Any) -> Any:
        args = (*others, self) if reflected else (self, *others)
        result = plain(self, *others)
        tracer = self._tracer()  # type: ignore[attr-defined]
        if type(result) is int and tracer is not None:
            return Size(result, tracer, lambda: _note(function, args))  # type: ignore[arg-type, return-value]
        if isinstance(result, float) or isinstance(others[0], float):  # what becomes of a fraction does not show
            _note(function, args)
        return result

    return computed


for _name in ("add", "sub", "mul", "floordiv", "mod", "truediv", "pow"):
    setattr(Size, f"__{_name}__", _operator(f"__{_name}__", getattr(operator, _name), False))
    setattr(Size, f"__r{_name}__", _operator(f"__r{_name}__", getattr(operator, _name), True))
Size.__neg__ = _operator("__neg__", operator.neg, False)  # type: ignore[method-assign]


@contextmanager
def sizes_shown(model: nn.Module, tracer: fx.Tracer, maker: Any = None) -> Iterator[None]:
    """Puts a Size in place of every integer that a module holds, alone or in a tuple or list, in a `with` block.

    Layers that the tracer does not look into keep theirs. `maker` makes the nodes, if the tracer does not.
    """
    before: list[tuple[dict[str, Any], str, Any]] = []
    for path, module in model.named_modules():
        if not tracer.is_leaf_module(module, path):
            before += [(vars(module), name, v) for name, v in vars(module).items() if _is_size(v)]
    paths = {id(vars(module)): path for path, module in model.named_modules()}
    for owner, name, value in before:
        path = paths[id(owner)]
        owner[name] = _shown(f"{path}.{name}" if path else name, value, maker or tracer)
    try:
        yield
    finally:
        for owner, name, value in before:
            owner[name] = value


def _is_size(value: Any) -> bool:
    if type(value) in (tuple, list):
        return bool(value) and all(type(item) is int for item in value)
    return type(value) is int  # no bool


def _shown(target: str, value: Any, tracer: Any) -> Any:
    def read() -> fx.Node:
        return tracer.create_node("get_attr", target, (), {})

    def item(i: int) -> fx.Node:
        return tracer.create_node("call_function", operator.getitem, (read(), i), {})

    if type(value) is int:
        return Size(value, tracer, read)
    return type(value)(Size(v, tracer, lambda i=i: item(i)) for i, v in enumerate(value))  # type: ignore[misc]
