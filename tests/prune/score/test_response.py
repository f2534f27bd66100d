"""Criteria response and obs, against golden values and what a layer's output loses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.compare import relative_error
from support.explained import Geometry, batches, convolutions, make
from torch import Tensor, nn

import explainfix_ext as efx
from explainfix_ext.prune.score import response
from explainfix_ext.prune.score.criteria import Context, score

pytestmark = pytest.mark.filterwarnings("ignore:.*little is left to learn")


def scores(name: str, model: nn.Module, data: Any, layers: dict[str, nn.Conv2d] | None = None) -> dict[str, Tensor]:
    return score(name, Context(model.eval(), layers or convolutions(model), None, data))


def layer_and_patches() -> tuple[nn.Sequential, list[tuple[Tensor, Tensor]]]:
    """A layer of two inputs and weights 1 whose patches are of one pixel, in effect, with E[p p^T] = [[2, 1], [1, 2]].

    The kernel is 1x2, and its second tap sees zeros.
    """
    conv = nn.Conv2d(2, 1, (1, 2), stride=(1, 2), bias=False).double()
    nn.init.ones_(conv.weight)
    root = torch.linalg.cholesky(torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double()) * 2**0.5
    x = torch.zeros(2, 2, 1, 2).double()
    x[:, :, 0, 0] = root.T
    return nn.Sequential(conv), [(x, torch.zeros(2))]


def test_golden_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """H = [[2, 1], [1, 2]], w = (1, 1): each filter alone loses 2, and 1.5 after the other made up for it."""
    model, data = layer_and_patches()
    assert torch.allclose(scores("response", model, data)["0"], torch.tensor([[2.0, 2.0]]).double(), atol=1e-12)
    monkeypatch.setattr(response, "_DAMPING", 1e-12)
    assert torch.allclose(scores("obs", model, data)["0"], torch.tensor([[1.5, 1.5]]).double(), atol=1e-9)


def outputs(model: nn.Module, data: Any, name: str) -> Tensor:
    """What a layer of the model gives, (O, samples times pixels)."""
    found: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda m, a, y: found.append(y.clone()))
    with torch.no_grad():
        for x, _ in data:
            model(x)
    handle.remove()
    return torch.cat(found).transpose(0, 1).flatten(1)


@pytest.mark.parametrize("kind", ["learned", "fixed", "coefficients"])
def test_response_is_what_the_output_loses(kind: str) -> None:
    """Of every layer's first and last filters: the mean square by which the output changes without them."""
    model, data = make(kind, Geometry).eval(), batches(3, 2)
    found = scores("response", model, data)
    plain = efx.revert(model)
    for name, layer in convolutions(plain).items():
        whole = outputs(plain, data, name)
        for o, i in ((0, 0), (layer.out_channels - 1, layer.weight.shape[1] - 1)):
            kept = layer.weight.detach().clone()
            with torch.no_grad():
                layer.weight[o, i] = 0
            change = (outputs(plain, data, name) - whole)[o].square().mean()
            with torch.no_grad():
                layer.weight.copy_(kept)
            assert relative_error(found[name][o, i], change) < 1e-10


def patches_of(layer: Any, x: Tensor) -> Tensor:
    """(samples times pixels, I, K^2) of a layer without groups."""
    columns = torch.nn.functional.unfold(x, layer.kernel_size, padding=layer.padding)
    return columns.transpose(1, 2).reshape(-1, layer.in_channels, layer.weight[0, 0].numel())


def test_obs_is_what_is_left_after_the_others_made_up_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A least-squares fit of the output from all inputs but one, by torch.linalg.lstsq."""
    monkeypatch.setattr(response, "_DAMPING", 1e-12)
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3, padding=1, bias=False).double()
    data = batches(3, 2)
    found = scores("obs", nn.Sequential(layer), data)["0"]
    p = torch.cat([patches_of(layer, x) for x, _ in data])
    y = p.flatten(1) @ layer.weight.detach().flatten(1).T
    for i in range(3):
        others = p[:, [j for j in range(3) if j != i]].flatten(1)
        fit = others @ torch.linalg.lstsq(others, y, driver="gelsd").solution
        assert relative_error(found[:, i], (y - fit).square().mean(0)) < 1e-6


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_obs_of_groups(groups: int) -> None:
    """Each group is a layer of its own; a depthwise filter has no others, so obs is response."""
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 6, 3, groups=groups, bias=False).double()
    x = torch.randn(4, 6, 9, 9).double()
    found = scores("obs", nn.Sequential(layer), [(x, x)])["0"]
    for g, (part, weight) in enumerate(zip(x.chunk(groups, 1), layer.weight.chunk(groups), strict=True)):
        alone = nn.Conv2d(6 // groups, 6 // groups, 3, bias=False).double()
        alone.weight = nn.Parameter(weight.detach())
        want = scores("obs", nn.Sequential(alone), [(part, part)])["0"]
        assert relative_error(found.chunk(groups)[g], want) < 1e-10
    ones = scores("response", nn.Sequential(layer), [(x, x)])["0"]
    if groups == 6:
        assert relative_error(found, ones) < 0.05  # damping apart
    else:
        assert bool((found < ones * 1.05).all())


def test_data_tell_fixed_filters_apart() -> None:
    """All dct2 filters have norm 1, so weights alone rank nothing."""
    model, data = make("fixed", Geometry), batches(4)
    norms, found = scores("l2", model, data)["b"], scores("response", model, data)["b"]
    assert float(norms.max() - norms.min()) < 1e-6
    assert float(found.max() / found.min()) > 2


def test_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("learned", Geometry)
    check: Callable[..., Any] = pytest.raises
    for name in ("response", "obs"):
        with check(ValueError, match="data is empty"):
            scores(name, model, [])
        with check(ValueError, match=f"criterion '{name}' needs data"):
            scores(name, model, None)
    monkeypatch.setattr(response, "LARGEST", 20)
    with check(ValueError, match='criterion "obs" inverts matrices of at most 20 rows, and a has 27 inputs times taps'):
        scores("obs", model, batches(1))
    assert not any(m._forward_hooks for m in model.modules())
