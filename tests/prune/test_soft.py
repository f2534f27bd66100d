"""What a training loop calls: soft_prune and keep_zeros."""

from __future__ import annotations

import pytest
import torch
from support.nets import Net, Residual, images, made

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
