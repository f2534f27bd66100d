"""Plans that anybody may have written: each is applied whole, or refused in one line with nothing changed."""

from __future__ import annotations

import base64
import copy
import io
import json
import tracemalloc
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.limited_memory import limited_memory
from support.nets import BY_CHANNEL, PRUNABLE, Net, check_same_state, images, made, state_of
from torch import nn

import explainfix_ext as efx
from explainfix_ext.prune.cut.plan import Plan, apply_plan

OLD_PLANS = Path(__file__).parents[1] / "data" / "plans_version_1.json"


def nested() -> Any:
    """Returns lists in lists, made anew: `changed` changes them in place."""
    value: Any = []
    for _ in range(5000):
        value = [value]
    return value


NESTED = nested()
BOMB = base64.b85encode(zlib.compress(bytes(40_000_000))).decode()


@cache
def cases() -> list[tuple[nn.Module, Plan]]:
    """Models with plans of theirs, which together have every kind of entry."""
    found = []
    for net, kind, amount, options in (
        ("residual", "dct2", 0.6, BY_CHANNEL), ("residual", "coefficients", 0.6, BY_CHANNEL),
        ("groups", "learned", 0.9, BY_CHANNEL), ("groups", "dct2", 0.9, BY_CHANNEL),
        ("transposed", "pointwise", 0.6, BY_CHANNEL),
        ("plain", "low rank", 0.6, {"criterion": "l1", "structured": False}),
    ):  # fmt: skip
        model = made(PRUNABLE[net], kind)
        found.append((model, efx.channelprune(model, images(), amount=amount, verify=False, **options).plan))
    for old in json.loads(OLD_PLANS.read_text())["cases"]:
        found.append((made(PRUNABLE[old["net"]], "low rank" if old["init"] else "learned"), old["plan"]))
    model = made(PRUNABLE["sizes"])
    found.append((model, efx.channelprune(model, images(), amount=0.6, scope="layer", **BY_CHANNEL).plan))
    return found


def case(number: int) -> tuple[Any, Plan]:
    model, plan = cases()[number]
    return copy.deepcopy(model), json.loads(json.dumps(plan))


def check_refused_or_applied(model: nn.Module, plan: Any) -> str:
    """Applies a plan; returns the message of the ValueError that it may raise, after which nothing may be changed."""
    before, classes, x = state_of(model), repr(model), images()
    output, parameters = model(x), dict(model.named_parameters())
    try:
        assert apply_plan(model, plan) is model
        return ""
    except ValueError as error:
        message = str(error)
    assert message
    assert len(message.splitlines()) == 1
    assert len(message) < 400
    check_same_state(model, before)
    assert repr(model) == classes
    assert {name: id(p) for name, p in model.named_parameters()} == {name: id(p) for name, p in parameters.items()}
    assert torch.equal(model(x), output)
    return message


def test_the_plans_have_every_kind_of_entry_and_a_saved_one_is_as_good() -> None:
    for part in ("layers", "per_channel", "tensors", "zeros"):
        assert any(plan[part] for _, plan in cases())
    assert any("bias" in cut for _, plan in cases() for cut in plan["layers"].values())
    for number in range(len(cases())):
        model, plan = case(number)
        buffer = io.BytesIO()
        torch.save(plan, buffer)
        buffer.seek(0)
        assert check_refused_or_applied(model, torch.load(buffer, weights_only=True)) == ""


RESIDUAL, GROUPS, TRANSPOSED, PLAIN, NORMS, SIZES = 0, 2, 4, 5, 6, -1
REFUSED = [
    (RESIDUAL, ("layers", "a", "outputs"), [], r"keep 1 to 16 outputs of a"),
    (RESIDUAL, ("layers", "a", "outputs"), [0, 1, 1], "each once and in order"),
    (RESIDUAL, ("layers", "a", "outputs"), [3, 2], "each once and in order"),
    (RESIDUAL, ("layers", "a", "outputs"), [-1, 2], r"in \[0, 16\)"),
    (RESIDUAL, ("layers", "a", "outputs"), [0, 16], r"in \[0, 16\)"),
    (RESIDUAL, ("layers", "a", "outputs"), [0, 10**40], r"in \[0, 16\)"),
    (RESIDUAL, ("layers", "a", "outputs"), [10**5000], r"in \[0, 16\)"),
    (RESIDUAL, ("layers", "a", "outputs"), [False, True], "a list of integers"),
    (RESIDUAL, ("layers", "a", "outputs"), [0.0, 1.0], "a list of integers"),
    (RESIDUAL, ("layers", "a", "outputs"), "0123", "a list of integers"),
    (RESIDUAL, ("layers", "a", "outputs"), NESTED, "a list of integers"),
    (RESIDUAL, ("layers", "a", "inputs"), torch.arange(4), "a list of integers"),
    (RESIDUAL, ("layers", "a", "shape"), [16.0, 16, 3, 3], "a must have weight"),
    (RESIDUAL, ("layers", "a", "shape"), NESTED, "a must have weight"),
    (RESIDUAL, ("layers", "a"), NESTED, "layers of plan: a must be a dict"),
    (RESIDUAL, ("layers", "a"), {"shape": [16, 16, 3, 3]}, "layers of plan: a must have inputs, outputs, shape"),
    (RESIDUAL, ("layers", "a", "new"), 1, "layers of plan: a must have inputs, outputs, shape, got .*new"),
    (RESIDUAL, ("layers", "\nb\n"), {"shape": [1], "inputs": None, "outputs": None}, r"'\\nb\\n' must have weight"),
    (RESIDUAL, ("layers", ""), {"shape": [1], "inputs": None, "outputs": None}, "it is a Residual"),
    (RESIDUAL, ("layers", "bn"), {"shape": [16], "inputs": None, "outputs": None}, "it is a BatchNorm2d"),
    (RESIDUAL, ("layers", 3), {"shape": [16], "inputs": None, "outputs": None}, "must have names, got 3"),
    (RESIDUAL, ("layers",), NESTED, "layers of plan must be a dict"),
    (RESIDUAL, ("version",), True, "version 1, got True"),
    (RESIDUAL, ("version",), torch.zeros(2), "version 1, got"),
    (RESIDUAL, ("format",), torch.zeros(2), "plan must be the plan of a PruneReport"),
    (RESIDUAL, ("new",), {}, "plan must have format, .*got"),
    (RESIDUAL, ("per_channel", "bn", "kept"), [1, 0], "channels of bn"),
    (RESIDUAL, ("per_channel", "bn", "channels"), 17, r"bn must have channels 17, got 16"),
    (RESIDUAL, ("per_channel", "a"), {"channels": 16, "kept": [0]}, "a must be a norm or PReLU, got FixedConv2d"),
    (GROUPS, ("layers", "c", "outputs"), [0, 1, 8], "as many channels in each of the 2 groups of c"),
    (GROUPS, ("layers", "a", "inputs"), None, "as many channels in each of the 16 groups of a"),
    (GROUPS + 1, ("layers", "c", "inputs"), [0, 17], "as many channels in each of the 2 groups of c"),
    (TRANSPOSED, ("layers", "grouped", "outputs"), [0, 9], "as many channels in each of the 2 groups of grouped"),
    (NORMS, ("per_channel", "group", "kept"), [1, 2], "whole groups of 2 channels of group"),
    (NORMS, ("tensors", "scale", "axis"), -1, r"an axis in \[0, 3\), got -1"),
    (NORMS, ("tensors", "scale", "axis"), 2**70, "an axis in"),
    (NORMS, ("tensors", "scale", "axis"), False, "an axis in"),
    (NORMS, ("tensors", "bn.weight"), {"channels": 16, "kept": [0], "axis": 0}, "must cut bn as a layer"),
    (RESIDUAL + 1, ("tensors", "a.coeff"), {"channels": 16, "kept": [0], "axis": 0}, "must cut a as a layer"),
    (NORMS, ("layers", "tail", "bias"), [float("nan")] * 5, "finite numbers to the bias of tail"),
    (NORMS, ("layers", "tail", "bias"), [0.0] * 99, "one number to each of the"),
    (NORMS, ("layers", "head", "bias"), [0.0, 1e39, 0.0, 0.0], r"finite numbers .*got 1e\+39"),
    (NORMS, ("layers", "head", "bias"), [0, 10**400, 0, 0], "finite numbers to the bias of head"),
    (NORMS, ("layers", "head", "bias"), "0000", "one number to each of the 4 biases of head"),
    (PLAIN, ("zeros", "tail", "shape"), [8, True], "tail must have filters"),
    (PLAIN, ("zeros", "tail", "bits"), "~~ ", "bits must be zlib in base85"),
    (PLAIN, ("zeros", "tail", "bits"), base64.b85encode(b"no zlib").decode(), "bits must be zlib in base85"),
    (PLAIN, ("zeros", "tail", "bits"), "\u00e9" * 5, "bits must be zlib in base85"),
    (PLAIN, ("zeros", "tail", "bits"), 5, "bits must be the text of 128 filters"),
    (PLAIN, ("zeros", "tail", "bits"), BOMB, "bits must be the text of 128 filters"),
    (PLAIN, ("zeros", "bn"), {"shape": [16], "bits": ""}, "bn has no filters to zero: it is a BatchNorm2d"),
    (SIZES, ("sizes", "sizes", "left"), [11, 1], r"sizes no larger than \[10, 6\], got \[11, 1\]"),
    (SIZES, ("sizes", "sizes", "left"), [-1, 1], "no larger than"),
    (SIZES, ("sizes", "sizes", "left"), [1], "no larger than"),
    (SIZES, ("sizes", "sizes", "left"), 5, "no larger than"),
    (SIZES, ("sizes", "sizes", "left"), [True, 1], "no larger than"),
    (SIZES, ("sizes", "sizes", "left"), NESTED, "no larger than"),
    (SIZES, ("sizes", "sizes", "whole"), [10, 7], r"sizes must be \[10, 7\], got \[10, 6\]"),
    (SIZES, ("sizes", "sizes", "whole"), torch.zeros(2), "plan is of another model: sizes must be"),
    (SIZES, ("sizes", "sizes", "whole"), NESTED, "plan is of another model: sizes must be"),
    (SIZES, ("sizes", "no.such"), {"whole": 3, "left": 2}, "no.such must be 3, got no such attribute"),
    (SIZES, ("sizes", "training"), {"whole": True, "left": False}, "training must be True"),
    (SIZES, ("sizes", "sizes"), {"whole": [10, 6]}, "sizes of plan: sizes must have left, whole"),
]  # fmt: skip


@pytest.mark.parametrize(("number", "path", "value", "message"), REFUSED, ids=[row[3] for row in REFUSED])
def test_a_wrong_entry_is_refused(number: int, path: tuple[Any, ...], value: Any, message: str) -> None:
    model, plan = case(number)
    entry = plan
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        raise ValueError(check_refused_or_applied(model, plan))


@pytest.mark.parametrize("plan", [None, "plan", [], NESTED, 10**5000, {1: NESTED}], ids=range(6))
def test_what_is_no_plan_is_refused(plan: Any) -> None:
    assert "plan must be the plan of a PruneReport" in check_refused_or_applied(case(RESIDUAL)[0], plan)
    with pytest.raises(TypeError, match="model must be an nn.Module, got 'model'"):
        apply_plan("model", case(RESIDUAL)[1])  # type: ignore[arg-type]


def test_bits_are_inflated_to_no_more_than_the_layer_has_filters() -> None:
    """The text is no longer than it may be for such a layer: only the stream can tell what is in it."""
    model = nn.Sequential(nn.Conv2d(1024, 1024, 3))
    plan = copy.deepcopy(case(PLAIN)[1]) | {"layers": {}, "per_channel": {}, "tensors": {}}
    plan["zeros"] = {"0": {"shape": [1024, 1024], "bits": BOMB}}
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="filters of 0 are zero: bits must be of 1048576 filters"):
            apply_plan(model, plan)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("change", [lambda b: b[:-4], lambda b: b + b"more", lambda b: zlib.compress(bytes(15))])
def test_bits_that_are_cut_short_or_go_on_are_refused(change: Any) -> None:
    model, plan = case(PLAIN)
    entry = plan["zeros"]["tail"]
    entry["bits"] = base64.b85encode(change(base64.b85decode(entry["bits"]))).decode()
    assert "bits must be of 128 filters, 16 bytes" in check_refused_or_applied(model, plan)


def test_a_plan_of_another_model_of_the_same_names_and_a_lazy_one_are_refused() -> None:
    _, plan = case(RESIDUAL)
    other = made(PRUNABLE["residual"])
    other.a = nn.ConvTranspose2d(16, 16, 3, padding=1)
    other.b = nn.Conv2d(16, 16, 3, padding=1, groups=2)
    assert "b must have weight [16, 16, 3, 3], got [16, 8, 3, 3]" in check_refused_or_applied(other, plan)
    lazy = made(Net)
    lazy.head = nn.LazyLinear(4)
    with pytest.raises(ValueError, match="model must have run once before it is pruned: head.weight is lazy"):
        apply_plan(lazy, plan)


def test_keep_zeros_checks_every_layer_before_it_hooks_one() -> None:
    model = made(PRUNABLE["residual"])
    report = efx.channelprune(model, images(), amount=0.5, criterion="l1", structured=False)
    assert report.model is not None
    report.model.get_submodule(list(report.plan["zeros"])[-1]).weight.data.fill_(1)
    with pytest.raises(ValueError, match="model must be pruned by the plan"):
        efx.keep_zeros(report.model, report.plan)
    assert not any(p._backward_hooks for p in report.model.parameters())
    for plan in (None, report.plan | {"layers": NESTED}, report.plan | {"zeros": {"stem": {}}}):
        with pytest.raises(ValueError, match=r"^.*plan.*must"):
            efx.keep_zeros(report.model, plan)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_any_change_of_a_plan_is_applied_or_refused(count: int) -> None:
    hypothesis = pytest.importorskip("hypothesis")
    outcomes = {"": 0}

    @hypothesis.settings(max_examples=count, derandomize=True, database=None, deadline=None)
    @hypothesis.given(hypothesis.strategies.data())
    def change_and_apply(data: Any) -> None:
        model, plan = case(data.draw(hypothesis.strategies.integers(0, len(cases()) - 1)))
        for _ in range(data.draw(hypothesis.strategies.integers(1, 3))):
            plan = changed(plan, data.draw, hypothesis.strategies)
        message = check_refused_or_applied(model, plan)
        outcomes[message] = outcomes.get(message, 0) + 1

    with limited_memory():  # a plan may not make this process ask for more
        change_and_apply()
    assert outcomes[""] > count / 100  # some changes are harmless
    assert len(outcomes) > count / 10


def changed(tree: Any, draw: Any, st: Any) -> Any:
    """Returns a plan with one change: a value at some depth is another, is gone, is there twice, or is new."""
    if not isinstance(tree, (dict, list)) or not tree or not draw(st.integers(0, 5)):
        return draw(hostile(st))
    key = draw(st.sampled_from(list(tree))) if isinstance(tree, dict) else draw(st.integers(0, len(tree) - 1))
    what = draw(st.sampled_from(["deeper"] * 5 + ["gone", "new", "swapped"]))
    other = draw(st.sampled_from(list(tree) if isinstance(tree, dict) else list(range(len(tree)))))
    if what == "gone":
        del tree[key]
    elif what == "swapped":
        tree[key], tree[other] = tree[other], tree[key]
    elif what == "new" and isinstance(tree, list):
        tree.append(draw(hostile(st)))
    elif what == "new":
        tree[draw(st.sampled_from(["", "a", "bn", "a.weight", "kept", "bias", 3, None]))] = draw(hostile(st))
    else:
        tree[key] = changed(tree[key], draw, st)
    return tree


def hostile(st: Any) -> Any:
    entries = [
        {"shape": [16, 16, 3, 3], "inputs": None, "outputs": [0, 1]}, {"channels": 16, "kept": [3], "axis": 0},
        {"channels": 16, "kept": [3]}, {"shape": [8, 16], "bits": BOMB}, nested(), BOMB, torch.zeros(3), {}, [], b"x",
    ]  # fmt: skip
    numbers = st.sampled_from([-1, 0, 1, 2, 7, 15, 16, 2**31, 2**63, 10**400, True, 0.5, 1.0, float("inf"), -1e300])
    values = st.one_of(numbers, st.none(), st.text(max_size=5), st.lists(st.integers(-2, 17), max_size=17))
    return st.one_of(values, st.sampled_from(entries).map(copy.copy), st.floats())
