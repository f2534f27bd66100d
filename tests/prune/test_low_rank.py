"""soft_low_rank, against plain singular values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.compare import relative_error
from support.nets import Groups, Net, Residual, images, made, state_of
from torch import Tensor, nn

import explainfix_ext as efx


def matrix(weight: Tensor, what: str) -> Tensor:
    return (weight.flatten(2).flatten(0, 1) if what == "filters" else weight.flatten(1)).detach().double().clone()


def test_golden_values() -> None:
    """diag(3, 4) at rank 1: 3 goes, and 4 becomes 5."""
    conv = nn.Conv2d(1, 2, (1, 2), bias=False).double()
    for what in ("filters", "channels"):
        conv.weight = nn.Parameter(torch.tensor([[3.0, 0.0], [0.0, 4.0]]).double().reshape(2, 1, 1, 2))
        assert efx.soft_low_rank(conv, rank=1, what=what) == {"": 1}
        want = torch.tensor([[0.0, 0.0], [0.0, 5.0]]).double().reshape(2, 1, 1, 2)
        assert torch.allclose(conv.weight, want, atol=1e-12)


@pytest.mark.parametrize("what", ["filters", "channels"])
@pytest.mark.parametrize("how", [{"rank": 3}, {"energy": 0.7}])
def test_the_rank_is_low_and_the_norm_kept(what: str, how: dict[str, Any]) -> None:
    model = made(Net).double()
    before = {name: matrix(model.get_submodule(name).weight, what) for name in ("stem", "tail")}
    ranks = efx.soft_low_rank(model, what=what, **how)
    for name, old in before.items():
        new, sigma = matrix(model.get_submodule(name).weight, what), torch.linalg.svdvals(old)
        assert int(torch.linalg.matrix_rank(new, rtol=1e-9)) == ranks[name] < len(sigma)
        assert relative_error(new.norm(), old.norm()) < 1e-12
        share = sigma.square().cumsum(0) / sigma.square().sum()
        assert ranks[name] == (3 if "rank" in how else int((share < 0.7).sum()) + 1)
        u, s, v = torch.linalg.svd(old, full_matrices=False)
        kept = slice(0, ranks[name])
        nearest = u[:, kept] * s[kept] @ v[kept]
        assert relative_error(new, nearest * old.norm() / nearest.norm()) < 1e-9


def test_learned_mixes_of_fixed_functions_come_to_a_low_rank_of_signals_too() -> None:
    for layer in (
        efx.FixedConv1d(4, 8, 9, seed=0, learn_coeff=True),
        efx.FixedConv2d(4, 8, 3, seed=0, learn_coeff=True),
    ):
        norm = layer.weight.double().norm()
        assert efx.soft_low_rank(layer, rank=3) == {"": 3}
        filters = layer.weight.double().flatten(2).flatten(0, 1)
        assert int(torch.linalg.matrix_rank(filters, rtol=1e-5)) == 3
        assert relative_error(filters.norm(), norm) < 1e-6


def test_all_energy_or_all_ranks_change_nothing() -> None:
    for how in ({"energy": 1}, {"rank": 1000}, {"rank": 9}):
        model = made(Net)
        before = state_of(model)
        assert efx.soft_low_rank(model, images(), **how) == {"stem": 9, "tail": 9}
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_ranks_that_were_found_are_kept() -> None:
    """The same energy again takes a share of what is left; ranks that it returned do not."""
    model = made(Net)
    ranks = efx.soft_low_rank(model, energy=0.6)
    assert efx.soft_low_rank(model, rank=ranks) == ranks
    again = efx.soft_low_rank(model, energy=0.6)
    assert all(again[name] < rank < 9 for name, rank in ranks.items())


class Swapped(Net):
    """A BatchNorm that is registered before its convolution's, and another that reads no convolution alone."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = nn.BatchNorm2d(16), nn.BatchNorm2d(16)
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        return self.early(self.b(torch.relu(self.late(self.a(x)))))


@pytest.mark.parametrize("what", ["filters", "channels"])
def test_rows_weigh_what_their_own_batchnorm_multiplies_them_with(what: str) -> None:
    """What the BatchNorm makes of the layer is what is nearest, whatever the order in which the modules stand."""
    model = made(Swapped).double()
    for norm in (model.bn, model.early, model.late):
        nn.init.uniform_(norm.weight, 0.1, 3)
        nn.init.uniform_(norm.running_var, 0.1, 3)
    old = {name: model.get_submodule(name).weight.detach().clone() for name in ("stem", "a", "b", "tail")}
    state = {key: value for key, value in state_of(model).items() if "weight" not in key}
    efx.soft_low_rank(model.train(), images().double(), rank=4, what=what)
    assert model.training
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    for name, norm in (("stem", model.bn), ("a", model.late), ("b", model.early), ("tail", None)):
        shape = (-1, 1, 1, 1)
        scale = torch.ones(8).double() if norm is None else norm.weight / (norm.running_var + norm.eps).sqrt()
        scaled = matrix(old[name] * scale.reshape(shape), what)
        u, s, v = torch.linalg.svd(scaled, full_matrices=False)
        want = u[:, :4] * s[:4] @ v[:4] * s.norm() / s[:4].norm()
        got = matrix(model.get_submodule(name).weight * scale.reshape(shape), what)
        assert relative_error(got, want) < (1e-9 if norm is None else 1e-2)  # a / (a^2 + 1e-5) is not quite 1 / a


def test_groups_are_matrices_of_their_own() -> None:
    model = made(Groups).double()
    ranks = efx.soft_low_rank(model, rank=2, what="channels")
    assert ranks["a"] == 1
    assert (ranks["b"], ranks["c"]) == (2, 2)
    for part in model.c.weight.detach().chunk(2):
        assert int(torch.linalg.matrix_rank(part.flatten(1), rtol=1e-9)) == 2


def test_learned_coefficients_and_what_follows() -> None:
    """Coefficients are projected; `unchanged` then keeps a learned layer's rank; fixed layers are refused."""
    model = made(Residual, "coefficients")
    efx.soft_low_rank(model, rank=3)
    assert int(torch.linalg.matrix_rank(model.a.coeff.detach().flatten(0, 1), rtol=1e-5)) == 3
    model = made(Net)
    efx.soft_low_rank(model, images(), rank=3)
    with pytest.warns(UserWarning, match="little is left to learn"):
        efx.convert(model, "unchanged", energy=0.9999)
    assert model.stem.bank.rank == model.tail.bank.rank == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "energy or rank must be given, and not both, got None and None"),
        ({"energy": 0.5, "rank": 2}, "energy or rank must be given, and not both"),
        ({"energy": 0}, r"energy must be in \(0, 1\], got 0"),
        ({"rank": 0}, "rank must be an integer of at least 1, got 0"),
        ({"rank": {"stem": 2}}, "rank must have a number for every learned layer, tail is missing"),
        ({"rank": {"stem": 2, "tail": "2"}}, "rank must be an integer of at least 1, got '2'"),
        ({"rank": 2, "what": "rows"}, "what must be filters or channels, got 'rows'"),
        ({"rank": 2, "ignore": "*"}, "no spatial filters that are learned"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    model = made(Net)
    with pytest.raises(ValueError, match=message):
        efx.soft_low_rank(model, **arguments)
    before = state_of(model)
    with torch.no_grad():
        model.tail.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="weights of tail must be finite"):
        efx.soft_low_rank(model, rank=2)
    assert torch.equal(model.stem.weight, before["stem.weight"])
