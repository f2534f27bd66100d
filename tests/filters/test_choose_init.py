""" "auto", the default: which initialisation a layer gets, and what its recipe, report and errors say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.zoo import convert_quietly
from torch import nn

import explainfix_ext as efx
from explainfix_ext.filters.choose_init import choose_init
from explainfix_ext.filters.registry import Layer

LAYERS: dict[tuple, str] = {  # (O, I, groups, density) -> the init
    (64, 64, 1, 1.0): "hadamard",
    (64, 8, 1, 1.0): "hadamard",
    (4, 16, 2, 1.0): "hadamard",
    (64, 64, 1, 0.5): "sdct4",
    (64, 3, 1, 1.0): "ghaar4_s1",
    (64, 3, 1, 0.5): "ghaar4_s1",
    (64, 64, 64, 1.0): "ghaar4_s1",
    (64, 64, 16, 1.0): "ghaar4_s1",
    (40000, 8, 1, 1.0): "ghaar4_s1",  # more channels than a transform takes
}


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_layer_gets_what_is_best_for_it(layer: tuple) -> None:
    o, i, groups, density = layer
    assert choose_init(Layer(o, i // groups, (3, 3), 0, groups), density) == LAYERS[layer]


@pytest.mark.parametrize(("kernel", "init"), [((5, 5), "ghaar4_s1"), ((1, 7), "ghaar4_s1"), ((7, 7), "ghaar9_s1")])
def test_large_stems_get_finer_filters(kernel: tuple[int, int], init: str) -> None:
    assert choose_init(Layer(64, 3, kernel, 0), 1.0) == init
    assert choose_init(Layer(64, 64, kernel, 0), 1.0) == "hadamard"
    assert choose_init(Layer(64, 1, kernel, 0, groups=64), 1.0) == "ghaar4_s1"  # depthwise


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer[0] < 100], ids=str)
def test_recipes_name_it_and_the_filters_are_its(layer: tuple) -> None:
    o, i, groups, density = layer
    shape: dict[str, Any] = {"groups": groups, "seed": 3, "density": density, "gain": "kaiming"}
    bank, named = (efx.make_bank(init, o, i, 3, **shape) for init in ("auto", LAYERS[layer]))
    assert bank.recipe == named.recipe
    assert torch.equal(bank.weight(), named.weight())


def test_the_report_names_it_and_checkpoints_need_no_auto() -> None:
    def network(init: Any = "auto", **options: Any) -> tuple[nn.Module, efx.ConversionReport]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3), nn.Conv2d(8, 8, 3, groups=8))
        return model, convert_quietly(model, init, seed=0, **options)

    model, report = network()
    names = ["ghaar4_s1", "hadamard", "ghaar4_s1"]
    assert [layer.init for layer in report.converted] == names
    assert "fixed: hadamard" in str(report)
    assert [layer.init for layer in efx.summary(model).layers] == names
    named, _ = network({str(i): name for i, name in enumerate(names)})
    named.load_state_dict(model.state_dict())
    assert named[1].bank.recipe == model[1].bank.recipe
    _, mixed = network({"1": "auto", "*": "psine"})
    assert [layer.init for layer in mixed.converted] == ["psine", "hadamard", "psine"]
    _, chosen = network(lambda name, conv: "auto")
    assert [layer.init for layer in chosen.converted] == names
    _, learned = network(learn_coeff=True)
    assert [layer.init for layer in learned.converted] == ["dct2"] * 3, "all functions, as their mix is learned"


def test_auto_is_the_default() -> None:
    assert efx.FixedConv2d(16, 16, 3).bank.recipe.init == "hadamard"
    assert efx.FixedConv2d(16, 16, 3, learn_coeff=True)._held.bank.rank == 9
    conv = efx.FixedConv2d.from_conv2d(nn.Conv2d(16, 16, 3), "auto")
    assert conv.bank.recipe.init == "hadamard"


def test_options_of_one_init_name_it() -> None:
    for option, said in (({"terms": 2}, "hadamard"), ({"weight": 0}, "unchanged, fill_zero"), ({"compat": 1}, "haar")):
        with pytest.raises(ValueError) as error:
            efx.make_bank("auto", 16, 16, 3, seed=0, **option)
        (name,) = option
        assert f'init "auto" takes no option {name!r}' in str(error.value)
        assert str(error.value).endswith(f"name one that does: {said}")
    with pytest.raises(
        ValueError, match=r"takes no option 'trems', only density, gain, shared_basis and version: no init does"
    ):
        efx.FixedConv2d(16, 16, 3, trems=2)
