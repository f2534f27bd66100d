"""This module chooses between steps that compute the same: by their time, on the sizes that the network is run on."""

from __future__ import annotations

import time
from typing import Any

from torch import nn

_ROUNDS = 4


class Choice(nn.Module):
    """Holds steps that compute the same. The first call times them in turns; `best` is the fastest from then on."""

    def __init__(self, steps: list[nn.Module]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.best = steps[0] if len(steps) == 1 else None

    def keep(self, kind: type[nn.Module]) -> None:
        """Leaves only the steps of a kind, of which there is one at least."""
        self.steps = nn.ModuleList(step for step in self.steps if isinstance(step, kind))
        self.best = self.steps[0] if len(self.steps) == 1 else None

    def forward(self, *inputs: Any, **options: Any) -> Any:
        if self.best is None:
            times = [[_seconds(step, inputs, options) for step in self.steps] for _ in range(_ROUNDS)]
            fastest = [min(rounds[1:]) for rounds in zip(*times, strict=True)]  # the first round warms up
            self.best = self.steps[fastest.index(min(fastest))]
        return self.best(*inputs, **options)


def _seconds(step: nn.Module, inputs: Any, options: Any) -> float:
    begin = time.perf_counter()
    step(*inputs, **options)
    return time.perf_counter() - begin
