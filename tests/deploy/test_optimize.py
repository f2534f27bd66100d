"""What optimize_for_inference returns can be saved, copied and called as any module; the model stays as it was."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bench_networks import randomise_norms
from support.compare import relative_error
from support.deployed import conv, net, optimised
from support.nets import HELD, KINDS, PRUNABLE, check_same_state, images, made, state_of
from support.paths import ROOT
from torch import Tensor, nn

import explainfix_ext as efx

X = torch.randn(2, 3, 14, 19, generator=torch.Generator().manual_seed(3))


def model() -> nn.Sequential:
    """Layers of each kind of kernel, in eval mode."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [
        efx.FixedConv2d(3, 8, 3, padding=1, init="dct2", seed=0), nn.BatchNorm2d(8), nn.ReLU(True),
        conv(8, 8, 1), nn.SiLU(), nn.Dropout(), nn.MaxPool2d(3, 2, 1), conv(8, 8, groups=8), nn.GELU(),
        efx.FixedConv2d(8, 8, 3, padding=1, init="ghaar4_s1", seed=0, pointwise=True),
        efx.FixedConv2d(8, 8, 3, padding=1, init="hadamard", seed=0), nn.BatchNorm2d(8), nn.LeakyReLU(0.1),
        efx.FixedConv2d(8, 8, 3, padding=1, init="dct2", seed=0, learn_coeff=True), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 4),
    ]  # fmt: skip
    return randomise_norms(nn.Sequential(*layers)).eval()


IN_CI = ("learned", "pointwise")


@pytest.mark.parametrize("kind", [k if k in IN_CI else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
@pytest.mark.parametrize("name", [*PRUNABLE, *HELD])
def test_networks_of_any_structure(name: str, kind: str) -> None:
    make = PRUNABLE[name] if name in PRUNABLE else HELD[name][0]
    optimised(made(make, kind), images(), dtypes=(torch.float64,) if kind == "learned" else (torch.float32,))


def test_the_model_stays_as_it_was() -> None:
    calls: list[int] = []
    original = model().train()
    original[3].eval()
    original[4].register_forward_hook(lambda module, inputs, output: calls.append(1))
    original[7].weight.requires_grad_(False)
    efx.save_memory(original, "recompute")
    before, modes = state_of(original), [m.training for m in original.modules()]
    parameters, hooks = list(original.parameters()), dict(original[4]._forward_hooks)
    wanted, random = [p.requires_grad for p in parameters], torch.random.get_rng_state()
    kinds = [type(m) for m in original.modules()]
    fast = efx.optimize_for_inference(original, X)
    assert not fast.reason
    check_same_state(original, before)
    assert [m.training for m in original.modules()] == modes
    assert all(a is b for a, b in zip(original.parameters(), parameters, strict=True))
    assert [p.requires_grad for p in parameters] == wanted
    assert original[4]._forward_hooks == hooks
    assert [type(m) for m in original.modules()] == kinds
    assert original[2].inplace
    assert torch.equal(torch.random.get_rng_state(), random)
    expected = fast(X)
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.zero_()
    assert torch.equal(fast(X), expected)
    original(X).sum().backward()  # it can still be trained


def test_it_has_no_gradient_and_no_training_mode() -> None:
    fast = efx.optimize_for_inference(model(), X)
    expected = fast(X)
    assert not fast.train().training
    assert not any(m.training for m in fast.train().modules())
    assert torch.equal(fast.train()(X), expected)
    assert not fast(X.clone().requires_grad_()).requires_grad
    assert [p for p in fast.parameters() if p.requires_grad and p.ndim > 2] == []


def test_report() -> None:
    fast = efx.optimize_for_inference(model(), X)
    assert list(fast.steps) == ["0", "3", "7", "9", "10", "13"]
    lines = fast.report.splitlines()
    assert lines[0].split() == ["convolution", "runs", "as"]
    assert [line.split()[0] for line in lines[1:-1]] == list(fast.steps)
    assert lines[-1].startswith("relative difference from the model: ")
    assert lines[-1].endswith("at 2x3x14x19, 4x3x14x19, 2x3x46x83, 2x3x10x10")
    assert 0 < fast.error < 1e-5


def test_any_size_layout_and_batch() -> None:
    exact, fast = model(), efx.optimize_for_inference(model(), X)
    exact = exact.double()
    for shape in [(1, 3, 14, 19), (5, 3, 7, 40), (1, 3, 1, 1), (3, 3, 33, 2)]:
        x = torch.randn(shape)
        for same in (x, x.contiguous(memory_format=torch.channels_last), torch.cat([x, x], 3)[..., : shape[3]]):
            assert relative_error(fast(same), exact(x.double()).detach()) < 1e-5
    assert fast(torch.randn(0, 3, 14, 19)).shape == (0, 4)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "copy of a copy"])
def test_copies(way: str) -> None:
    fast = efx.optimize_for_inference(model(), X)
    expected = fast(X)
    copied = pickle.loads(pickle.dumps(fast)) if way == "pickle" else copy.deepcopy(fast)
    if way == "copy of a copy":
        copied = pickle.loads(pickle.dumps(copied))
    assert torch.equal(copied(X), expected)
    assert copied.report == fast.report
    check_same_state(copied, state_of(fast))
    for tensor in copied.state_dict().values():
        tensor.zero_()
    assert torch.equal(fast(X), expected)


LOAD = """
import sys, torch
fast, x, expected = torch.load(sys.argv[1], weights_only=False)
assert not fast.training and torch.equal(fast(x), expected), (fast(x) - expected).abs().max()
print(fast.report)
"""


def test_saved_and_loaded_in_another_process(tmp_path: Path) -> None:
    fast = efx.optimize_for_inference(model(), X)
    torch.save((fast, X, fast(X)), tmp_path / "fast.pt")
    command = [sys.executable, "-c", LOAD, str(tmp_path / "fast.pt")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"{fast.report}\n"


def test_threads_that_call_it_at_once() -> None:
    fast = efx.optimize_for_inference(model(), X)
    inputs = [torch.randn(1, 3, 14 + n, 19) for n in range(4)]
    expected = [fast(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(fast, inputs * 10))
    assert all(torch.equal(a, b) for a, b in zip(got, expected * 10, strict=True))


def test_results_do_not_depend_on_threads() -> None:
    fast, results, before = efx.optimize_for_inference(model(), X), [], torch.get_num_threads()
    x = torch.randn(3, 3, 40, 41)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(fast(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_within_inference_mode_and_autocast() -> None:
    with torch.inference_mode():
        fast = efx.optimize_for_inference(model(), X)
        expected = fast(X)
    assert not fast.reason
    assert torch.equal(fast(X), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(fast(X), expected) < 0.05


def test_other_dtypes_afterwards() -> None:
    fast = efx.optimize_for_inference(model(), X)
    expected = fast(X)
    for dtype, allowed in ((torch.float64, 1e-5), (torch.bfloat16, 0.05)):
        assert relative_error(copy.deepcopy(fast).to(dtype)(X.to(dtype)), expected) < allowed
    with pytest.raises(RuntimeError, match="double|float"):
        fast(X.double())


def test_wrappers() -> None:
    """What wraps a model takes any arguments, which torch.fx cannot trace; the model inside can be optimised."""
    wrapped = nn.DataParallel(model())
    assert "torch.fx cannot trace it" in efx.optimize_for_inference(wrapped, X).reason
    assert not efx.optimize_for_inference(wrapped.module, X).reason


def test_compile() -> None:
    torch._dynamo.reset()
    fast = efx.optimize_for_inference(model(), X)
    assert relative_error(torch.compile(fast, backend="aot_eager")(X), fast(X)) < 1e-6


def test_example_of_several_tensors() -> None:
    def forward(m: Any, a: Tensor, b: Tensor) -> Tensor:
        return m.one(a) + m.two(b)

    pair = net(forward, one=conv(3, 4), two=conv(5, 4, 1))
    inputs = (X, torch.randn(2, 5, 14, 19))
    fast = efx.optimize_for_inference(pair, inputs)
    assert not fast.reason
    assert fast.sizes == ((2, 3, 14, 19),)
    assert relative_error(fast(*inputs), pair(*inputs).detach()) < 1e-6
