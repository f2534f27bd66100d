"""A shape, or a model's name, given for a tensor or a model is told in one line that names the argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import explainfix_ext as efx

FUNCTIONS: dict[str, Callable[[Any, Any], object]] = {
    "memory_report": efx.memory_report,
    "tune": efx.tune,
    "channelprune": lambda model, x: efx.channelprune(model, x, amount=0.5, criterion="l1"),
    "summary": efx.summary,
}
WITH_OTHER_ARGUMENTS = {
    "soft_prune": lambda model: efx.soft_prune(model, 0.5),
    "saliency": lambda model: efx.saliency(model, [(torch.zeros(1, 3, 8, 8), torch.tensor([0]))]),
    "stream": lambda model: efx.stream(model, 64),
    "memory_plan": lambda model: efx.memory_plan(model, (3, 8, 8)),
}


@pytest.mark.parametrize("name", WITH_OTHER_ARGUMENTS)
def test_a_name_is_no_model_for_functions_of_other_arguments(name: str) -> None:
    with pytest.raises(TypeError, match=r"^model must be an nn.Module, got 'resnet18'$"):
        WITH_OTHER_ARGUMENTS[name]("resnet18")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_name_is_no_model(name: str) -> None:
    with pytest.raises(TypeError, match=r"^model must be an nn.Module, got 'resnet18'$"):
        FUNCTIONS[name]("resnet18", torch.zeros(1, 3, 8, 8))
    for function in (efx.revert, efx.save_memory, efx.explainsteer, efx.fit_steering, efx.spectral_penalty):
        with pytest.raises(TypeError, match=r"^model must be an nn.Module, got 'resnet18'$"):
            function("resnet18")  # type: ignore[operator]


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "summary"])
@pytest.mark.parametrize("shape", [(1, 3, 8, 8), [1, 3, 8, 8], torch.Size([1, 3, 8, 8])])
def test_a_shape_is_no_input(name: str, shape: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    with pytest.raises(TypeError, match=r"must be a tensor, got .*; torch.zeros\(1, 3, 8, 8\) has that shape$"):
        FUNCTIONS[name](model, shape)


def test_a_tensor_is_no_size() -> None:
    with pytest.raises(TypeError, match=r"^input_size must be \(N, C, H, W\), .*, got a tensor: give its shape$"):
        efx.summary(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8))  # type: ignore[arg-type]
