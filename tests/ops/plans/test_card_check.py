"""Each family of kernels is run once on a card, in a subprocess; one that is wrong, crashes or hangs is off."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import explainfix_ext as efx
from explainfix_ext.ops import binaries, passes
from explainfix_ext.ops.plans import card_cache, card_check, card_families
from explainfix_ext.ops.plans.plan import make_plan

FAMILIES = list(card_check.OPERATORS)
CPU = torch.device("cpu")
# Stands for card_families.py: all families are right, until `plant`.
CHILD = """
import os, signal, sys, time
print("ready", flush=True)
for name in sys.argv[2:]:
    {plant}
    print("right", name, flush=True)
"""


def child(plant: str) -> tuple[str, ...]:
    return (sys.executable, "-c", CHILD.format(plant=plant))


@pytest.fixture(autouse=True)
def _cuda_is_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("EXPLAINFIX_TUNE", raising=False)
    monkeypatch.setitem(binaries.LOADED, "cuda", "a binary")
    monkeypatch.setattr(binaries, "OFF", set())
    card_cache._entries.cache_clear()
    card_check.check_card.cache_clear()
    yield
    card_check.check_card.cache_clear()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_are_those_with_operators_and_right_on_the_cpu(family: str) -> None:
    assert list(card_families.FAMILIES) == FAMILIES
    card_families.FAMILIES[family]("cpu")


@pytest.mark.parametrize("name", ["batch_norm_sums", "mask_backward", "dequantize"])
def test_a_planted_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def wrong(*args: torch.Tensor) -> torch.Tensor | None:
        result = right(*args)
        (args[0] if result is None else result)[0] += 0.5
        return result

    right = getattr(passes, name)
    monkeypatch.setattr(passes, name, wrong)
    with pytest.raises(ArithmeticError, match=name):
        card_families.FAMILIES["passes"]("cpu")


def test_a_planted_crash_turns_one_family_off() -> None:
    crash = "if name == 'passes': os.kill(os.getpid(), signal.SIGSEGV)"
    assert card_check.find_wrong("cpu", child(crash)) == {"passes": "the process ended with -11"}


def test_several_families_fail_one_after_another() -> None:
    fails = "if name != 'max_pool': sys.exit(print('wrong', name, 'is off'))"
    assert card_check.find_wrong("cpu", child(fails)) == {name: f"{name} is off" for name in FAMILIES[:-1]}


def test_a_hang_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card_check, "_SECONDS", 1)
    hang = "if name == 'max_pool': time.sleep(60)"
    assert card_check.find_wrong("cpu", child(hang)) == {"max_pool": "it took longer than 1 s"}


@pytest.mark.parametrize("command", [(sys.executable, "-c", "raise SystemExit(1)"), ("/no/such/python",)])
def test_nothing_is_known_where_no_process_can_use_the_card(command: tuple[str, ...]) -> None:
    assert card_check.find_wrong("cuda:0", command) is None


def test_a_card_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found, off = [{"max_pool": "it crashed"}], []
    monkeypatch.setattr(card_check, "find_wrong", lambda device, child: found.pop())
    monkeypatch.setattr(card_check, "turn_off", lambda *args: off.append(args))
    for _ in range(2):  # a process
        for _ in range(2):
            card_check.check_card(CPU)
        card_check.check_card.cache_clear()
        card_cache._entries.cache_clear()
    assert off == [("max_pool", "it crashed")] * 2


def test_what_is_not_known_is_not_kept_and_ranks_do_not_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr(card_check, "find_wrong", lambda device, child: asked.append(device))
    card_check.check_card(CPU)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    card_check.check_card.cache_clear()
    card_check.check_card(CPU)
    monkeypatch.setenv("EXPLAINFIX_TUNE", "0")
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    card_check.check_card.cache_clear()
    card_check.check_card(CPU)
    assert asked == ["cpu"]


def test_a_family_that_is_off_runs_in_pure_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.library.define("explainfix::probe", "(Tensor x) -> Tensor")
    torch.library.impl("explainfix::probe", "CPU", lambda x: x + 1)
    monkeypatch.setitem(card_check.OPERATORS, "probe", {"probe": lambda x: x + 2})
    with pytest.warns(UserWarning, match="the CPU kernels of probe are wrong here"):
        card_check.turn_off("probe", "why", "CPU")
    assert torch.ops.explainfix.probe(torch.zeros(1)) == 2


def test_its_plans_are_dense_and_status_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.library, "impl", lambda *args: None)
    bank = efx.make_bank("dct2", 8, 8, 3, groups=8, seed=0)
    assert make_plan(bank, torch.float32, groups=8, device="cuda").name == "depthwise"
    with pytest.warns(UserWarning, match=r"kernels of fixed_conv2d are wrong here and off \(why\)"):
        card_check.turn_off("fixed_conv2d", "why")
    assert make_plan(bank, torch.float32, groups=8, device="cuda").name == "dense"
    assert efx.status().cuda_kernels == "a binary, but fixed_conv2d in pure torch"
    with pytest.warns(
        UserWarning, match="kernels of passes are off, and pure torch runs instead: .* was not built for"
    ):
        card_check.turn_off("passes", "explainfix_ext was not built for cuda:0")


@pytest.mark.cuda
def test_all_families_are_right_on_this_card() -> None:
    assert card_check.find_wrong("cuda:0", card_check._CHILD) == {}
