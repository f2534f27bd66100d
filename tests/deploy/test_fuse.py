"""What follows a convolution becomes part of it, and nothing else does: small networks with one way of joining each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.deployed import conv, net, optimised, steps_in
from torch import Tensor, nn


def x(channels: int = 8, size: int = 9) -> Tensor:
    return torch.randn(2, channels, size, size + 2)


def convolutions(calls: list[str]) -> list[str]:
    return ["conv" if call in ("DenseStep", "PointwiseStep", "DepthwiseStep") else call for call in calls]


def a(**options: Any) -> dict[str, Any]:
    return {"a": conv(8, 8, **options)}


def two() -> dict[str, Any]:
    return {"a": conv(8, 8), "b": conv(8, 8, 1)}


def twice_in_place(m: Any, x: Tensor) -> Tensor:
    """ReLU in place, of one module, on what is read again later: as networks do that normalise first."""
    y = m.a(x)
    m.act(y)
    z = m.b(y)
    m.act(z)
    return y + z


# name -> forward, modules, what is left of the network
JOINED: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]], list[str]]] = {
    "norm, addition, activation": (
        lambda m, x: F.relu(m.n(m.a(x)) + x), lambda: {**a(), "n": nn.BatchNorm2d(8)}, ["conv"]),
    "activation before the addition": (lambda m, x: m.a(x).relu() + x, a, ["conv", "add"]),
    "sum of two": (lambda m, x: m.a(x) + m.b(x), two, ["conv", "conv"]),
    "chain of sums": (lambda m, x: m.b(m.a(x) + x) + x, two, ["conv", "conv"]),
    "residual twice": (lambda m, x: m.a(x) + x + x, a, ["conv", "add"]),
    "itself": (lambda m, x: (lambda y: y + y)(m.a(x)), a, ["conv", "add"]),
    "read twice": (lambda m, x: (lambda y: F.relu(y) + y.sigmoid())(m.a(x)), a, ["conv", "relu", "sigmoid", "add"]),
    "added in place": (
        lambda m, x: (lambda y: y.add_(m.b(y)).relu_())(m.a(x)), two, ["conv", "conv"]),
    "module that runs twice": (
        lambda m, x: m.n(m.a(F.relu(m.a(x)))), lambda: {**a(), "n": nn.BatchNorm2d(8)}, ["conv", "conv"]),
    "one module in place": (twice_in_place, lambda: {**two(), "act": nn.ReLU(True)}, ["conv", "conv", "add"]),
    "in place by position": (lambda m, x: (lambda y: F.relu(y, True) + y)(m.a(x)), a, ["conv", "add"]),
    "added number": (lambda m, x: m.a(x) + 1, a, ["conv", "add"]),
    "added with a factor": (lambda m, x: torch.add(m.a(x), x, alpha=2), a, ["conv", "add"]),
    "added channel by channel": (
        lambda m, x: m.a(x) + x.mean((2, 3), keepdim=True), a, ["conv", "MeanStep", "add"]),
    "added constant": (  # which is of one image: of the example's shape only as long as that is one, too
        lambda m, x: m.a(x) + m.p, lambda: {**a(), "p": nn.Parameter(torch.randn(1, 8, 9, 11))}, ["conv", "add"]),
    "gate": (
        lambda m, x: m.b(x * m.a(x.mean((2, 3), keepdim=True)).sigmoid()), two,
        ["MeanStep", "conv", "sigmoid", "conv"]),
    "gate before 3x3": (lambda m, x: m.a(x * x.mean((2, 3), keepdim=True)), a, ["MeanStep", "mul", "conv"]),
    "gate that is read twice": (
        lambda m, x: (lambda y: m.b(y) + y)(x * x.mean((2, 3), keepdim=True)), two, ["MeanStep", "mul", "conv"]),
    "constant gate": (
        lambda m, x: m.b(x * m.p), lambda: {**two(), "p": nn.Parameter(torch.randn(1, 8, 1, 1))}, ["mul", "conv"]),
    "dropout": (
        lambda m, x: F.dropout(m.drop(m.same(m.a(x))), 0.5, m.training).relu(),
        lambda: {**a(), "drop": nn.Dropout2d(inplace=True), "same": nn.Identity()}, ["conv"]),
    "keyword": (lambda m, x: m.n(input=m.a(x)), lambda: {**a(), "n": nn.BatchNorm2d(8)}, ["conv"]),
    "names of methods": (  # modules that have these names are no additions
        lambda m, x: m.mul(m.add(m.a(x), x)[:, None]),
        lambda: {**a(), "add": nn.PairwiseDistance(), "mul": nn.ReLU()},
        ["conv", "PairwiseDistance", "getitem", "ReLU"]),
    "name of a step": (
        lambda m, x: m.step_a(F.relu(m.step_relu(m.a(x)))),
        lambda: {**a(), "step_a": conv(8, 4), "step_relu": conv(8, 8)}, ["conv", "conv", "conv"]),
}  # fmt: skip


@pytest.mark.parametrize("name", JOINED)
def test_what_is_joined(name: str) -> None:
    forward, modules, left = JOINED[name]
    for images in (1, 2):
        fast = optimised(net(forward, **modules()), x()[:images])
        assert convolutions(steps_in(fast)) == left


NORMS = {
    "without numbers": (nn.BatchNorm2d(8, affine=False), []),
    "of the batch": (nn.BatchNorm2d(8, track_running_stats=False), ["BatchNorm2d"]),
    "of the image": (nn.InstanceNorm2d(8), ["InstanceNorm2d"]),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str) -> None:
    norm, left = NORMS[name]
    norm.train()(x() * 2 + 1)
    model = net(lambda m, x: m.n(m.a(x)), **a())
    model.n = norm.eval()
    assert convolutions(steps_in(optimised(model, x()))) == ["conv", *left]


ACTIVATIONS: dict[str, Any] = {
    "ReLU": nn.ReLU(), "ReLU in place": nn.ReLU(True), "ReLU6": nn.ReLU6(), "LeakyReLU": nn.LeakyReLU(0.3),
    "SiLU": nn.SiLU(), "Hardswish": nn.Hardswish(), "GELU": nn.GELU(), "GELU tanh": nn.GELU("tanh"), "relu": F.relu,
    "torch.relu": torch.relu, "relu6": F.relu6, "silu": F.silu, "hardswish": F.hardswish,
    "method": lambda x: x.relu(), "torch.relu_": torch.relu_, "functional in place": lambda x: F.silu(x, inplace=True),
}  # fmt: skip
ALONE: dict[str, Any] = {
    "PReLU": nn.PReLU(), "Sigmoid": nn.Sigmoid(), "ELU": nn.ELU(), "Hardtanh": nn.Hardtanh(), "gelu": F.gelu,
    "leaky_relu": F.leaky_relu, "Softplus": nn.Softplus(),
}  # fmt: skip


@pytest.mark.parametrize("name", [*ACTIVATIONS, *ALONE])
def test_activations(name: str) -> None:
    act = ACTIVATIONS.get(name) or ALONE[name]
    modules = {"act": act} if isinstance(act, nn.Module) else {}
    fast = optimised(net(lambda m, x: act(m.a(x)) if not modules else m.act(m.a(x)), **a(), **modules), x() * 3)
    assert len(steps_in(fast)) == (1 if name in ACTIVATIONS else 2)


POOLS: dict[str, tuple[Any, str]] = {
    "pairs": (nn.MaxPool2d((3, 2), (2, 1), (1, 0)), "MaxPoolStep"),
    "rounded up": (nn.MaxPool2d(2, 2, ceil_mode=True), "MaxPoolStep"),
    "dilated": (nn.MaxPool2d(2, dilation=2), "MaxPool2d"),
    "too large for the kernel": (nn.MaxPool2d(17, 1, 8), "MaxPool2d"),
    "mean": (nn.AdaptiveAvgPool2d(1), "MeanStep"),
    "four means": (nn.AdaptiveAvgPool2d(2), "AdaptiveAvgPool2d"),
    "function": (lambda x: F.adaptive_avg_pool2d(x, (1, 1)), "MeanStep"),
    "method": (lambda x: x.mean((-2, -1), keepdim=True), "MeanStep"),
    "of float64": (lambda x: x.mean((2, 3), keepdim=True, dtype=torch.float64), "mean"),
    "without axes": (lambda x: x.mean((2, 3)), "mean"),
    "of channels": (lambda x: x.mean((1, 2), keepdim=True), "mean"),
    "of groups": (lambda x: x.unflatten(1, (2, 4)).mean((2, 3), keepdim=True), "mean"),
    "indices": (nn.MaxPool2d(2, return_indices=True), "MaxPool2d"),
}


@pytest.mark.parametrize("name", POOLS)
def test_pooling(name: str) -> None:
    pool, left = POOLS[name]
    modules = {"pool": pool} if isinstance(pool, nn.Module) else {}
    fast = optimised(net(lambda m, x: m.pool(m.a(x)) if modules else pool(m.a(x)), **a(), **modules), x(size=20))
    assert steps_in(fast)[-1] == left


LAYERS: dict[str, dict[str, Any]] = {
    "1x1": {"k": 1}, "1x1, stride 2": {"k": 1, "stride": 2}, "1x1, padded": {"k": 1, "padding": 1},
    "1x1, strides": {"k": 1, "stride": (1, 2)}, "1x1, groups": {"k": 1, "groups": 2}, "depthwise": {"groups": 8},
    "depthwise 5x5": {"k": 5, "groups": 8, "stride": 2}, "depthwise, stride 3": {"groups": 8, "stride": 3},
    "depthwise, dilated": {"groups": 8, "dilation": 2}, "groups": {"groups": 4, "stride": (2, 1)},
    "same": {"padding": "same"}, "same, even": {"k": 4, "padding": "same"},
    "same, even, depthwise": {"k": 4, "padding": "same", "groups": 8}, "valid": {"padding": "valid", "dilation": 2},
    "reflect": {"padding_mode": "reflect"}, "circular": {"padding_mode": "circular", "groups": 8},
    "replicate": {"padding_mode": "replicate", "padding": (2, 1)}, "no bias": {"bias": False},
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_any_geometry(name: str) -> None:
    model = net(lambda m, x: F.relu(m.n(m.a(x))), **a(**LAYERS[name]), n=nn.BatchNorm2d(8))
    assert convolutions(steps_in(optimised(model, x()))) == ["conv"]
    assert convolutions(steps_in(optimised(model, x()[..., 1:].contiguous(memory_format=torch.channels_last)))) == [
        "conv"
    ]


TREES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "two inputs": (lambda m, x, y: m.a(x) + y, (x(), x())),
    "two sizes": (lambda m, x, y: m.a(x).mean((2, 3)) + m.a(y).mean((2, 3)), (x(), x(size=5))),
    "a dict": (lambda m, x: {"out": m.a(x), "mean": x.mean()}, (x(),)),
    "a tuple": (lambda m, x: (m.a(x), [x, F.relu(m.b(x))], None, 3), (x(),)),
    "input in a dict": (lambda m, d: m.a(d["image"]) + d["other"], ({"image": x(), "other": x()},)),
    "input in a list": (lambda m, pair: m.a(pair[0]) + pair[1], ([x(), x()],)),
    "largest class": (lambda m, x: m.a(x).argmax(1), (x(),)),
    "class and score": (lambda m, x: (m.a(x).argmax(1), m.a(x).amax(1)), (x(),)),
    "whole numbers": (
        lambda m, x: m.a(x.to(m.a.weight.dtype)),
        (torch.randint(0, 255, (2, 8, 9, 9), dtype=torch.uint8),),
    ),
    "no batch": (lambda m, x: F.relu(m.a(x)), (x()[0],)),
    "no image": (lambda m, x: F.relu(m.a(x)), (x()[:0],)),
    "one pixel": (lambda m, x: F.relu(m.b(x)), (x()[..., :1, :1],)),
    "minus infinity": (lambda m, x: m.a(x).masked_fill(x > 0, -torch.inf), (x(),)),
    "NaN": (lambda m, x: m.a(x).log(), (x(),)),
}


@pytest.mark.parametrize("name", TREES)
def test_inputs_and_outputs_of_any_kind(name: str) -> None:
    forward, inputs = TREES[name]
    optimised(net(forward, **two()), *inputs)
