"""What a training loop calls: soft_prune and keep_zeros."""

from __future__ import annotations

import pytest
import torch
from support.nets import Net, Residual, images, made
from torch import nn

import explainfix_ext as efx


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


def test_spectral_penalty_is_the_mean_dct_coefficient_of_learned_filters() -> None:
    """Against scipy's DCT, filter by filter; fixed and frozen filters do not count."""
    fft = pytest.importorskip("scipy.fft")
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(4, 4, (1, 5), groups=4),
        nn.Conv2d(4, 4, 1),
        efx.FixedConv2d(4, 4, 3, seed=0),
        efx.FixedConv2d(4, 4, 3, seed=0, learn_coeff=True),
        nn.Conv2d(4, 4, 3).requires_grad_(False),
    ).double()
    learned = (model[0], model[1], model[4])
    expected = 0.0
    for layer in learned:
        filters = layer.weight.detach().flatten(0, 1).numpy()
        expected += float(abs(fft.dctn(filters, axes=(1, 2), norm="ortho")).mean())
    penalty = efx.spectral_penalty(model)
    assert float(penalty.detach()) == pytest.approx(expected, rel=1e-12)
    penalty.backward()
    assert all(bool(p.grad.any()) for p in (model[0].weight, model[1].weight, model[4].coeff))
    assert model[2].weight.grad is None
    with pytest.raises(ValueError, match="no spatial filters that are learned"):
        efx.spectral_penalty(model[3:4])


def test_spectral_penalty_makes_filters_that_compress() -> None:
    """Gradient descent on the penalty alone leaves each filter of fewer functions, and of less energy."""
    conv = nn.Conv2d(8, 8, 3)
    before = efx.spectral_penalty(conv).item()
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        efx.spectral_penalty(conv).backward()
        optimizer.step()
    assert efx.spectral_penalty(conv).item() < 0.9 * before
