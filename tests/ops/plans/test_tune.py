"""Choice between a kernel of ours and torch's by measurement: with a fake clock and planted kernels, on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.fake_cuda import CUDA, on_fake_cuda
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import explainfix_ext as efx
from explainfix_ext.ops import binaries, transposes
from explainfix_ext.ops.plans import card_cache, tune
from explainfix_ext.ops.plans.plan import AUTO, DENSE, DEPTHWISE, make_plan
from explainfix_ext.ops.plans.tune import times

PACKED = 3  # its place among the arguments
CHOSEN = DEPTHWISE + AUTO
DEPTHWISE_LAYER: dict[str, Any] = {"kernel_size": 3, "padding": 1, "groups": 8, "init": "dct2", "seed": 0}


class Clock:
    """Tells how long our kernel takes, and torch's; counts how often it is asked."""

    def __init__(self) -> None:
        self.ours, self.torchs, self.asked = 0.9, 1.0, 0

    def __call__(self, device: torch.device, *calls: Callable[[], Tensor]) -> list[float]:
        self.asked += 1
        return [self.ours, self.torchs]


class Kernel:
    """Stands for the operator: multiplies by 2; `plant` changes what our kernel gives."""

    _name = "explainfix::fixed_conv2d"

    def __init__(self, plant: Callable[[Tensor], Tensor] = lambda y: y) -> None:
        self.plant, self.calls = plant, 0

    def __call__(self, x: Tensor, *others: Any) -> Tensor:
        self.calls += 1
        return 2 * x if others[-1] == DENSE else self.plant(2 * x)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    clock = Clock()
    monkeypatch.setattr(tune, "times", clock)
    new_process(monkeypatch)
    return clock


def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "CHOICES", {})
    card_cache._entries.cache_clear()


def call(size: int = 6, dtype: torch.dtype = torch.float32, plan: int = CHOSEN, fill: float = 1.0) -> tuple:
    x = torch.full((3, 8, size, size), fill, dtype=dtype)
    basis, steering, filters = torch.ones(9, 3, 3), torch.zeros(8, 1), torch.ones(3, 3, 8)
    return (x, basis, steering, filters, None, (1, 1), (1, 1), (1, 1), 8, 1.0, plan)


def runs_ours(kernel: Kernel, args: tuple) -> bool:
    chosen = tune.choose(kernel, PACKED, args)
    if chosen is args:
        return True
    assert chosen == (*args[:PACKED], None, *args[PACKED + 1 : -1], DENSE)
    return False


def test_calls_are_timed_in_turns_after_warming_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        now = 0.0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = Event.now

        def elapsed_time(self, end: Any) -> float:
            return end.at - self.at

    def takes(name: str, milliseconds: list[float]) -> Callable[[], None]:
        def call() -> None:
            called.append(name)
            Event.now += milliseconds.pop(0)

        return call

    called: list[str] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(synchronize=lambda: None))
    calls = takes("a", [99, 99, 3, 90, 3, 3, 4]), takes("b", [99, 99, 5, 5, 50, 5, 5])
    assert times(torch.device("cuda"), *calls) == [3, 5]
    assert called == ["a", "b"] * 7


@pytest.mark.parametrize(("ours", "wins"), [(0.9, True), (0.98, False), (1.5, False)])
def test_ours_runs_where_it_is_faster_by_more_than_noise(clock: Clock, ours: float, wins: bool) -> None:
    clock.ours = ours
    assert [runs_ours(Kernel(), call()) for _ in range(3)] == [wins] * 3
    assert clock.asked == 1


def test_each_geometry_and_direction_is_a_call_of_its_own(clock: Clock) -> None:
    x, *others = call()
    last = x.contiguous(memory_format=torch.channels_last)
    biased = (x, *others[:3], torch.ones(8), *others[4:])
    backward, strided = (x, *others[:3], x.shape[2:], *others[4:]), (x, *others[:4], (2, 2), *others[5:])
    calls = [call(), call(7), call(dtype=torch.bfloat16), (last, *others), biased, backward, strided]
    for args in calls * 2:
        runs_ours(Kernel(), args)
    assert clock.asked == len(calls)
    input_grad = Kernel()
    input_grad._name += "_input_grad"
    runs_ours(input_grad, backward)
    assert clock.asked == len(calls) + 1


def test_what_the_user_forced_or_no_kernel_does_is_not_measured(clock: Clock) -> None:
    for args in (call(plan=DEPTHWISE), call(dtype=torch.float64), call(size=0)):
        assert runs_ours(Kernel(), args)
    assert clock.asked == 0


def test_another_process_recalls_and_another_card_measures(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock.ours = 2.0
    assert not runs_ours(Kernel(), call())
    new_process(monkeypatch)
    assert not runs_ours(Kernel(), call())
    assert clock.asked == 1
    new_process(monkeypatch)
    monkeypatch.setattr(card_cache, "card", lambda device: "another")
    runs_ours(Kernel(), call())
    assert clock.asked == 2
    file = tmp_path / "explainfix_ext/cards.json"
    assert len(json.loads(file.read_text())) == 2
    for content in ("", "[1]", '{"another": 3}', "\ud800"):
        file.write_bytes(content.encode(errors="surrogatepass"))
        new_process(monkeypatch)
        runs_ours(Kernel(), call())
    assert clock.asked == 6


def test_the_file_is_capped_and_need_not_be_writable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(card_cache, "MOST_CHOICES", 3)
    for size in range(1, 6):
        runs_ours(Kernel(), call(size))
    (kept,) = json.loads((tmp_path / "explainfix_ext/cards.json").read_text()).values()
    assert ["Size([3, 8, 5, 5])" in name for name in kept] == [False, False, True]
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert runs_ours(Kernel(), call(9))


@pytest.mark.parametrize("image", [0, 2])
def test_a_wrong_kernel_gives_way_with_a_warning(clock: Clock, image: int) -> None:
    kernel = Kernel(lambda y: torch.where(torch.arange(3)[:, None, None, None] == image, y + 0.1, y))
    with pytest.warns(UserWarning, match="off by .* please report"):
        assert not runs_ours(kernel, call())
    assert not runs_ours(kernel, call())
    assert clock.asked == 0


def test_rounding_is_no_error() -> None:
    assert runs_ours(Kernel(lambda y: y * 1.01), call(dtype=torch.bfloat16))
    with pytest.warns(UserWarning, match="off by"):
        assert not runs_ours(Kernel(lambda y: y * 1.01), call(dtype=torch.float16))


def test_float32_may_be_off_by_what_tf32_is_off() -> None:
    with torch.backends.cudnn.flags(allow_tf32=True):
        assert runs_ours(Kernel(lambda y: y * 1.001), call())
    for allowed, factor in ((False, 1.001), (True, 1.005)):
        with torch.backends.cudnn.flags(allow_tf32=allowed), pytest.warns(UserWarning, match="off by"):
            assert not runs_ours(Kernel(lambda y: y * factor), call(6 + allowed))  # noqa: B023


def test_a_process_measures_so_many_calls_at_most(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "MOST", 2)
    assert all(runs_ours(Kernel(), call(size)) for size in range(1, 6))
    assert clock.asked == 2


@pytest.mark.parametrize("fill", [float("nan"), float("inf")])
def test_what_is_not_finite_says_nothing(clock: Clock, tmp_path: Path, fill: float) -> None:
    assert runs_ours(Kernel(), call(fill=fill))
    assert not list(tmp_path.iterdir())
    assert (clock.asked, list(tune.CHOICES.values())) == (0, [None])


def test_without_memory_the_estimate_holds_in_this_process(tmp_path: Path) -> None:
    def full(y: Tensor) -> Tensor:
        raise torch.OutOfMemoryError

    kernel = Kernel(full)
    assert runs_ours(kernel, call())
    assert runs_ours(kernel, call())
    assert kernel.calls == 1
    assert not list(tmp_path.iterdir())


def deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)


def capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)


def compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


def transform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)


def counter(monkeypatch: pytest.MonkeyPatch) -> AbstractContextManager:
    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
            return func(*args, **(kwargs or {}))

    return Counter()


@pytest.mark.parametrize("state", [deterministic, capture, compiling, transform, ranks, counter])
def test_nothing_is_measured_where_that_would_disturb(clock: Clock, state: Callable) -> None:
    with pytest.MonkeyPatch.context() as patch, state(patch) or nullcontext():
        assert runs_ours(Kernel(), call())
    assert (clock.asked, list(tune.CHOICES.values())) == (0, [None])
    assert runs_ours(Kernel(), call())
    assert clock.asked == 1  # afterwards
    tune.CHOICES[tune._key(Kernel, PACKED, call())] = False
    with pytest.MonkeyPatch.context() as patch, state(patch) or nullcontext():
        assert not runs_ours(Kernel(), call())  # what is known holds


def test_transformed_and_compiled_layers_do_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*args: Any) -> tuple:
        raise AssertionError

    monkeypatch.setattr(transposes, "choose", asked)
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda x: True))
    conv, x = efx.FixedConv2d(8, 8, **DEPTHWISE_LAYER), torch.randn(2, 8, 6, 6)
    with pytest.raises(AssertionError):
        conv(x)
    torch.func.vmap(conv)(x[:, None])
    torch.func.grad(lambda x: conv(x).sum())(x)
    torch.compile(conv, fullgraph=True, backend="aot_eager")(x.requires_grad_()).sum().backward()


def test_layers_on_a_gpu_ask_in_each_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setitem(binaries.LOADED, "cuda", "a binary")
    monkeypatch.setattr(transposes, "choose", lambda op, packed, args: asked.append((op._name, args[-1])) or args)
    conv = efx.FixedConv2d(8, 8, **DEPTHWISE_LAYER)
    conv(torch.randn(2, 8, 6, 6, requires_grad=True)).sum().backward()
    assert asked == []  # on the CPU
    with on_fake_cuda(conv):
        conv(torch.randn(2, 8, 6, 6, device=CUDA, requires_grad=True)).sum().backward()
    assert asked == [("explainfix::fixed_conv2d", CHOSEN), ("explainfix::fixed_conv2d_input_grad", CHOSEN)]


def model_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    monkeypatch.setitem(binaries.LOADED, "cuda", "a binary")
    monkeypatch.setattr(transposes, "choose", tune.choose)
    monkeypatch.setattr(tune, "_can_run_twice", lambda: True)

    def decide(key: tuple, op: Any, packed: int, args: tuple, may_measure: Callable[[], bool]) -> bool:
        if may_measure():
            tune.CHOICES[key] = "input_grad" in op._name
        return True

    monkeypatch.setattr(tune, "_decide", decide)
    layers = [efx.FixedConv2d(8, 8, **DEPTHWISE_LAYER) for _ in range(2)]
    return nn.Sequential(*layers, nn.BatchNorm2d(8), efx.FixedConv2d(8, 8, 3, init="dct2", seed=0))


def test_tune_measures_both_directions_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    deterministic(monkeypatch)
    model = model_on_a_gpu(monkeypatch)
    modes = []
    model[2].register_forward_hook(lambda module, args, y: modes.append(module.training))
    with on_fake_cuda(model):
        x = torch.randn(2, 8, 6, 6, device=CUDA)
        assert efx.tune(model, x) == "2 calls: 1 by our kernels, 1 by torch's"
    assert (modes, model.training) == ([False], True)
    assert transposes.choose is tune.choose
    assert sorted(tune.CHOICES.values()) == [False, True]


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_take_the_choices_of_rank_0(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    def broadcast(objects: list, src: int) -> None:
        assert src == 0
        assert len([v for v in tune.CHOICES.values() if v is not None]) == (2 if rank == 0 else 0)
        if rank == 1:
            objects[0] = dict.fromkeys(objects[0], False)

    ranks(monkeypatch)
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    monkeypatch.setattr(dist, "broadcast_object_list", broadcast)
    model = model_on_a_gpu(monkeypatch)
    with on_fake_cuda(model):
        efx.tune(model, torch.randn(2, 8, 6, 6, device=CUDA))
    assert sorted(tune.CHOICES.values()) == [False, rank == 0]


def test_tune_says_that_it_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(binaries.LOADED, "cuda", "a binary")
    monkeypatch.setenv("EXPLAINFIX_TUNE", "0")
    monkeypatch.setattr(transposes, "choose", None)
    tune.install()
    assert transposes.choose is None
    on_card = type("OnCard", (torch.Tensor,), {"is_cuda": True})
    assert "EXPLAINFIX_TUNE=0" in efx.tune(nn.Identity(), torch.zeros(1).as_subclass(on_card))
    assert "nothing to choose" in efx.tune(nn.Identity(), torch.zeros(1))
    monkeypatch.setenv("EXPLAINFIX_TUNE", "1")
    tune.install()
    assert transposes.choose is tune.choose


def test_auto_marks_its_kernels_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(binaries.LOADED, "cuda", "a binary")
    bank = efx.FixedConv2d(8, 8, **DEPTHWISE_LAYER).bank
    codes = [make_plan(bank, torch.float32, groups=8, force=f, device=CUDA).code for f in ("auto", "depthwise")]
    assert codes == [CHOSEN, DEPTHWISE]


@pytest.mark.cuda
def test_on_a_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    new_process(monkeypatch)
    monkeypatch.setattr(transposes, "choose", tune.choose)
    conv = efx.FixedConv2d(64, 64, 3, padding=1, groups=64, init="dct2", seed=0).cuda()
    x = torch.randn(8, 64, 28, 28, device="cuda", requires_grad=True)
    want = conv.to_conv2d()(x)
    for _ in range(2):
        torch.testing.assert_close(conv(x), want, rtol=1e-3, atol=1e-3)
        conv(x).sum().backward()
    assert len(tune.CHOICES) == 2
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        conv(x[:4])  # a call that nobody knows
    assert sum(ours is not None for ours in tune.CHOICES.values()) == 2
    assert efx.tune(conv, x).startswith("2 calls: ")
    (card,) = json.loads((tmp_path / "explainfix_ext/cards.json").read_text())
    assert torch.cuda.get_device_name() in card
