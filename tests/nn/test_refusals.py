"""Tools of torch that want to store a weight get one sentence, and nothing has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval, parametrizations, prune

from explainfix_ext import FixedConv2d

TOOLS: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (lambda c: prune.l1_unstructured(c, "weight", 0.5), AttributeError, "stores no weight"),
    (lambda c: prune.ln_structured(c, "weight", 0.5, 2, 0), AttributeError, "stores no weight"),
    (lambda c: fuse_conv_bn_eval(c.eval(), nn.BatchNorm2d(8).eval()), AttributeError, r"revert\(model\) first"),
    (lambda c: parametrizations.weight_norm(c), ValueError, "does not have a parameter"),
    (lambda c: parametrizations.spectral_norm(c), ValueError, "does not have a parameter"),
    (lambda c: torch.jit.script(c), RuntimeError, "use torch.export, torch.jit.trace, or"),
    (lambda c: torch.jit.script(nn.Sequential(nn.ReLU(), c)), RuntimeError, "does not compile FixedConv2d"),
]


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning", "ignore:.*deprecated:DeprecationWarning")
@pytest.mark.parametrize(("use", "error", "sentence"), TOOLS)
def test_a_tool_that_wants_a_weight_is_refused(
    use: Callable[[Any], Any], error: type[Exception], sentence: str
) -> None:
    conv = FixedConv2d(4, 8, 3, seed=0)
    before = {name: len(value) for name, value in vars(conv).items() if isinstance(value, dict)}
    with pytest.raises(error, match=sentence) as caught:
        use(conv)
    assert "\n" not in str(caught.value)
    assert {name: len(value) for name, value in vars(conv).items() if isinstance(value, dict)} == before
