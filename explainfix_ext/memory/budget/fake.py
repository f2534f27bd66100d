"""Counts a training step of a network without numbers, for plan.py.

FakeTensors have shapes, dtypes and layouts: a step of them takes no memory for its activations, and count.py counts its
bytes as it counts those of a real step.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from explainfix_ext.memory.count import Usage, count_step
from explainfix_ext.memory.report import mean_square
from explainfix_ext.nn.fixed_conv import FixedConv


def step_counter(model: nn.Module, shape: Sequence[int], amp: torch.dtype | None) -> Callable[[int], Usage]:
    """Makes all tensors of `model` FakeTensors, and returns the function that counts a step of a batch."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # a model may make tensors of numbers as it runs
    with mode:
        _make_fake(model)

    def count(batch: int) -> Usage:
        model.zero_grad(set_to_none=True)
        with mode, _quiet():
            images = torch.empty(batch, *shape)

            def loss(net: nn.Module) -> Tensor:
                with torch.autocast("cpu", amp, enabled=amp is not None):
                    return mean_square(net(images))

            return count_step(model, loss)

    return count


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch from logging a traceback of an operation that refuses a shape: the error itself says it."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _make_fake(model: nn.Module) -> None:
    """Replaces parameters, buffers and filters by FakeTensors on the CPU. Shared ones stay shared."""
    made: dict[Tensor, Tensor] = {}

    def fake(t: Tensor) -> Tensor:
        if t not in made:
            made[t] = torch.empty_like(t, device="cpu")
            if isinstance(t, nn.Parameter):
                made[t] = nn.Parameter(made[t], t.requires_grad)
        return made[t]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: fake(t) for name, t in tensors.items() if t is not None})  # type: ignore[misc]
        if isinstance(module, FixedConv):
            held = module._held
            held.plans = {
                dtype: plan if plan.packed is None else dataclasses.replace(plan, packed=fake(plan.packed))
                for dtype, plan in held.plans.items()
            }
            held.bank = held.bank.to("meta").to("cpu")  # under the mode both are fake, and nothing is copied
