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

    _tracer: Callable[[], Any]
    _make: Callable[[], fx.Node | None]
    _node: fx.Node | None

    def __new__(cls, value: int, tracer: Any, make: Callable[[], fx.Node | None]) -> Size:
        made = super().__new__(cls, value)
        made._tracer, made._make, made._node = weakref.ref(tracer), make, None
        return made

    def __fx_create_arg__(self, tracer: Any) -> Any:
        if self._tracer() is not tracer:
            return int.__int__(self)
        if self._node is None:
            self._node = self._make()
        return self._node

    def __float__(self) -> float:
        _note(float, (self,))
        return int.__float__(self)


def _note(function: Callable[..., Any], args: tuple[Any, ...]) -> fx.Node | None:
    """Makes the node of a function of Sizes; None if their tracer is gone."""
    tracer = next(a._tracer() for a in args if isinstance(a, Size))
    if tracer is None:
        return None
    return tracer.create_node("call_function", function, tuple(tracer.create_arg(a) for a in args), {})


def _operator(name: str, function: Callable[..., Any], reflected: bool) -> Callable[..., Any]:
    plain = getattr(int, name)

    def computed(self: Size, *others: Any) -> Any:
        args = (*others, self) if reflected else (self, *others)
        result = plain(self, *others)
        tracer = self._tracer()
        if type(result) is int and tracer is not None:
            return Size(result, tracer, lambda: _note(function, args))
        if any(isinstance(one, float) for one in (result, *others)):  # what becomes of a fraction does not show
            _note(function, args)
        return result

    return computed


for _name in ("add", "sub", "mul", "floordiv", "mod", "truediv", "pow"):
    setattr(Size, f"__{_name}__", _operator(f"__{_name}__", getattr(operator, _name), False))
    setattr(Size, f"__r{_name}__", _operator(f"__r{_name}__", getattr(operator, _name), True))
Size.__neg__ = _operator("__neg__", operator.neg, False)  # type: ignore[method-assign]


@contextmanager
def sizes_shown(model: nn.Module, is_leaf: Callable[[nn.Module, str], bool], tracer: Any) -> Iterator[None]:
    """Puts a Size in place of every integer that a module holds, alone or in a tuple or list, in a `with` block.

    Args:
        model: the model that is traced.
        is_leaf: (module, its name) -> whether it is traced as a whole; such a module keeps its integers.
        tracer: has `create_node` and `create_arg`, as those of torch.fx do.
    """
    before: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for path, module in model.named_modules():
            for name, value in [] if is_leaf(module, path) else [*vars(module).items()]:
                if _is_size(value):
                    before.append((vars(module), name, value))
                    vars(module)[name] = _shown(f"{path}.{name}" if path else name, value, tracer)
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
