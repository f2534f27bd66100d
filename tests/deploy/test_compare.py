"""What cannot be optimised, or would differ, stays as it is, and the reason says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.deployed import conv, net
from support.nets import Untraceable
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.deploy.compare import compare

X = torch.randn(2, 3, 12, 14)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [efx.FixedConv2d(3, 8, 3, padding=1, init="dct2", seed=0), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4, 1)]
    return nn.Sequential(*layers).eval()


def hooked(layer: int, before: bool = False) -> nn.Module:
    """A model that doubles what a layer returns, or takes, in a hook."""
    changed = model()
    if before:
        changed[layer].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    else:
        changed[layer].register_forward_hook(lambda module, inputs, output: output * 2)
    return changed


def patched(layer: int) -> nn.Module:
    changed = model()
    changed[layer].forward = lambda x: x * 2
    return changed


def root_hook() -> nn.Module:
    changed = model()
    changed.register_forward_hook(lambda module, inputs, output: output * 2)
    return changed


class BySize(nn.Module):
    """What torch.fx traces is right for one size only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.size = conv(3, 4), None

    def forward(self, x: Tensor) -> Tensor:
        factor = 1 if isinstance(x, torch.fx.Proxy) or x.shape[2] == X.shape[2] else 2
        return self.a(x) * factor


@dataclass
class Output:
    y: Tensor


def changes_a_view(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y[:, 0].add_(1)
    return y


DIFFER = "its outputs would differ by"
# What it is -> the model, and what the reason has.
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "control flow": (Untraceable, "torch.fx cannot trace it: symbolically traced variables cannot be used as inputs"),
    "a loop over pixels": (
        lambda: net(lambda m, x: sum(m.a(row) for row in x), a=conv(3, 4)), "cannot trace it: Proxy object cannot be"
    ),
    "a script": (lambda: torch.jit.script(nn.Sequential(conv(3, 4))), "torch.fx cannot trace it"),
    "on meta": (lambda: model().to("meta"), "it, or the example, is on meta: the kernels are for the CPU"),
    "bfloat16": (lambda: model().bfloat16(), "must be in float32, got torch.bfloat16, torch.float32"),
    "half of it in float64": (lambda: nn.Sequential(model(), model().double()), "got torch.float32, torch.float64"),
    "no convolution": (lambda: nn.Linear(14, 2), "it has no convolution that a step can run"),
    "no tensor": (lambda: net(lambda m, x: Output(m.a(x)), a=conv(3, 4)), "its output has no tensor"),
    "hook of a fixed layer": (lambda: hooked(0), DIFFER),
    "hook of a norm": (lambda: hooked(1), DIFFER),
    "hook of an activation": (lambda: hooked(2), DIFFER),
    "hook of a 1x1": (lambda: hooked(3), DIFFER),
    "hook before a layer": (lambda: hooked(0, before=True), DIFFER),
    "hook of the model": (root_hook, DIFFER),
    "another forward of a norm": (lambda: patched(1), DIFFER),
    "another forward of an activation": (lambda: patched(2), DIFFER),
    "a view in place": (lambda: net(changes_a_view, a=conv(3, 4)), DIFFER),
    "another size": (lambda: BySize().eval(), "of their norm at 2x3x44x78, over 1e-05"),
    "a number drawn by torch.fx": (lambda: net(lambda m, x: m.a(x) + torch.rand(1), a=conv(3, 4)), DIFFER),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("what", REFUSED)
def test_refusals(what: str) -> None:
    make, reason = REFUSED[what]
    refused = make().eval()
    fast = efx.optimize_for_inference(refused, X)
    assert reason in fast.reason
    assert fast.report == f"unchanged: {fast.reason}"
    assert "\n" not in fast.report
    assert fast.steps == {}
    if what in ("on meta", "bfloat16", "half of it in float64", "no tensor", "a number drawn by torch.fx"):
        return
    with torch.no_grad():
        torch.testing.assert_close(fast(X), refused(X), rtol=0, atol=0)


def test_example_on_another_device_or_of_another_dtype() -> None:
    assert "is on meta" in efx.optimize_for_inference(model(), X.to("meta")).reason
    assert "got torch.float16, torch.float32" in efx.optimize_for_inference(model(), X.half()).reason


@pytest.mark.cuda
def test_example_on_a_gpu() -> None:
    assert "is on cuda" in efx.optimize_for_inference(model().cuda(), X.cuda()).reason


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="model must be an nn.Module, got 'resnet18'"):
        efx.optimize_for_inference("resnet18", X)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"example must be a tensor, got \(1, 3, 8, 8\); torch.zeros"):
        efx.optimize_for_inference(model(), (1, 3, 8, 8))


@pytest.mark.parametrize(
    "forward", [lambda m, x: F.dropout(m.a(x), 0.5, True), lambda m, x: m.a(x) + torch.rand_like(x[:, :1])]
)
def test_random_numbers_are_drawn_alike(forward: Callable[..., Tensor]) -> None:
    random = net(forward, a=conv(3, 4))
    before = torch.random.get_rng_state()
    fast = efx.optimize_for_inference(random, X)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not fast.reason
    torch.manual_seed(1)
    got = fast(X)
    torch.manual_seed(1)
    torch.testing.assert_close(got, random(X).detach(), rtol=1e-5, atol=1e-6)


class Off(nn.Module):
    """A network that returns what a model does, but for a change."""

    def __init__(self, model: nn.Module, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.model(x))


def same(y: Tensor) -> Tensor:
    return y


def ill(y: Tensor) -> Tensor:
    """A large number added, and taken away again: float32 keeps three digits."""
    return (y + 1e4) - 1e4


# (what the model returns, what the network does, whether that is as good)
PAIRS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor], Any], bool]] = {
    "rounding": (same, lambda y: y * (1 + 5e-6), True),
    "too far": (same, lambda y: y * (1 + 2e-5), False),
    "ill-conditioned": (ill, lambda y: y, True),
    "ill-conditioned, and off": (ill, lambda y: y * 1.05, False),
    "noise": (lambda y: y + torch.rand_like(y) * 100, lambda y: y, False),
    "float64 of a float32 network": (lambda y: y.double(), lambda y: y.double() * (1 + 5e-6), True),
    "dtype": (same, lambda y: y.double(), False),
    "NaN in both": (lambda y: y.log(), lambda y: y.log(), True),
    "NaN, and off": (lambda y: y.log(), lambda y: y.log() * 1.01, False),
    "NaN": (same, lambda y: y * torch.nan, False),
    "infinity in both": (lambda y: y.masked_fill(y > 0, torch.inf), lambda y: y.masked_fill(y > 0, torch.inf), True),
    "another infinity": (lambda y: y.masked_fill(y > 0, torch.inf), lambda y: y.masked_fill(y > 0, -torch.inf), False),
    "infinity, and off": (
        lambda y: y.masked_fill(y > 0, torch.inf), lambda y: y.masked_fill(y > 0, torch.inf) * 1.01, False
    ),
    "zero": (lambda y: y * 0, lambda y: y * 0, True),
    "zero, and off": (lambda y: y * 0, lambda y: y * 0 + 1e-3, False),
    "classes": (lambda y: y.argmax(1), lambda y: y.argmax(1), True),
    "other classes": (lambda y: y.argmax(1), lambda y: y.argmin(1), False),
    "second output": (lambda y: (y, y), lambda y: {"a": y, "b": y * 1.1}, False),
    "shape": (same, lambda y: y[:, :1], False),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_comparison(name: str) -> None:
    of_model, of_network, good = PAIRS[name]
    exact = conv(3, 4)
    if name == "dtype":
        with pytest.raises(ValueError, match=r"dtypes would differ from torch\.float32"):
            compare(Off(exact, of_model), Off(exact, of_network), (X,))
        return
    found = compare(Off(exact, of_model), Off(exact, of_network), (X,))
    assert bool(found.failure) != good
    assert (found.error <= 1e-2) == good or found.failure
    assert len(found.sizes) == (4 if good else 1)


def test_sizes_that_the_model_is_not_for_are_left_out() -> None:
    head = nn.Sequential(conv(3, 4), nn.Flatten(), nn.Linear(4 * 12 * 14, 5)).eval()
    assert efx.optimize_for_inference(head, X).sizes == ((2, 3, 12, 14), (4, 3, 12, 14))
    assert efx.optimize_for_inference(model(), X).sizes[1:] == ((4, 3, 12, 14), (2, 3, 44, 78), (2, 3, 9, 8))


def test_model_that_changes_its_input() -> None:
    before = X.clone()
    fast = efx.optimize_for_inference(net(lambda m, x: m.a(x.mul_(2)), a=conv(3, 4)), X)
    assert not fast.reason
    assert torch.equal(X, before)
