"""Puts the convolutions of onnx_convs.py into a traced graph, with what follows each of them folded in."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from explainfix_ext.filters.bank import FilterBank
from explainfix_ext.filters.hadamard import HadamardFilters

from .onnx_convs import DOMAIN, FixedConv, PlainConv, fastest, operator, plain

TRACED = ("fixed_conv2d", "hadamard_conv2d")  # that onnx_export.py leaves in the graph
ACTIVATIONS = {"Relu": "relu", "HardSwish": "hardswish"}  # of one node


def place_convolutions(model: ir.Model, only_plain: bool) -> dict[str, str]:
    """Replaces each traced convolution by nodes that ONNX Runtime knows: with our library, or `only_plain` without it.

    Returns:
        layer -> the operator that it has become; "Conv" stands for one or several plain convolutions.
    """
    became: dict[str, str] = {}
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))  # also those of a condition's branches
    for node in [node for node in nodes if node.domain == DOMAIN and node.op_type in TRACED]:
        name = layer = _layer_of(node)
        calls = 1
        while name in became:
            calls += 1
            name = f"{layer}.{calls}"
        became[name] = _Placement(node, name).write(only_plain)
    return became


def _layer_of(node: ir.Node) -> str:
    """Returns the name that the model has for the layer of a traced node."""
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    return (scopes[-2] if len(scopes) > 1 else "") or "conv"  # the last one is the call's


class _Placement:
    """This replaces one traced node, and those after it whose work it takes over.

    Attributes:
        graph: of the node.
        name: of the layer.
        conv: what the new nodes compute.
        replaced: the nodes that go, the traced one first.
        added: what is added to the output, or None.
    """

    def __init__(self, node: ir.Node, name: str) -> None:
        assert isinstance(node.graph, ir.Graph)
        self.graph, self.name, self.conv = node.graph, name, _conv_of(node)
        self.replaced = [node]
        self.added: ir.Value | None = None

    def write(self, only_plain: bool) -> str:
        """Writes the new nodes; returns the name of their operator."""
        x = self.replaced[0].inputs[0]
        assert x is not None
        while self._fold_batch_norm():
            pass
        kernel = None if only_plain or x.dtype != ir.DataType.FLOAT else fastest(self.conv)
        if kernel is None:
            made = self._plain_nodes(x)
        else:
            self._fold_addition()
            self._fold_activation()
            made = [self._operator_node(kernel, x)]
        old, new = self.replaced[-1].outputs[0], made[-1].outputs[0]
        new.name, new.shape, new.type = old.name, old.shape, old.type
        self.graph.insert_before(self.replaced[-1], made)
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        self.graph.remove(self.replaced[::-1], safe=True)
        return kernel or "Conv"

    def _only_user(self) -> ir.Node | None:
        """Returns the node that reads what is computed so far, if it is the only one."""
        value = self.replaced[-1].outputs[0]
        users = value.consumers()
        return users[0] if len(users) == 1 and not value.is_graph_output() else None

    def _fold_batch_norm(self) -> bool:
        node = self._only_user()
        if node is None or node.op_type != "BatchNormalization" or len(node.outputs) != 1:
            return False
        numbers = [_array(value) for value in node.inputs[1:]]
        if any(array is None for array in numbers):
            return False
        weight, bias, mean, var = (np.asarray(array, np.float64) for array in numbers)
        factor = weight / np.sqrt(var + _number(node, "epsilon", 1e-5))
        self.conv.factor = self.conv.factor * factor
        self.conv.shift = self.conv.shift * factor + bias - mean * factor
        self.replaced.append(node)
        return True

    def _fold_addition(self) -> None:
        node, value = self._only_user(), self.replaced[-1].outputs[0]
        if node is None or node.op_type != "Add":
            return
        other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
        if other is not None and other is not value and _same_kind(other, value):
            self.added = other
            self.replaced.append(node)

    def _fold_activation(self) -> None:
        node, value = self._only_user(), self.replaced[-1].outputs[0]
        users = value.consumers()
        if node is not None and node.op_type in ACTIVATIONS:
            self.conv.activation = ACTIVATIONS[node.op_type]
            self.replaced.append(node)
        elif node is not None and node.op_type == "Clip" and _limits(node) == (0.0, 6.0):
            self.conv.activation = "relu6"
            self.replaced.append(node)
        elif {user.op_type for user in users} == {"Sigmoid", "Mul"} and not value.is_graph_output():  # x sigmoid(x)
            sigmoid, product = sorted(users, key=lambda user: user.op_type, reverse=True)
            gate = sigmoid.outputs[0]
            if len(users) == 2 and gate.consumers() == (product,) and not gate.is_graph_output():
                self.conv.activation = "silu"
                self.replaced += [sigmoid, product]

    def _operator_node(self, kernel: str, x: ir.Value) -> ir.Node:
        inputs, attributes = operator(self.conv)
        values = [self._constant(f"input_{i + 1}", array) for i, array in enumerate(inputs)]
        return _node(kernel, self.name, [x, *values, *([self.added] if self.added else [])], attributes, DOMAIN)

    def _plain_nodes(self, x: ir.Value) -> list[ir.Node]:
        assert x.dtype is not None
        made: list[ir.Node] = []
        total: ir.Value | None = None
        dtype = x.dtype.numpy()
        for i, chain in enumerate(plain(self.conv)):
            y = x
            for k, conv in enumerate(chain):
                made.append(self._plain_node(f"{i}.{k}", conv, y, dtype))
                y = made[-1].outputs[0]
            if total is not None:
                made.append(_node("Add", f"{self.name}.add.{i}", [total, y], {}))
                y = made[-1].outputs[0]
            total = y
        return made

    def _plain_node(self, part: str, conv: PlainConv, x: ir.Value, dtype: Any) -> ir.Node:
        arrays = {"weight": conv.weight, "bias": conv.bias}
        values = [
            self._constant(f"{part}.{name}", array.astype(dtype)) for name, array in arrays.items() if array is not None
        ]
        attributes = {
            "strides": list(conv.stride),
            "pads": [*conv.padding, *conv.padding],
            "dilations": list(conv.dilation),
            "group": conv.groups,
            "kernel_shape": list(conv.weight.shape[2:]),
        }
        return _node("Conv", f"{self.name}.{part}", [x, *values], attributes)

    def _constant(self, name: str, array: NDArray) -> ir.Value:
        tensor = ir.tensor(np.ascontiguousarray(array), name=f"{self.name}.{name}")
        shape, kind = ir.Shape(array.shape), ir.TensorType(tensor.dtype)
        value = ir.Value(name=tensor.name, shape=shape, type=kind, const_value=tensor)
        self.graph.register_initializer(value)
        return value


def _node(op: str, name: str, inputs: list[ir.Value], attributes: dict[str, Any], domain: str = "") -> ir.Node:
    output = ir.Value(name=f"{name}.out")
    return ir.Node(
        domain, op, inputs, ir.convenience.convert_attributes(attributes), outputs=[output], name=f"{name}:{op}"
    )


def _conv_of(node: ir.Node) -> FixedConv:
    """Reads a traced node."""
    numbers: dict[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}
    arrays = [_array(value) for value in node.inputs[1:]]
    count = 4 if node.op_type == "hadamard_conv2d" else 2
    if any(array is None for array in arrays[:count]):
        raise ValueError(f"the filters of {node.name} must be constants of the traced model, and are computed in it")
    tensors, scale = [torch.from_numpy(np.array(array)) for array in arrays[:count]], float(numbers["scale"])
    if count == 4:
        columns, rows, outputs, inputs = tensors
        filters = HadamardFilters(columns, rows, outputs, inputs, numbers["order"], numbers["stages"])
        bank = FilterBank(torch.zeros(1, *filters.shape[2:]), scale=scale, hadamard=filters)
    elif tensors[1].dtype == torch.uint8:
        bank = FilterBank(tensors[0], index=tensors[1], scale=scale)
    else:
        bank = FilterBank(tensors[0], coeff=tensors[1], scale=scale)
    geometry = {name: numbers[name] for name in ("stride", "padding", "dilation", "groups")}
    shift = np.zeros(bank.shape[0]) if len(arrays) == count else np.asarray(arrays[count], np.float64)
    return FixedConv(bank, **geometry, factor=np.ones(bank.shape[0]), shift=shift)


def _same_kind(one: ir.Value, other: ir.Value) -> bool:
    """Tells whether two values have one type and one known shape, so that nothing is repeated where they are added."""
    known = one.shape is not None and all(isinstance(size, int) or size.value is not None for size in one.shape)
    return known and one.shape == other.shape and one.dtype == other.dtype


def _array(value: ir.Value | None) -> NDArray | None:
    """Returns the numbers of a constant, or None."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _number(node: ir.Node, name: str, default: float) -> float:
    """Returns an attribute."""
    return float(node.attributes[name].value) if name in node.attributes else default


def _limits(clip: ir.Node) -> tuple[float | None, ...]:
    """Returns the two numbers that a Clip keeps to."""
    arrays = [_array(value) for value in clip.inputs[1:]]
    return tuple(None if array is None else float(array) for array in arrays)
