"""What tests of optimize_for_inference share: networks of one line, and the comparison with the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import explainfix_ext as efx

from .bench_networks import randomise_norms
from .compare import relative_error

# Norm of the difference, as a share of the output's. Folding in float64 is exact but for rounding.
ALLOWED = {torch.float64: 1e-10, torch.float32: 1e-5}


def net(forward: Callable[..., Any], **modules: Any) -> nn.Module:
    """A network in eval mode with these modules and Parameters, whose BatchNorms do something."""
    model = type("Net", (nn.Module,), {"forward": forward})()
    for name, value in modules.items():
        setattr(model, name, value)
    return randomise_norms(model).eval()


def conv(i: int, o: int, k: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, **{"padding": k // 2, **options})


def cast(x: Any, dtype: torch.dtype) -> Any:
    """The same in another dtype, where it is a tensor of floating-point numbers."""
    return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x


def unlike(x: Any) -> Any:
    """Other numbers of the same shape."""
    return torch.randn_like(x) if isinstance(x, Tensor) and x.is_floating_point() else x


def check_equal(got: Any, want: Any, allowed: float) -> None:
    """The outputs have the same tree; their floating-point tensors differ by `allowed` at most, all else is equal."""
    assert type(got) is type(want)
    if isinstance(want, dict):
        assert list(got) == list(want)
    for a, b in zip(tree_leaves(got), tree_leaves(want), strict=True):
        if not isinstance(b, Tensor):
            assert a == b
            continue
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if not b.is_floating_point():
            assert torch.equal(a, b)
            continue
        finite = b.isfinite()
        assert relative_error(a[finite], b[finite]) <= allowed
        torch.testing.assert_close(a[~finite], b[~finite], equal_nan=True)


@torch.no_grad()
def optimised(model: nn.Module, *inputs: Any, dtypes: tuple[torch.dtype, ...] = tuple(ALLOWED)) -> efx.Optimized:
    """The network of a model in eval mode, held against it in each dtype on other numbers; that of the last dtype."""
    for dtype in dtypes:
        exact = copy.deepcopy(model).to(dtype)
        case = tree_map(partial(cast, dtype=dtype), inputs)
        fast = efx.optimize_for_inference(exact, case)
        assert fast.reason == ""
        assert fast.error <= ALLOWED[dtype]
        other = tree_map(unlike, case)
        check_equal(fast(*tree_map(copy.deepcopy, other)), exact(*tree_map(copy.deepcopy, other)), ALLOWED[dtype])
    return fast


def steps_in(fast: efx.Optimized) -> list[str]:
    """What the network calls, in its order: classes of modules, names of functions and methods."""
    network: Any = fast.network
    calls = []
    for node in network.graph.nodes:
        if node.op == "call_module":
            calls.append(type(network.get_submodule(node.target)).__name__)
        elif node.op in ("call_function", "call_method"):
            calls.append(getattr(node.target, "__name__", node.target))
    return calls
