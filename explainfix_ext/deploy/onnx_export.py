"""Writes a network with fixed convolutions as an ONNX file, for ONNX Runtime with our library of operators or without.

torch traces the network with our operators in it (`_traced`); onnx_fuse.py then puts in their place what the file is to
hold. csrc/onnx/ has the library.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from explainfix_ext._support.models import eval_mode
from explainfix_ext.ops import fixed_conv2d as index_and_coeff

from .onnx_convs import DOMAIN

if TYPE_CHECKING:
    import onnx_ir as ir

HADAMARD = torch.ops.explainfix.hadamard_conv2d.default


def library() -> str:
    """Returns the path of the operators' library, for `SessionOptions.register_custom_ops_library`.

    It needs ONNX Runtime 1.17 or later, and neither torch nor Python.

    Raises:
        FileNotFoundError: it was not built.

    Examples:
        >>> from pathlib import Path
        >>> Path(library()).name
        '_onnx.abi3.so'
    """
    files = sorted(Path(__file__).parent.glob("_onnx.*so"))
    if not files:
        raise FileNotFoundError(f"{Path(__file__).parent / '_onnx.abi3.so'} was not built: reinstall the package")
    return str(files[0])


def export(
    model: nn.Module, example: Tensor | Sequence[Tensor], path: str | os.PathLike[str], *, plain: bool = False
) -> dict[str, str]:
    """Writes a model as it is in eval mode to an ONNX file, whose batch may have any size.

    Fixed convolutions become operators of ours, with BatchNorm, the addition and the activation that follow folded in,
    where these are faster than ONNX Runtime's own convolution; else plain convolutions.

    Args:
        model: with FixedConv2d layers or calls of `fixed_conv2d`. It stays as it is.
        example: input, or inputs, of the model; the file has their sizes but for the first, which is the batch.
        path: of the file.
        plain: write plain convolutions only, for any program that reads ONNX.

    Returns:
        fixed layer -> the operator that it has become: "IndexConv", "LowRankConv", "HadamardConv" or "Conv".

    Raises:
        ImportError: onnx or onnxscript is not installed.

    Examples:
        >>> import os, tempfile
        >>> import onnxruntime
        >>> model = nn.Sequential(FixedConv2d(3, 32, 3, init="dct2", seed=0), nn.BatchNorm2d(32), nn.ReLU())
        >>> path = os.path.join(tempfile.mkdtemp(), "model.onnx")
        >>> export(model, torch.randn(1, 3, 64, 64), path)
        {'0': 'IndexConv'}
        >>> options = onnxruntime.SessionOptions()
        >>> options.register_custom_ops_library(library())
        >>> onnxruntime.InferenceSession(path, options).get_inputs()[0].shape
        ['batch', 3, 64, 64]
    """
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    from .onnx_fuse import place_convolutions

    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    program = torch.onnx.export(_traced(model, inputs), dynamo=True, verbose=False, optimize=True)
    assert program is not None
    traced = program.model
    became = place_convolutions(traced, plain)
    if set(became.values()) <= {"Conv"}:
        traced.opset_imports.pop(DOMAIN, None)
    RemoveUnusedNodesPass()(traced)
    _name_batch(traced.graph)
    for node in ir.traversal.RecursiveGraphIterator(traced.graph):
        node.metadata_props.clear()  # lines of the program that made the model, with their paths
    program.save(path)
    return became


def _name_batch(graph: ir.Graph) -> None:
    """Calls the batch "batch" in all shapes, which torch has given a number."""
    values = [*graph.inputs, *(output for node in graph for output in node.outputs)]
    shapes = [value.shape for value in values if value.shape is not None]
    old = shapes[0][0]
    for shape in shapes:
        for axis, size in enumerate(shape):
            if size == old:
                shape[axis] = "batch"


def _traced(model: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """Traces a model, with a node in place of each call of an operator of ours that the ONNX exporter lets pass."""
    batch = torch.export.Dim("batch")
    twice = tuple(torch.cat([x, x]) for x in inputs)  # torch takes a batch of one for a constant
    with eval_mode(model), torch.no_grad():
        program = torch.export.export(model, twice, dynamic_shapes=tuple({0: batch} for _ in inputs))
    return program.run_decompositions({index_and_coeff.fixed_conv2d: _fixed_conv2d, HADAMARD: _hadamard_conv2d})


def _fixed_conv2d(
    x: Tensor, basis: Tensor, steering: Tensor, packed: Tensor | None, bias: Tensor | None, *geometry: Any
) -> Tensor:
    stride, padding, dilation, groups, scale, _ = geometry
    shape = (steering.shape[0], *basis.shape[1:])
    return _node("fixed_conv2d", (x, basis, steering, bias), shape, (stride, padding, dilation, groups), scale, {})


def _hadamard_conv2d(
    x: Tensor, columns: Tensor, rows: Tensor, outputs: Tensor, inputs: Tensor, packed: Tensor | None,
    bias: Tensor | None, *geometry: Any,
) -> Tensor:  # fmt: skip
    stride, padding, dilation, groups, order, stages, scale, _ = geometry
    shape, numbers = (columns.shape[1], columns.shape[2], rows.shape[4]), {"order": order, "stages": stages}
    tensors = (x, columns, rows, outputs, inputs, bias)
    return _node("hadamard_conv2d", tensors, shape, (stride, padding, dilation, groups), scale, numbers)


def _node(
    name: str,
    tensors: tuple[Tensor | None, ...],
    shape: Sequence[int],
    geometry: tuple[Any, ...],
    scale: float,
    numbers: dict[str, int],
) -> Tensor:
    """Makes a node of a traced graph that stands for a convolution; shape: (O, kh, kw)."""
    x, (outputs, *kernel), (stride, padding, dilation, groups) = tensors[0], shape, geometry
    assert x is not None
    sizes = [(x.shape[2 + a] + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in range(2)]
    pairs = {"stride": list(stride), "padding": list(padding), "dilation": list(dilation)}
    attributes: dict[str, Any] = {**pairs, "groups": groups, "scale": repr(scale), **numbers}  # a float loses digits
    shape = (x.shape[0], outputs, *sizes)
    return torch.onnx.ops.symbolic(f"{DOMAIN}::{name}", tensors, attributes, dtype=x.dtype, shape=shape, version=1)
