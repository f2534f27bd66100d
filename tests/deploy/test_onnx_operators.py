"""The operators for ONNX Runtime against float64 on random geometry; and what they refuse of a malformed file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from support.compare import relative_error
from support.onnx_session import run, session_of
from torch import Tensor

import explainfix_ext as efx
from explainfix_ext.deploy.onnx_convs import FixedConv, fastest, operator, plain

onnx = pytest.importorskip("onnx", reason='needs the extra "test"')
pytest.importorskip("onnxruntime", reason='needs the extra "test"')

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
}


def model_of(op: str, x: Tensor, arrays: list[NDArray], attributes: dict[str, Any], residual: bool) -> bytes:
    """A file with one node."""
    names = [f"i{k}" for k in range(len(arrays))]
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in zip(names, arrays, strict=True)]
    floats = onnx.TensorProto.FLOAT
    inputs = [onnx.helper.make_tensor_value_info("x", floats, [None, *x.shape[1:]])]
    if residual:
        inputs.append(onnx.helper.make_tensor_value_info("residual", floats, [None] * 4))
    every = ["x", *names, *(["residual"] if residual else [])]
    node = onnx.helper.make_node(op, every, ["y"], domain="explainfix", **attributes)
    output = onnx.helper.make_tensor_value_info("y", floats, None)
    graph = onnx.helper.make_graph([node], "one", inputs, [output], constants)
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("explainfix", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def random_conv(rng: np.random.Generator, op: str) -> FixedConv:
    """A convolution of any geometry that the operator takes."""
    groups = int(rng.choice([1, 1, 2, 3]))
    outputs, channels = (int(n) for n in rng.integers(1, 40, 2))
    kernel = int(rng.choice([3, 3, 5, 7]))
    outputs, stride = outputs * groups, int(rng.choice([1, 2]))
    geometry = ([stride, stride], rng.integers(0, kernel + 1, 2).tolist(), [1, 1], groups)
    seed, shape = int(rng.integers(2**31)), (outputs, channels * groups, kernel)
    if op == "HadamardConv":
        options = {"terms": int(rng.integers(1, 3)), "density": float(rng.choice([1, 0.5]))}
        bank = efx.make_bank("hadamard", *shape, groups=groups, seed=seed, **options)
    elif op == "IndexConv":
        options = {"density": float(rng.choice([1, 0.5, 0.1]))}
        bank = efx.make_bank(str(rng.choice(["dct2", "sdct4"])), *shape, groups=groups, seed=seed, **options)
    elif rng.random() < 0.5:
        bank = efx.make_bank("ghaar4_s1", *shape, groups=groups, seed=seed)
    else:
        weight = torch.randn(outputs, channels, kernel, kernel, generator=torch.Generator().manual_seed(seed))
        bank = efx.FilterBank.from_weight(weight, rank=int(rng.integers(1, 6)))
    act = str(rng.choice(list(ACTIVATIONS)))
    return FixedConv(bank, *geometry, rng.normal(size=outputs), rng.normal(size=outputs), act)


def want(conv: FixedConv, x: Tensor, residual: Tensor | None) -> Tensor:
    y = F.conv2d(x.double(), conv.bank.weight(torch.float64), None, conv.stride, conv.padding, 1, conv.groups)
    factor, shift = (torch.from_numpy(numbers)[:, None, None] for numbers in (conv.factor, conv.shift))
    y = y * factor + shift
    return ACTIVATIONS[conv.activation](y if residual is None else y + residual.double())


@pytest.mark.parametrize("op", ["IndexConv", "LowRankConv", "HadamardConv"])
@pytest.mark.parametrize("seed", range(25))
def test_random_geometry(op: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    conv = random_conv(rng, op)
    wide = int(rng.choice([1, 1, 20]))  # images of several panels
    size = [int(n) + conv.bank.kernel_size[0] for n in rng.integers(0, 14, 2) * [1, wide]]
    x = torch.randn(int(rng.integers(1, 4)), conv.bank.shape[1] * conv.groups, *size)
    residual = torch.randn(want(conv, x, None).shape) if rng.random() < 0.5 else None
    inputs = (x,) if residual is None else (x, residual)
    expected = want(conv, x, residual)
    session = session_of(model_of(op, x, *operator(conv), residual is not None))
    got = run(session, *inputs)
    assert got.shape == expected.shape
    assert relative_error(got, expected) < 1e-5
    assert relative_error(run(session, x[:1], *(r[:1] for r in inputs[1:])), got[:1]) < 1e-6
    assert run(session, x[:0], *(r[:0] for r in inputs[1:])).shape == (0, *got.shape[1:])


@pytest.mark.parametrize("seed", range(20))
def test_plain_convolutions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    conv = random_conv(rng, str(rng.choice(["IndexConv", "LowRankConv", "HadamardConv"])))
    conv.dilation, conv.activation = [1, 2], ""
    x = torch.randn(2, conv.bank.shape[1] * conv.groups, 9, 15).double()
    total = torch.zeros(())
    for chain in plain(conv):
        y = x
        for c in chain:
            bias = None if c.bias is None else torch.from_numpy(c.bias)
            y = F.conv2d(y, torch.from_numpy(c.weight), bias, c.stride, c.padding, c.dilation, c.groups)
        total = total + y
    y = F.conv2d(x, conv.bank.weight(torch.float64), None, conv.stride, conv.padding, conv.dilation, conv.groups)
    factor, shift = (torch.from_numpy(numbers)[:, None, None] for numbers in (conv.factor, conv.shift))
    assert relative_error(total, y * factor + shift) < 1e-6  # rows and columns of a hadamard bank are float32


def test_threads_do_not_change_a_number() -> None:
    conv = FixedConv(efx.make_bank("dct2", 256, 64, 3, seed=0), [1, 1], [1, 1], [1, 1], 1, np.ones(256), np.zeros(256))
    x = torch.randn(2, 64, 9, 9)
    model = model_of("IndexConv", x, *operator(conv), False)
    one, *others = [run(model, x, threads=threads) for threads in (1, 2, 3)]
    assert all(torch.equal(one, other) for other in others)


def fixed(init: str, outputs: int, channels: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> FixedConv:
    bank = efx.make_bank(init, outputs, channels * groups, kernel, groups=groups, seed=0)
    numbers = np.ones(outputs)
    return FixedConv(bank, [stride] * 2, [1, 1], [1, 1], groups, numbers, numbers)


def test_which_operator_is_faster() -> None:
    assert fastest(fixed("dct2", 64, 3)) == fastest(fixed("dct2", 8, 8, 5, 2)) == "IndexConv"
    assert fastest(fixed("dct2", 64, 8, 3, 2)) is None  # few channels with stride 2
    assert fastest(fixed("dct2", 16, 1, groups=16)) is None  # depthwise
    assert fastest(fixed("dct2", 64, 64, 4)) is fastest(fixed("dct2", 64, 64, 3, 3)) is None  # there is no kernel
    assert fastest(fixed("hadamard", 32, 32, 4, 2)) == "HadamardConv"
    assert fastest(fixed("hadamard", 32, 16)) is fastest(fixed("hadamard", 64, 64, 3, 3)) is None
    assert fastest(fixed("ghaar4_s1", 32, 32)) == "LowRankConv"
    assert fastest(fixed("ghaar4_s1", 32, 16)) is fastest(fixed("ghaar", 64, 64)) is None


OPS = {"IndexConv": "dct2", "LowRankConv": "ghaar4_s1", "HadamardConv": "hadamard"}
Change = Callable[[list[NDArray], dict[str, Any]], object]


def put(array: NDArray, place: int, value: int) -> None:
    array.reshape(-1)[place] = value


MALFORMED: dict[str, tuple[str, Change, str]] = {
    "stride 0": ("any", lambda i, a: a.update(stride=[0, 0]), "stride must be two integers >= 1"),
    "stride 3": ("any", lambda i, a: a.update(stride=[3, 3]), "stride"),
    "one stride": ("any", lambda i, a: a.update(stride=[1]), "stride must be two integers"),
    "negative padding": ("any", lambda i, a: a.update(padding=[-1, 0]), "padding must be two integers >= 0"),
    "huge padding": ("any", lambda i, a: a.update(padding=[2**40, 0]), "padding must be"),
    "much padding": ("any", lambda i, a: a.update(padding=[2**30, 2**30]), "must"),
    "no groups": ("any", lambda i, a: a.update(groups=0), "must"),
    "groups that do not divide": ("any", lambda i, a: a.update(groups=5), "must"),
    "other groups": ("any", lambda i, a: a.update(groups=4), "must"),
    "an activation": ("any", lambda i, a: a.update(activation="sin"), "activation must be empty, relu"),
    "no activation": ("any", lambda i, a: a.pop("activation"), "activation"),
    "a short bias": ("any", lambda i, a: i.append(i.pop()[:-1]), "must be"),
    "a missing input": ("any", lambda i, a: i.pop(), "nput"),
    "words of other types": ("IndexConv", lambda i, a: i.insert(0, i.pop(0).astype(np.int64)), "int64|Type"),
    "few words": ("IndexConv", lambda i, a: i.insert(0, i.pop(0)[:2]), "packed must be what pack_index made"),
    "a part of the words": ("IndexConv", lambda i, a: i.insert(0, i.pop(0)[:-40]), "packed must be what"),
    "words of a matrix": ("IndexConv", lambda i, a: i.insert(0, i.pop(0)[None]), "packed must be .words"),
    "an offset": ("IndexConv", lambda i, a: put(i[0], 0, 2**31 - 1), "packed must be what pack_index made"),
    "a negative offset": ("IndexConv", lambda i, a: put(i[0], 0, -7), "packed must be what pack_index made"),
    "a basis of 4x4": ("IndexConv", lambda i, a: i.__setitem__(1, np.ones((2, 4, 4))), "filters must be 3x3, 5x5"),
    "a flat basis": ("IndexConv", lambda i, a: i.__setitem__(1, np.ones((9, 9))), "basis must be"),
    "another basis": ("IndexConv", lambda i, a: i.__setitem__(1, np.ones((9, 3, 3))), "packed must be what"),
    "a larger kernel": ("IndexConv", lambda i, a: i.__setitem__(1, efx.dct_basis((5, 5)).numpy()), "packed|must"),
    "few coefficients": ("LowRankConv", lambda i, a: i.__setitem__(0, i[0][:, :, :-1].copy()), "coeff must be"),
    "fewer channels": ("LowRankConv", lambda i, a: i.__setitem__(0, i[0][:, :-1].copy()), "coeff must be"),
    "no functions": ("LowRankConv", lambda i, a: i.__setitem__(1, i[1][:0]), "basis must be"),
    "an output's place": ("HadamardConv", lambda i, a: put(i[2], 1, 32), "outputs must be in"),
    "an input's place": ("HadamardConv", lambda i, a: put(i[3], 1, -1), "inputs must be in"),
    "an order": ("HadamardConv", lambda i, a: a.update(order=24), "order must be a power of two"),
    "a huge order": ("HadamardConv", lambda i, a: a.update(order=2**40), "order must be a power of two"),
    "stages": ("HadamardConv", lambda i, a: a.update(stages=2**20), "stages must be bits below order"),
    "no order": ("HadamardConv", lambda i, a: a.pop("order"), "order"),
    "rows of no term": ("HadamardConv", lambda i, a: i.__setitem__(1, i[1][:0]), "rows must be"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_nodes_are_refused(name: str) -> None:
    kind, change, message = MALFORMED[name]
    for op in OPS if kind == "any" else [kind]:
        x = torch.randn(2, 32, 6, 7)
        arrays, attributes = operator(fixed(OPS[op], 32, 16, groups=2))
        arrays = [array.copy() for array in arrays]
        assert run(model_of(op, x, arrays, attributes, False), x).shape == (2, 32, 6, 7)
        change(arrays, attributes)
        with pytest.raises(Exception, match=message) as error:
            run(model_of(op, x, arrays, attributes, False), x)
        assert "onnxruntime" in type(error.value).__module__


@pytest.mark.parametrize("op", OPS)
def test_malformed_inputs_are_refused(op: str) -> None:
    x = torch.randn(2, 32, 6, 7)
    arrays, attributes = operator(fixed(OPS[op], 32, 16, groups=2))
    session = session_of(model_of(op, x, arrays, attributes, True))
    for residual in (x[:1], x[:, :1], x[..., :-1], x[:0]):
        with pytest.raises(Exception, match="residual must be float32 of the output's shape"):
            run(session, x, residual.contiguous())


def test_no_word_of_a_file_is_trusted() -> None:
    """Each word in turn is another one: the file is refused, or names rows and channels that there are."""
    x = torch.randn(1, 8, 5, 5)
    arrays, attributes = operator(fixed("dct2", 8, 8))
    values, refused = (-1, 0, 3, 1 << 16, 2**31 - 1), 0
    for place in range(len(arrays[0])):
        words = arrays[0].copy()
        words[place] = values[place % len(values)]
        try:
            assert run(model_of("IndexConv", x, [words, *arrays[1:]], attributes, False), x).shape == x.shape
        except Exception as error:
            assert "packed must be" in str(error), error  # noqa: PT017 - most words are refused, by no rule
            refused += 1
    assert refused > 50
