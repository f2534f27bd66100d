"""torch.jit.trace of fixed layers: it passes torch's own check, and is saved and loaded."""

from __future__ import annotations

import io
import warnings
from typing import Any

import pytest
import torch
from support.compare import relative_error
from support.zoo import convert_quietly
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning", "ignore:.*deprecated:DeprecationWarning")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("options", [{}, {"init": "psine"}, {"pointwise": True}, {"learn_coeff": True}])
def test_traced_model_computes_and_differentiates_as_the_model(options: dict[str, Any], training: bool) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 8, 3, groups=2, padding="same"),
        nn.Conv2d(8, 4, (1, 4), padding="same", padding_mode="reflect"),
    ).train(training)
    convert_quietly(model, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, torch.randn(2, 3, 12, 12))
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    x = torch.randn(3, 3, 9, 11, requires_grad=True)
    y, loaded = model(x), torch.jit.load(file)(x)
    assert relative_error(loaded, y) < 1e-5
    assert relative_error(torch.autograd.grad(loaded.sum(), x)[0], torch.autograd.grad(y.sum(), x)[0]) < 1e-5
