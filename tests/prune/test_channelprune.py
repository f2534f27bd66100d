"""Which channels go, that nothing else changes, plans, bad input."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.bench_networks import randomise_norms
from support.compare import relative_error
from support.nets import HELD, PRUNABLE, Net, Residual, Untraceable, check_same_state, conv, images, state_of
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.prune.score.select import lowest
from explainfix_ext.prune.trace.graph import components

OPTIONS = {"criterion": "l1", "granularity": "channel", "bn_bias": "drop"}


def made(make: Callable[[], nn.Module], kind: str = "learned") -> nn.Module:
    torch.manual_seed(0)
    model = randomise_norms(make()).eval()
    if kind != "learned":
        options: dict[str, Any] = {"coefficients": {"learn_coeff": True}, "pointwise": {"pointwise": True}}.get(
            kind, {}
        )
        efx.convert(model, "ghaar4_s1" if kind == "low rank" else "dct2", seed=0, **options)
    return model


@pytest.mark.filterwarnings("ignore:.*little is left to learn")
@pytest.mark.parametrize("kind", ["learned", "dct2", "low rank", "coefficients", "pointwise"])
@pytest.mark.parametrize("name", PRUNABLE)
def test_channels_go_and_nothing_else_changes(name: str, kind: str) -> None:
    model = made(PRUNABLE[name], kind)
    before, cut = state_of(model), set()
    for amount in (0.3, 0.6, 0.9):
        for bn_bias in ("keep", "drop", "fold"):
            report = efx.channelprune(model, images(), amount=amount, **(OPTIONS | {"bn_bias": bn_bias}))
            assert report.verify_error is None or report.verify_error < 1e-5
            cut |= {layer for layer, entry in report.plan["layers"].items() if entry["outputs"] is not None}
    # What comes before the middle goes, too; but a learned 1x1 is no spatial layer, nor is what reads it here.
    assert cut & {"stem", "a"} or (kind == "pointwise" and name in ("transposed", "last"))
    check_same_state(model, before)


@pytest.mark.parametrize("name", HELD)
def test_what_mixes_channels_is_protected_and_named(name: str) -> None:
    make, reason = HELD[name]
    model = made(make)
    report = efx.channelprune(model, images(), amount=0.6, **OPTIONS)
    assert reason in report.protected["stem"]
    assert report.plan["layers"].get("stem", {}).get("outputs") is None
    assert report.plan["layers"]["tail"]["outputs"] is not None
    assert report.verify_error is not None


class Standardised(nn.Conv2d):
    """As timm's ScaledStdConv2d: another forward, so that a zero filter is not what it seems."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


@pytest.mark.parametrize("kind", ["own forward", "weight norm", "shared"])
def test_layers_with_weights_of_another_kind_stay_whole(kind: str) -> None:
    model = made(Residual)
    if kind == "own forward":
        model.a = Standardised(16, 16, 3, padding=1)
    elif kind == "weight norm":
        torch.nn.utils.parametrizations.weight_norm(model.a)
    else:
        model.b.weight = model.a.weight
    before = model.a.weight.detach().clone()
    report = efx.channelprune(model, images(), amount=0.5, criterion="l1", bn_bias="drop")
    reason = {
        "own forward": "overrides forward",
        "weight norm": "its weight is parametrized",
        "shared": "shares its weight",
    }
    assert reason[kind] in report.protected["stem"]
    assert isinstance(report.model, Residual)
    if kind != "shared":
        assert torch.equal(report.model.a.weight, before)
        assert report.pruned_filters == pytest.approx(0.5, abs=0.01)


def test_a_single_channel_stays_and_says_so() -> None:
    model = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 1), nn.Sigmoid(), conv(1, 8), nn.ReLU(), conv(8, 2, 1))
    report = efx.channelprune(model, images(), amount=0.8, **OPTIONS)
    assert report.protected["2"] == "it is a single channel"
    assert {"0", "4"} <= report.plan["layers"].keys()


def test_training_heads_are_cut_and_proved() -> None:
    class Aux(Net):
        def __init__(self) -> None:
            super().__init__()
            self.aux = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Any:
            if self.training:
                return super().forward(x), self.aux(self.stem(x).mean((2, 3)))
            return super().forward(x)

    report = efx.channelprune(made(Aux), images(), amount=0.6, ignore=["tail"], **OPTIONS)
    assert isinstance(report.model, Aux)
    assert report.model.aux.in_features == report.model.stem.out_channels < 16
    report.model.train()(images())


def independent(model: nn.Module, scores: dict[str, Tensor]) -> nn.Module:
    """The model with the filters of score 0 set to zero, by hand."""
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for name, score in scores.items():
            masked.get_submodule(name).weight[score == 0] = 0  # type: ignore[index,operator]
    return masked


def test_what_is_added_to_a_zero_channel_keeps_it_alive() -> None:
    """Also a single channel, which is spread over all: nothing here is a constant that "drop" may forget."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.z, self.t = nn.Conv2d(3, 8, 3, padding=1, bias=False), conv(3, 8), conv(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.t(torch.relu(self.a(x) + self.z(x).mean(1, keepdim=True)))

    model = made(Sum)
    scores = {"a": torch.ones(8, 3), "z": torch.ones(8, 3), "t": torch.ones(4, 8)}
    scores["a"][:4] = 0
    report = efx.channelprune(model, images(), amount=12 / 80, criterion=scores, bn_bias="drop")
    assert report.model is not None
    assert relative_error(report.model(images()), independent(model, scores)(images())) < 1e-5


@pytest.mark.parametrize("bn_bias", ["keep", "drop", "fold"])
def test_a_mask_that_is_zero_in_the_example_is_no_constant(bn_bias: str) -> None:
    class Masked(Net):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
            x = torch.relu(self.bn(self.stem(x))) * mask
            return self.head(torch.relu(self.tail(x)).mean((2, 3)))

    model = made(Masked)
    nn.init.constant_(model.bn.bias, 1)
    scores = {"stem": torch.ones(16, 3), "tail": torch.ones(8, 16)}
    scores["stem"][:5] = 0
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    example = (images(), mask)
    report = efx.channelprune(model, example, amount=15 / 176, criterion=scores, bn_bias=bn_bias)
    assert report.model is not None
    if bn_bias != "drop":
        expected = independent(model, scores)(images(), ~mask)
        assert relative_error(report.model(images(), ~mask), expected) < 1e-5


def test_outputs_of_any_kind_stay_and_are_compared() -> None:
    @dataclasses.dataclass
    class Out:
        logits: Tensor

    class Wrapped(Net):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind = kind

        def forward(self, x: Any) -> Any:
            x = self.tail(torch.relu(self.stem(x["image"] if self.kind == "dict" else x)))
            return {"dict": {"out": [x]}, "tuple": (x, None), "dataclass": Out(x)}[self.kind]

    for kind in ("dict", "tuple", "dataclass"):
        x: Any = {"image": images()} if kind == "dict" else images()
        report = efx.channelprune(made(lambda kind=kind: Wrapped(kind)), (x,), amount=0.5, **OPTIONS)
        assert report.verify_error is not None
        assert isinstance(report.model, Wrapped)
        assert report.model.tail.out_channels == 8
        assert report.model.stem.out_channels < 16

    class Nothing(Net):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x).shape

    with pytest.raises(ValueError, match="holds no tensor that could be compared"):
        efx.channelprune(made(Nothing), images(), amount=0.5, **OPTIONS)


def test_heads_with_dropout_are_compared_without_it() -> None:
    class Aux(Net):
        def __init__(self) -> None:
            super().__init__()
            self.aux = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Any:
            features = torch.dropout(self.stem(x), 0.0, self.training)
            features = nn.functional.dropout(features, 0.5, self.training)
            logits = self.head(torch.relu(self.tail(features)).mean((2, 3)))
            return (logits, self.aux(features.mean((2, 3)))) if self.training else logits

    report = efx.channelprune(made(Aux), images(), amount=0.5, **(OPTIONS | {"ignore": "tail"}))
    assert isinstance(report.model, Aux)
    assert report.model.aux.in_features < 16


def test_heads_of_both_modes_are_refused() -> None:
    class Two(Net):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.tail(self.stem(x))).mean((2, 3))
            return self.other(x) if self.training else self.head(x)

    with pytest.raises(ValueError, match="head runs in eval mode only, other in training only"):
        efx.channelprune(made(Two), images(), amount=0.5, **(OPTIONS | {"backend": "fx"}))


def test_models_that_do_not_run_in_float64_can_be_folded() -> None:
    class Single(Net):
        def middle(self, x: Tensor) -> Tensor:
            return x.float()

    assert efx.channelprune(made(Single), images(), amount=0.5, **(OPTIONS | {"bn_bias": "fold"})).plan["layers"]


def test_an_image_without_a_batch_is_named() -> None:
    with pytest.raises(ValueError, match="stem .Conv2d. reads it without a batch axis"):
        efx.channelprune(nn.Sequential(OrderedDict(stem=conv(3, 8), act=nn.ReLU())), images()[0], amount=0.5, **OPTIONS)


@pytest.mark.parametrize("granularity", ["filter", "channel"])
@pytest.mark.parametrize("structured", [True, False])
def test_the_amount_is_kept_among_equal_scores_and_zeros(granularity: str, structured: bool) -> None:
    wide = nn.Sequential(conv(3, 32), nn.ReLU(), conv(32, 32), nn.ReLU(), conv(32, 32), nn.ReLU(), conv(32, 4, 1))
    options: dict[str, Any] = {"granularity": granularity, "structured": structured}
    ones = {name: torch.ones(m.weight.shape[:2]) for name, m in wide.named_children() if isinstance(m, nn.Conv2d)}
    ones.pop("6")
    report = efx.channelprune(wide, images(), amount=0.1, criterion=ones, **options)
    if structured and granularity == "filter":  # of equal filters the first go: whole channels, which others read
        assert 0.1 <= report.pruned_filters < 0.35
    else:
        assert report.pruned_filters == pytest.approx(0.1, abs=0.03)
    if granularity == "filter":
        once = efx.channelprune(wide, images(), amount=0.5, criterion="random", structured=False)
        assert once.model is not None
        twice = efx.channelprune(once.model, images(), amount=0.6, criterion="random", structured=False, seed=1)
        assert twice.pruned_filters == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("granularity", ["filter", "channel"])
def test_filters_that_are_zero_already_count(granularity: str) -> None:
    model = made(Residual)
    efx.convert(model, "dct2", density=0.3, seed=0)
    options: dict[str, Any] = {"granularity": granularity, "structured": granularity == "channel"}
    with pytest.raises(ValueError, match="nothing to prune: 70.* of the filters are zero"):
        efx.channelprune(model, images(), amount=0.65, criterion="random", **options)


def test_ignored_layers_do_not_count_in_a_schedule() -> None:
    model = nn.Sequential(*(layer for _ in range(4) for layer in (conv(16, 16), nn.ReLU())), conv(16, 4, 1))
    x = torch.randn(2, 16, 8, 8)
    options: dict[str, Any] = OPTIONS | {"ignore": ["0", "2"], "amount": 0.6}
    shares = [efx.channelprune(model, x, schedule=steps, **options).pruned_filters for steps in (1, 2, 4)]
    assert max(shares) - min(shares) < 0.06


def test_channels_last_weights_stay_so_and_the_example_too() -> None:
    class Writes(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mul_(2))

    model = made(Writes).to(memory_format=torch.channels_last)
    x = images()
    report = efx.channelprune(model, x, amount=0.6, **OPTIONS)
    assert torch.equal(x, images())
    assert isinstance(report.model, Writes)
    assert report.model.tail.weight.is_contiguous(memory_format=torch.channels_last)


def test_on_device(device: str) -> None:
    model = made(Residual, "dct2").to(device)
    report = efx.channelprune(model, images().to(device), amount=0.6, **OPTIONS)
    assert report.model is not None
    assert {p.device.type for p in report.model.parameters()} == {device}
    assert report.model(images().to(device)).device.type == device


def test_pruned_learned_filters_stay_zero() -> None:
    model = made(Residual)
    report = efx.channelprune(model, images(), amount=0.5, criterion="l1")
    assert isinstance(report.model, Residual)
    efx.keep_zeros(report.model, report.plan)
    optimizer = torch.optim.AdamW(report.model.parameters(), lr=0.1)
    zero = ~report.model.a.weight.detach().flatten(2).any(2)
    report.model(images()).square().sum().backward()
    optimizer.step()
    assert bool(zero.any())
    assert torch.equal(~report.model.a.weight.detach().flatten(2).any(2), zero)
    with pytest.raises(ValueError, match="plan is of another model: .* must have filters"):
        efx.keep_zeros(made(Net), report.plan)


def test_a_residual_channel_goes_only_if_all_agree() -> None:
    model = made(Residual)
    scores = {name: torch.rand(m.weight.shape[:2]) + 1 for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    for name in ("a", "b", "stem"):
        scores[name][3] = 0
    share = 3 * 16 / sum(s.numel() for s in scores.values())
    all_three = efx.channelprune(model, images(), amount=share, criterion=scores, bn_bias="drop")
    assert 3 not in all_three.plan["layers"]["stem"]["outputs"]
    scores["a"][3] = 2
    two = efx.channelprune(model, images(), amount=share * 2 / 3, criterion=scores, bn_bias="drop")
    assert "stem" not in two.plan["layers"]
    paper = efx.channelprune(model, images(), amount=share * 2 / 3, criterion=scores, compat="paper")
    assert 3 not in paper.plan["layers"]["stem"]["outputs"]


def test_an_input_that_no_filter_reads_goes() -> None:
    """Exactly, with no word about BatchNorm: what is not read does not matter."""
    model = made(Net)
    scores = {"stem": torch.ones(16, 3), "tail": torch.ones(8, 16)}
    scores["tail"][:, [2, 5]] = 0
    report = efx.channelprune(model, images(), amount=16 / 176, criterion=scores)
    assert report.plan["layers"]["stem"]["outputs"] == [k for k in range(16) if k not in (2, 5)]
    assert report.plan["per_channel"]["bn"]["channels"] == 16
    expected = copy.deepcopy(model)
    with torch.no_grad():
        expected.tail.weight[:, [2, 5]] = 0
    assert report.model is not None
    assert relative_error(report.model(images()), expected(images())) < 1e-6


def test_constants_are_kept_dropped_or_folded() -> None:
    """A channel of zero filters behind BatchNorm is a constant, which a 1x1 layer can take into its bias."""

    class Bottleneck(Net):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Conv2d(16, 16, 1, bias=False)

        def middle(self, x: Tensor) -> Tensor:
            return self.mix(x)

    model = made(Bottleneck)
    nn.init.constant_(model.bn.bias, 3)  # ReLU leaves it
    masked = copy.deepcopy(model)
    options = {"criterion": "l1", "granularity": "channel", "ignore": ["tail"]}
    kept = efx.channelprune(model, images(), amount=0.5, bn_bias="keep", **options)
    dropped = efx.channelprune(model, images(), amount=0.5, bn_bias="drop", **options)
    folded = efx.channelprune(model, images(), amount=0.5, bn_bias="fold", **options)
    assert "stem" not in kept.plan["layers"]
    assert len(dropped.plan["layers"]["stem"]["outputs"]) == 8
    assert len(folded.plan["layers"]["stem"]["outputs"]) == 8
    assert isinstance(folded.model, Bottleneck)
    assert folded.model.mix.bias is not None
    with torch.no_grad():
        gone = [k for k in range(16) if k not in folded.plan["layers"]["stem"]["outputs"]]
        masked.stem.weight[gone] = 0
        masked.stem.bias[gone] = model.stem.bias[gone]
    assert relative_error(folded.model(images()), masked(images())) < 1e-5
    assert dropped.model is not None
    assert relative_error(dropped.model(images()), masked(images())) > 1e-3
    # The bias belongs to the plan: a fresh model gets it, too.
    fresh = efx.apply_plan(copy.deepcopy(model), json.loads(json.dumps(folded.plan)))
    assert torch.equal(fresh(images()), folded.model(images()))


def test_a_plan_makes_a_fresh_model_that_loads_the_state() -> None:
    report = efx.channelprune(made(Residual, "dct2"), images(), amount=0.6, **OPTIONS)
    assert report.model is not None
    for kind in ("dct2", "learned"):
        fresh = efx.apply_plan(made(Residual, kind), json.loads(json.dumps(report.plan)))
        if kind == "dct2":
            fresh.load_state_dict(report.model.state_dict())
            assert torch.equal(fresh(images()), report.model(images()))
        assert [m.in_channels for m in fresh.modules() if isinstance(m, nn.Conv2d)] == [
            m.in_channels for m in report.model.modules() if isinstance(m, nn.Conv2d)
        ]


def test_a_plan_of_another_model_is_refused_and_nothing_is_changed() -> None:
    plan = efx.channelprune(made(Residual), images(), amount=0.6, **OPTIONS).plan
    other = made(lambda: Net(width=16, tail=16))
    before = state_of(other)
    with pytest.raises(
        ValueError, match=r"plan is of another model: a must have weight \[16, 16, 3, 3\].*no such layer"
    ):
        efx.apply_plan(other, plan)
    wide = made(Residual)
    wide.b = nn.Conv2d(16, 16, 5, padding=2)
    with pytest.raises(ValueError, match=r"b must have weight \[16, 16, 3, 3\], got \[16, 16, 5, 5\]"):
        efx.apply_plan(wide, plan)
    with pytest.raises(ValueError, match="plan must be the plan of a PruneReport"):
        efx.apply_plan(other, {"layers": {}})
    with pytest.raises(ValueError, match="version 1, got 2"):
        efx.apply_plan(other, plan | {"version": 2})
    check_same_state(other, before)
    damaged = json.loads(json.dumps(plan))
    damaged["layers"]["a"]["outputs"][0] = 99
    model = made(Residual)
    before = state_of(model)
    with pytest.raises(ValueError, match=r"plan must keep outputs of a in \[0, 16\)"):
        efx.apply_plan(model, damaged)
    check_same_state(model, before)
    filters = efx.channelprune(made(Residual), images(), amount=0.5, criterion="l1", structured=False)
    with pytest.raises(ValueError, match="model must be pruned by the plan: "):
        efx.keep_zeros(made(Residual), filters.plan)


def test_unstructured_only_zeroes_filters() -> None:
    model = made(Residual, "dct2")
    report = efx.channelprune(model, images(), amount=0.75, criterion="l2", structured=False)
    assert report.verify_error is None
    assert report.plan["layers"] == {}
    assert report.pruned_filters == pytest.approx(0.75, abs=0.01)
    assert report.multiply_adds[1] < 0.5 * report.multiply_adds[0]
    assert report.model is not None
    # What cannot be traced can be zeroed.
    efx.channelprune(made(Untraceable), images(), amount=0.5, criterion="l1", structured=False)


def test_scope_layer_takes_the_same_share_of_each() -> None:
    report = efx.channelprune(made(Residual), images(), amount=0.5, criterion="random", scope="layer", structured=False)
    for name in ("stem", "a", "b", "tail"):
        assert report.after[name].nonzero == pytest.approx(report.before[name].filters / 2, abs=1)


def test_weighed_by_work_early_layers_lose_more() -> None:
    model = nn.Sequential(
        conv(3, 16), nn.ReLU(), conv(16, 16), nn.MaxPool2d(4), conv(16, 16), nn.ReLU(), conv(16, 4, 1)
    )
    options: dict[str, Any] = {"amount": 0.5, "criterion": "random", "structured": False}
    by_score, by_work = (efx.channelprune(model, images(), weigh=weigh, **options) for weigh in ("score", "work"))
    assert by_work.pruned_filters == pytest.approx(0.5, abs=0.01)
    assert by_work.after["2"].nonzero < by_score.after["2"].nonzero


def test_no_layer_loses_more_than_its_share() -> None:
    """Global scores would empty a layer of small weights."""
    model = made(Residual)
    with torch.no_grad():
        model.a.weight *= 1e-6
    report = efx.channelprune(model, images(), amount=0.5, criterion="l1", structured=False)
    assert report.after["a"].nonzero == 256 - 243  # 95 %
    few = efx.channelprune(model, images(), amount=0.99, criterion="l1", structured=False)
    assert min(few.after[name].nonzero for name in ("stem", "a", "b", "tail")) >= 1
    assert few.pruned_filters == pytest.approx(0.99, abs=2e-3)


def test_round_to_and_min_channels() -> None:
    options: dict[str, Any] = OPTIONS | {"amount": 0.9}
    report = efx.channelprune(made(Net), images(), round_to=4, **options)
    assert report.model is not None
    assert isinstance(report.model, Net)
    assert report.model.stem.out_channels % 4 == 0
    assert efx.channelprune(made(Net), images(), min_channels=5, **options).after["stem"].out_channels >= 5


def test_inplace_and_dry_run() -> None:
    model = made(Residual)
    before = state_of(model)
    looked = efx.channelprune(model, images(), amount=0.6, dry_run=True, **OPTIONS)
    assert looked.model is None
    check_same_state(model, before)
    other = efx.channelprune(model, images(), amount=0.6, **OPTIONS)
    same = efx.channelprune(model, images(), amount=0.6, inplace=True, **OPTIONS)
    assert same.model is model
    assert other.model is not None
    assert other.plan == same.plan == looked.plan
    assert torch.equal(model(images()), other.model(images()))
    with pytest.raises(ValueError, match="needs both models"):
        same.time(images())
    assert set(other.time(images(), rounds=1)) == {"inference", "training step"}


def test_modes_dtypes_and_frozen_parameters_stay() -> None:
    model = made(Residual).double()
    model.train()
    model.bn.eval()
    model.a.weight.requires_grad_(False)
    report = efx.channelprune(model, images().double(), amount=0.6, **OPTIONS)
    pruned = report.model
    assert isinstance(pruned, Residual)
    assert pruned.training
    assert not pruned.bn.training
    assert not pruned.a.weight.requires_grad
    assert pruned.b.weight.requires_grad
    assert pruned.b.weight.dtype == torch.float64
    assert isinstance(pruned.b.weight, nn.Parameter)
    assert {p.grad is None for p in pruned.parameters()} == {True}


def test_pruned_banks_stay_banks() -> None:
    model = made(Residual, "dct2")
    pruned = efx.channelprune(model, images(), amount=0.6, **OPTIONS).model
    assert isinstance(pruned, Residual)
    assert isinstance(pruned.b, efx.FixedConv2d)
    assert pruned.b.bank.index is not None
    assert pruned.b.bank.shape[0] < 16
    assert [name for name, _ in pruned.b.named_parameters()] == ["bias"]


def test_memory_savers_are_pruned_like_others() -> None:
    model = made(Residual, "dct2")
    plain = efx.channelprune(model, images(), amount=0.6, **OPTIONS)
    efx.save_memory(model, "recompute")
    saving = efx.channelprune(model, images(), amount=0.6, **OPTIONS)
    assert plain.plan == saving.plan
    assert saving.model is not None
    assert plain.model is not None
    for pruned in (plain.model, saving.model):
        pruned.train()
        pruned(images()).square().sum().backward()
    gradients = [torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (plain.model, saving.model)]  # type: ignore[union-attr]
    assert relative_error(gradients[1], gradients[0]) < 1e-4


@pytest.mark.parametrize("kind", ["learned", "dct2", "low rank"])
@pytest.mark.parametrize("fill", ["reset", "fill_zero"])
def test_fill_leaves_no_zero_filter(fill: str, kind: str) -> None:
    model = made(Residual, kind)
    report = efx.channelprune(model, images(), amount=0.6, criterion="random", fill=fill)
    assert report.plan["zeros"]
    layers = [m for m in report.model.modules() if isinstance(m, nn.Conv2d)]  # type: ignore[union-attr]
    assert all(bool(layer.weight.flatten(2).any(2).all()) for layer in layers)
    again = efx.channelprune(model, images(), amount=0.6, criterion="random", fill=fill)
    assert torch.equal(report.model(images()), again.model(images()))  # type: ignore[misc,union-attr]


@pytest.mark.parametrize("granularity", ["filter", "channel"])
def test_schedule_reaches_the_amount_and_composes_plans(granularity: str) -> None:
    model, seen = made(Residual, "dct2"), []

    def fine_tune(pruned: nn.Module, step: int) -> None:
        seen.append((step, sum(p.numel() for p in pruned.parameters())))
        with torch.no_grad():
            for p in pruned.parameters():
                p += 0.01

    options: dict[str, Any] = {"criterion": "random", "bn_bias": "drop", "granularity": granularity}
    report = efx.channelprune(model, images(), amount=0.8, schedule=[0.4, 0.6], fine_tune=fine_tune, **options)
    assert [step for step, _ in seen] == [0, 1]
    assert report.amount == 0.8
    assert 0.795 < report.pruned_filters < 0.9
    assert report.verify_error is None or report.verify_error < 1e-5
    fresh = efx.apply_plan(copy.deepcopy(model), report.plan)
    assert report.model is not None
    fresh.load_state_dict(report.model.state_dict())
    assert torch.equal(fresh(images()), report.model(images()))
    same = efx.channelprune(model, images(), amount=0.8, schedule=3, inplace=True, **options)
    assert same.model is model
    assert same.parameters[1] == sum(p.numel() for p in model.parameters()) + sum(
        m.bank.steering.numel() for m in model.modules() if isinstance(m, efx.FixedConv2d)
    )


def test_soft_pruning_lets_filters_come_back() -> None:
    model = made(Residual, "coefficients")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    assert efx.soft_prune(model, 0.5) == 8 * (3 + 16 + 16) + 4 * 16
    zero = (model.a.coeff == 0).all(-1).all(-1)
    assert int(zero.sum()) == 8
    model(images()).square().sum().backward()
    optimizer.step()
    assert bool((model.a.coeff[zero] != 0).any())
    with pytest.raises(ValueError, match="no spatial filters that are learned"):
        efx.soft_prune(made(Residual, "dct2"), 0.5)
    for arguments, message in (
        ({"amount": 1}, r"amount must be in \[0, 1\), got 1"),
        ({"amount": 0.5, "scope": "all"}, "scope must be one of"),
        ({"amount": 0.5, "granularity": "filters"}, "granularity must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            efx.soft_prune(model, **arguments)


def test_the_proof_refuses_and_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut that takes a channel too many."""
    import explainfix_ext.prune.backends as cuts

    right = cuts.keep_enough

    def wrong(channels: Any, groups: Tensor, gone: Tensor, *others: int) -> Tensor:
        gone = right(channels, groups, gone, *others)
        stem = next(layer for layer in channels.layers() if layer.name == "stem")
        alive = stem.outputs[~gone[stem.outputs]][0]
        return gone | (groups == groups[alive])

    monkeypatch.setattr(cuts, "keep_enough", wrong)
    model = made(Net)
    before = state_of(model)
    with pytest.raises(ValueError, match="differs from the masked one by .*they part at tail; nothing was changed"):
        efx.channelprune(model, images(), amount=0.5, inplace=True, **(OPTIONS | {"bn_bias": "keep"}))
    check_same_state(model, before)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "amount 1": ({"amount": 1.0}, r"amount must be in \[0, 1\), got 1.0"),
    "amount negative": ({"amount": -0.1}, r"amount must be in \[0, 1\), got -0.1"),
    "amount nan": ({"amount": float("nan")}, r"amount must be in \[0, 1\), got nan"),
    "criterion": ({"criterion": "l3"}, "criterion must be one of explainfix, taylor, l1.*got 'l3'"),
    "no data": ({"criterion": "explainfix"}, "criterion 'explainfix' needs data"),
    "empty data": ({"criterion": "explainfix", "data": []}, "data is empty"),
    "amount text": ({"amount": "0.5"}, r"amount must be in \[0, 1\), got '0.5'"),
    "any and fold": ({"agree": "any", "bn_bias": "fold"}, 'bn_bias must be "drop" or "keep" with agree="any"'),
    "one pass of data": ({"data": iter([]), "schedule": 2}, "data must be iterable more than once"),
    "ignore one": ({"ignore": "*"}, "ignore must leave a spatial convolution"),
    "scope": ({"scope": "all"}, "scope must be one of global, layer, got 'all'"),
    "granularity": ({"granularity": "pixel"}, "granularity must be one of filter, channel"),
    "bn_bias": ({"bn_bias": "lose"}, "bn_bias must be one of keep, drop, fold"),
    "weigh": ({"weigh": "time"}, "weigh must be one of score, work"),
    "fill": ({"fill": "ones"}, "fill must be one of none, reset, fill_zero"),
    "round_to": ({"round_to": 0}, "round_to must be an integer of at least 1, got 0"),
    "compat": ({"compat": "tf"}, 'compat must be None or "paper"'),
    "ignore": ({"ignore": ["*"]}, "ignore must leave a spatial convolution"),
    "scores missing": ({"criterion": {"stem": torch.ones(16, 3)}}, "a score for every spatial layer, tail is missing"),
    "scores shape": ({"criterion": lambda n, m: torch.ones(3)}, r"scores of stem must be \[O, I/groups\] = \[16, 3\]"),
    "scores nan": (
        {"criterion": lambda name, m: torch.full(m.weight.shape[:2], torch.nan)}, "saliency of stem is not finite"
    ),
    "scores zero": ({"criterion": lambda name, m: torch.zeros(m.weight.shape[:2])}, "saliency is zero everywhere"),
    "nothing": ({"amount": 0.0}, "nothing to prune: 0.0% of the filters are zero"),
    "schedule falls": ({"schedule": [0.6, 0.4]}, "schedule must rise to amount = 0.5"),
    "schedule none": ({"schedule": 0}, "schedule must be at least 1 step"),
    "dry schedule": ({"schedule": 2, "dry_run": True}, "dry_run looks one step ahead"),
    "image": ({"example_inputs": torch.zeros(2, 4, 8, 8)}, r"model does not run on example_inputs \[\[2, 4, 8, 8\]\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_nothing_changes(case: str) -> None:
    changes, message = BAD[case]
    model = made(Net)
    before = state_of(model)
    arguments: dict[str, Any] = {
        "example_inputs": images(),
        "amount": 0.5,
        "criterion": "l1",
        "inplace": True,
    } | changes
    with pytest.raises(ValueError, match=message):
        efx.channelprune(model, **arguments)
    check_same_state(model, before)


def test_bad_models() -> None:
    with pytest.raises(ValueError, match="no spatial convolution"):
        efx.channelprune(nn.Sequential(nn.Conv2d(3, 4, 1)), images(), amount=0.5, criterion="l1")
    with pytest.raises(ValueError, match="cannot be traced by torch.fx"):
        efx.channelprune(made(Untraceable), images(), amount=0.5, criterion="l1", backend="fx")
    zeros = made(Net)
    with torch.no_grad():
        for m in zeros.modules():
            if isinstance(m, nn.Conv2d):
                m.weight.zero_()
    with pytest.raises(ValueError, match="saliency is zero everywhere"):
        efx.channelprune(zeros, images(), amount=0.5, criterion="l1")
    broken = made(Net)
    with torch.no_grad():
        broken.tail.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="saliency of tail is not finite"):
        efx.channelprune(broken, images(), amount=0.5, criterion="l1")


def test_components_of_random_graphs() -> None:
    generator = torch.Generator().manual_seed(0)
    for n in (1, 7, 200):
        edges = torch.randint(0, n, (2, n), generator=generator)
        label = list(range(n))
        for _ in range(n):
            for a, b in edges.T.tolist():
                label[a] = label[b] = min(label[a], label[b])
        assert components(n, [edges]).tolist() == label


def test_lowest_of_equal_scores_takes_as_many_as_asked() -> None:
    scores = {"a": torch.zeros(10, 10), "b": torch.ones(10, 10)}
    chosen = lowest(scores, 0.25, "global", 0.95)
    assert int(chosen["a"].sum()) == 50
    assert int(chosen["b"].sum()) == 0
    chosen = lowest(scores, 0.75, "global", 0.95)
    assert (int(chosen["a"].sum()), int(chosen["b"].sum())) == (95, 55)
