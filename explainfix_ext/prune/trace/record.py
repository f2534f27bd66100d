"""This module records what a model does on an example as a torch.fx graph, for models that torch.fx cannot trace.

torch.fx runs the code on stand-ins for tensors, which cannot be iterated, compared or asked for their class. Here the
code runs on tensors, and every function of torch that it calls becomes a node. Where the code branches, the graph has
the branch that was taken.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from .attributes import Size, sizes_shown
from .inputs import Inputs, copied
from .modes import tensors_of
from .values import is_plain

_OPERATORS = {
    f"__{prefix}{name}__": getattr(operator, prefix + name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
    for prefix in ("", "i")
} | {"__radd__": operator.add, "__rmul__": operator.mul, "__getitem__": operator.getitem, "__neg__": operator.neg}
_VIEWS = ("T", "mT", "H", "mH", "real", "imag", "data")  # properties that are tensors


def record(model: nn.Module, inputs: Inputs, is_leaf: Callable[[nn.Module, str], bool]) -> fx.Graph:
    """Runs the model, and returns the graph of what it did.

    Args:
        model: the model, which runs as it is, in its mode. Its graph has modules and Parameters by their names.
        inputs: its positional arguments.
        is_leaf: (module, its name) -> whether it is one node.

    Raises:
        Exception: the model does something that is not recorded, such as work in numpy or another language.
    """
    recorder = _Recorder(model)
    given = copied(inputs)
    for i, x in enumerate(given):
        recorder.enter(recorder.create_node("placeholder", f"input_{i}"), x)
    with torch.no_grad(), sizes_shown(model, is_leaf, recorder), _leaves(recorder, model, is_leaf), recorder:
        result = model(*given)
    recorder.create_node("output", "output", (tuple(recorder.create_arg(t) for t in tensors_of(result)),))
    recorder.graph.eliminate_dead_code(lambda node: node not in recorder.pure)  # what only the code's branches ask for
    return recorder.graph


class _Recorder(TorchFunctionMode):
    """Makes a node of each function of torch that runs in its `with` block.

    Attributes:
        graph: the nodes so far.
        pure: nodes that change no tensor in place.
        paused: True while a module runs that is a node by itself.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.graph, self.paused = fx.Graph(), False
        self.pure: set[fx.Node] = set()
        self._nodes: dict[int, fx.Node] = {}
        self._seen: list[Tensor] = []  # kept, so that no other tensor gets their id
        self._held = dict(_tensors_held(model))

    def create_node(self, kind: str, target: Any, args: Any = (), kwargs: Any = None) -> fx.Node:
        return self.graph.create_node(kind, target, args, kwargs or {})

    def create_arg(self, value: Any) -> Any:
        """Returns a value with nodes in place of its tensors and sizes."""
        if isinstance(value, Size):
            return value.__fx_create_arg__(self)
        if isinstance(value, Tensor):
            return self._node_of(value)
        if isinstance(value, (tuple, list)):
            items = [self.create_arg(item) for item in value]
            return items if isinstance(value, list) else tuple(items)
        if isinstance(value, dict):
            return {key: self.create_arg(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(*(self.create_arg(end) for end in (value.start, value.stop, value.step)))
        return value

    def _node_of(self, tensor: Tensor) -> fx.Node:
        if id(tensor) not in self._nodes:
            if id(tensor) not in self._held:
                raise ValueError("it computes with a tensor that no recorded function has made")
            self.enter(self.create_node("get_attr", self._held[id(tensor)]), tensor)
        return self._nodes[id(tensor)]

    def enter(self, node: fx.Node, value: Any) -> None:
        """Notes that a node gives these tensors; those in tuples and dicts get nodes of their own."""
        if isinstance(value, Tensor):
            self._nodes[id(value)] = node
            self._seen.append(value)
        elif isinstance(value, (tuple, list, Mapping)) and not is_plain(value):
            for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
                if not is_plain(item):
                    part = self.create_node("call_function", operator.getitem, (node, key))
                    self.pure.add(part)
                    self.enter(part, item)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if self.paused:
            return func(*args, **kwargs)
        if name == "__iter__":
            return iter(self.__torch_function__(Tensor.unbind, types, args))
        if name == "__get__":
            return self._property(func, args)
        if name in ("__set__", "__delete__"):
            raise ValueError("it sets a property of a tensor")
        arguments = self.create_arg(args), self.create_arg(kwargs)
        if name == "__setitem__":
            func(*args)
            return self.enter(self.create_node("call_function", set_item, arguments[0]), args[0])
        result = func(*args, **kwargs)
        if name == "size" and is_plain(result):
            return self._sizes(args[0], result, ("call_method", "size", *arguments))
        if not is_plain(result):
            method = getattr(Tensor, name, None) is func and name not in _OPERATORS
            target = name if method else _OPERATORS.get(name, func)
            node = self.create_node("call_method" if method else "call_function", target, *arguments)
            if not name.endswith("_") and "out" not in kwargs and all(result is not a for a in args):
                self.pure.add(node)
            self.enter(node, result)
        return result

    def _property(self, func: Any, args: Any) -> Any:
        name, result = func.__self__.__name__, func(*args)
        making: tuple[Any, ...] = ("call_function", getattr, (self.create_arg(args[0]), name), {})
        if name == "shape":
            return self._sizes(args[0], result, making)
        if name in _VIEWS:
            self.enter(self.create_node(*making), result)
        return result

    def _sizes(self, tensor: Tensor, sizes: Any, making: tuple[Any, ...]) -> Any:
        """Returns sizes of a tensor that know which nodes read them."""
        if isinstance(sizes, int):
            return Size(sizes, self, lambda: self.create_node(*making))

        def size(i: int) -> Size:
            item = operator.getitem
            return Size(sizes[i], self, lambda: self.create_node("call_function", item, (self.create_node(*making), i)))

        return torch.Size([size(i) for i in range(len(sizes))])


def set_item(x: Tensor, index: Any, value: Any) -> Tensor:
    """Writes into a tensor, in place, and returns it."""
    x[index] = value
    return x


@contextmanager
def _leaves(recorder: _Recorder, model: nn.Module, is_leaf: Callable[[nn.Module, str], bool]) -> Iterator[None]:
    """Makes one node of each module that is a leaf, in a `with` block."""
    call: Callable[..., Any] = nn.Module.__call__
    paths = {module: path for path, module in model.named_modules()}

    def called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        path = paths.get(module)
        if recorder.paused or path is None or not is_leaf(module, path):
            return call(module, *args, **kwargs)
        arguments = recorder.create_arg(args), recorder.create_arg(kwargs)
        recorder.paused = True
        try:
            result = call(module, *args, **kwargs)
        finally:
            recorder.paused = False
        recorder.enter(recorder.create_node("call_module", path, *arguments), result)
        return result

    nn.Module.__call__ = called  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__ = call  # type: ignore[method-assign]


def _tensors_held(model: nn.Module) -> Iterator[tuple[int, str]]:
    """Yields id -> name of the tensors that modules hold: Parameters, buffers and other attributes."""
    for path, module in model.named_modules():
        for part in (vars(module), module._buffers, module._parameters):
            for name, value in part.items():
                if isinstance(value, Tensor):
                    yield id(value), f"{path}.{name}" if path else name
