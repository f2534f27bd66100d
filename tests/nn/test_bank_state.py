"""How other programs load the filters of a network: by shape, onto the meta device, without load_state_dict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext import FilterBank, FixedConv2d

WAYS: dict[str, dict[str, Any]] = {
    "dct2": {"init": "dct2"},
    "unchanged": {"init": "unchanged"},
    "learned mix": {"init": "dct2", "learn_coeff": True},
    "hadamard": {"init": "hadamard"},
    "hadamard, learned mix": {"init": "hadamard", "learn_coeff": True},
}


def network(seed: int, init: str, **options: Any) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1))
    efx.convert(model, init, seed=seed, **options)
    return model


def fixed_layers(model: nn.Module) -> dict[str, FixedConv2d]:
    return {name: m for name, m in model.named_modules() if isinstance(m, FixedConv2d)}


def filters(model: nn.Module) -> Tensor:
    return torch.cat([layer.weight.detach().flatten() for layer in fixed_layers(model).values()])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("same", [lambda v: v.shape, lambda v: (v.numel(), v.dtype)], ids=["shape", "numel and dtype"])
def test_loading_what_has_the_models_shapes_loads_all_filters(way: str, same: Callable[[Tensor], Any]) -> None:
    for seed in range(8):  # digits of a fingerprint and of a seed are more or fewer
        old, new = network(seed, **WAYS[way]), network(99, **WAYS[way])
        own = new.state_dict()
        new.load_state_dict(own | {k: v for k, v in old.state_dict().items() if same(v) == same(own[k])})
        assert torch.equal(filters(new), filters(old))


def one_by_one(model: nn.Module, state: dict[str, Tensor], filters_first: bool) -> None:
    """As transformers' from_pretrained: Parameters are put into their place, filters given to their layer."""
    names = sorted(state, key=lambda name: name.endswith("_extra_state") != filters_first)
    for layer, _, kind in (name.rpartition(".") for name in names):
        module, value = model.get_submodule(layer), state[f"{layer}.{kind}"]
        if kind == "_extra_state":
            module.set_extra_state(value)
        else:
            setattr(module, kind, nn.Parameter(value.clone()))


LOADERS: dict[str, Callable[[nn.Module, dict[str, Tensor]], object]] = {
    "assign": lambda model, state: model.load_state_dict(state, assign=True),
    "to_empty": lambda model, state: model.to_empty(device="cpu").load_state_dict(state),
    "parameters, filters": lambda model, state: one_by_one(model, state, False),
    "filters, parameters": lambda model, state: one_by_one(model, state, True),
    "as 16-bit floats": lambda model, state: model.load_state_dict(
        {k: v.half() if k.endswith("_extra_state") else v for k, v in state.items()}, assign=True
    ),
}


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("way", WAYS)
def test_a_model_on_meta_takes_any_filters(way: str, load: str) -> None:
    x = torch.randn(1, 3, 8, 8)
    for seed in (0, 1):  # the recipe that the model has, and another
        source = network(seed, **WAYS[way])
        with torch.device("meta"):
            model = network(0, **WAYS[way])
        LOADERS[load](model, source.state_dict())
        assert torch.equal(model(x), source(x))
        assert torch.equal(model.double()(x.double()), source.double()(x.double()))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_model_on_meta_stays_there_for_a_state_without_numbers(way: str, assign: bool) -> None:
    with torch.device("meta"):
        model, other = network(0, **WAYS[way]), network(1, **WAYS[way])
    model.load_state_dict(other.state_dict(), assign=assign)
    assert model(torch.empty(1, 3, 8, 8, device="meta")).is_meta
    if way == "dct2":  # what tells how to make the filters is no number
        assert torch.equal(filters(model.to_empty(device="cpu")), filters(network(1, "dct2")))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_filters_that_do_not_fit_change_nothing(device: str) -> None:
    layer = FixedConv2d(4, 8, 3, seed=0, device=device, dtype=torch.float64)
    before = layer.bank
    with pytest.raises(RuntimeError, match=r"_extra_state: bank must be .* = \[8, 4, 3, 3\], got \[8, 4, 5, 5\]"):
        layer.load_state_dict(FixedConv2d(4, 8, 5, seed=0).state_dict(), assign=True)
    assert layer.bank is before
    assert layer.weight.dtype == torch.float64
    assert layer.weight.device.type == device


def test_a_small_file_cannot_ask_for_many_coefficients() -> None:
    """A basis of 9 kB would make coefficients of 0.5 MB here, and of any size in a wide layer."""
    many = FilterBank(torch.randn(128, 3, 3), coeff=torch.randn(8, 4, 128))
    saved = FixedConv2d(4, 8, 3, bank=many, learn_coeff=True).state_dict()
    layer = FixedConv2d(4, 8, 3, seed=0, learn_coeff=True)
    with pytest.raises(RuntimeError, match="_extra_state: basis must be of at most 9 functions, got 128"):
        layer.load_state_dict(saved)
    assert layer.coeff.shape == (8, 4, 9)
    FixedConv2d(4, 8, 3, bank=many, learn_coeff=True).load_state_dict(saved)


@pytest.mark.parametrize("saved", [True, False])
def test_a_checkpoint_with_a_learned_1x1_says_so_where_it_does_not_fit(saved: bool) -> None:
    made = [nn.Sequential(FixedConv2d(4, 8, 3, seed=0, pointwise=mixed)) for mixed in (saved, not saved)]
    message = "a learned 1x1 and this layer has none" if saved else "no learned 1x1 and this layer has one"
    kind = "Unexpected" if saved else "Missing"
    with pytest.raises(
        RuntimeError, match=rf'{kind} key.*"0.pointwise \(.* has {message}: .*pointwise={saved}\) before'
    ):
        made[1].load_state_dict(made[0].state_dict())
    found = made[1].load_state_dict(made[0].state_dict(), strict=False)
    assert (found.unexpected_keys if saved else found.missing_keys) == ["0.pointwise"]
