"""FixedConv2d.weight warns where it is changed in place, which changes no filter, and else is as any tensor."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explainfix_ext import FixedConv2d
from explainfix_ext.nn import composed_weight


def warnings_of(change: Callable[[], Any]) -> list[str]:
    """What a new process would warn of."""
    composed_weight._warn.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        change()
    return [str(w.message) for w in caught]


def set_items(weight: Tensor) -> None:
    weight[0] = 0


def set_data(weight: Tensor) -> None:
    weight.data = torch.zeros_like(weight)


def set_requires_grad(weight: Tensor) -> None:
    weight.requires_grad = True


def add_one(weight: Tensor) -> None:
    weight += 1


CHANGES = [
    *(set_items, set_data, set_requires_grad, add_one),
    *(nn.init.kaiming_normal_, nn.init.dirac_, nn.init.zeros_, nn.init.orthogonal_),
    *(lambda w: w.requires_grad_(), lambda w: w.mul_(2), lambda w: w.copy_(torch.zeros_like(w))),
    *(lambda w: w.data.normal_(), lambda w: w.data[:, 0].zero_(), lambda w: w[0].zero_()),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_place_warns_once_and_changes_no_filter(change: Callable[[Tensor], Any]) -> None:
    conv = FixedConv2d(4, 8, 3, seed=0)
    before = conv.weight.clone()
    message = warnings_of(lambda: (change(conv.weight), change(conv.weight)))
    assert len(message) == 1
    assert "assign conv.bank = FilterBank.from_weight(weight)" in message[0]
    assert torch.equal(conv.weight, before)


def test_apply_warns() -> None:
    def init(module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight)

    assert len(warnings_of(lambda: nn.Sequential(FixedConv2d(4, 8, 3), FixedConv2d(8, 8, 3)).apply(init))) == 1


READS: list[Callable[[FixedConv2d], Any]] = [
    lambda c: F.conv2d(torch.ones(1, 4, 5, 5), c.weight, c.bias),
    lambda c: np.asarray(c.weight.detach()) + c.weight.detach().numpy(),
    lambda c: (c.weight.shape, c.weight.data.norm().item(), repr(c.weight), torch.histc(c.weight)),
    lambda c: c.weight.requires_grad_(c.coeff is not None),
    lambda c: c.weight.clone().mul_(2),
    lambda c: c.weight.detach().requires_grad_(),
    lambda c: torch.zeros(8, 4, 3, 3).copy_(c.weight.detach()),
    lambda c: torch.vmap(torch.sum)(c.weight),
    lambda c: torch.func.grad(lambda w: (w**2).sum())(c.weight),
    lambda c: torch.compile(lambda w: w * 2, backend="eager", fullgraph=True)(c.weight),
    lambda c: torch.compile(lambda: c.weight * 2, backend="eager", fullgraph=True)(),
    lambda c: (copy.deepcopy(c), c.state_dict(), c.to_conv2d(True), torch.stack([c.weight, c.weight])),
]


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("learn_coeff", [False, True])
def test_reading_does_not_warn(read: Callable[[FixedConv2d], Any], learn_coeff: bool) -> None:
    conv = FixedConv2d(4, 8, 3, seed=0, learn_coeff=learn_coeff)
    assert warnings_of(lambda: read(conv)) == []


def test_what_is_made_of_it_is_plain() -> None:
    conv, file = FixedConv2d(4, 8, 3, seed=0), io.BytesIO()
    torch.save({"weight": conv.weight}, file)
    file.seek(0)
    for tensor in (
        *(
            conv.weight + 1,
            conv.weight.detach(),
            conv.weight.clone(),
            copy.deepcopy(conv.weight),
            copy.copy(conv.weight),
        ),
        *(pickle.loads(pickle.dumps(conv.weight)), torch.load(file, weights_only=True)["weight"]),
    ):
        assert type(tensor) is Tensor


def test_it_can_be_a_parameter_of_a_plain_layer() -> None:
    conv, plain = FixedConv2d(4, 8, 3, seed=0, bias=False), nn.Conv2d(4, 8, 3, bias=False)
    plain.weight = nn.Parameter(conv.weight)
    for layer in (plain, copy.deepcopy(plain), pickle.loads(pickle.dumps(plain))):
        assert [(n, p.requires_grad) for n, p in layer.named_parameters()] == [("weight", True)]
        assert torch.equal(layer.weight, conv.weight)
    assert warnings_of(lambda: torch.optim.SGD(plain.parameters()).zero_grad()) == []
    assert warnings_of(lambda: nn.init.zeros_(plain.weight)) == []
