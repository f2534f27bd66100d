"""PruneReport: what was pruned, that nothing else changed, and what it saves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from explainfix_ext.explain.saliency import eval_mode, in_mode
from explainfix_ext.nn.fixed_conv2d import FixedConv2d
from explainfix_ext.prune.cut.layers import TRANSPOSED, is_spatial, nonzero_filters
from explainfix_ext.prune.cut.plan import Plan

COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, nn.Linear)


@dataclass(frozen=True)
class LayerCost:
    """What one layer has, stores and computes.

    Attributes:
        out_channels, in_channels: of the layer.
        filters, nonzero: how many it has, and how many of them are not zero.
        parameters: numbers that it stores, the steering of a fixed layer with them.
        multiply_adds: for one batch of the inputs that `channelprune` was given.
        pixels: for which each filter is computed: of the output, or the input of a transposed convolution.
        spatial: it is a Conv2d larger than 1x1, whose filters are pruned.

    An index bank counts an addition for each nonzero filter and pixel, a coefficient bank its rank, a plain layer
    all its weights: what the kernels do.
    """

    out_channels: int
    in_channels: int
    filters: int
    nonzero: int
    parameters: int
    multiply_adds: int
    pixels: int
    spatial: bool


@dataclass
class PruneReport:
    """What `channelprune` did. `print(report)` shows the table.

    Attributes:
        model: the pruned model; None after a dry run.
        plan: kept channels and zero filters, for `apply_plan`; JSON takes it.
        amount, criterion: as they were asked for; `pruned_filters` is what was reached.
        verify_error: largest relative difference to the masked model; None if it was not asked for, or nothing was cut.
        layers: names of those whose filters were scored.
        before, after: name -> LayerCost, of the layers that run.
        protected: name of a spatial layer -> why some of its channels cannot go.
        ties: names of layers whose channels go together.
        parameters: numbers stored before and after, steering of fixed layers with them.
        original: the model before, for `time`; None if it was pruned in place, or after a dry run.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> report = channelprune(model, torch.randn(1, 3, 8, 8), amount=0.5, criterion="l1", granularity="channel")
        >>> report.after["0"].out_channels, report.pruned_filters
        (4, 0.5)
    """

    model: nn.Module | None
    plan: Plan
    amount: float
    criterion: str
    verify_error: float | None = None
    layers: tuple[str, ...] = ()
    before: dict[str, LayerCost] = field(default_factory=dict)
    after: dict[str, LayerCost] = field(default_factory=dict)
    protected: dict[str, str] = field(default_factory=dict)
    ties: list[list[str]] = field(default_factory=list)
    parameters: tuple[int, int] = (0, 0)
    original: nn.Module | None = field(default=None, repr=False)

    @property
    def pruned_filters(self) -> float:
        """Share of the filters of `layers` that are zero or gone."""
        total, left = sum(self.before[n].filters for n in self.layers), sum(self.after[n].nonzero for n in self.layers)
        return 1 - left / total

    @property
    def multiply_adds(self) -> tuple[int, int]:
        """Of all layers together, before and after."""
        return tuple(sum(cost.multiply_adds for cost in side.values()) for side in (self.before, self.after))  # type: ignore[return-value]

    def __str__(self) -> str:
        head = ("layer", "channels", "nonzero filters", "parameters", "multiply-adds")
        rows = [head, *(_row(name, self.before[name], self.after[name]) for name in self.before)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += [f"{name}: some channels stay: {reason}" for name, reason in self.protected.items()]
        macs, stored = self.multiply_adds, self.parameters
        lines.append(
            f"{self.pruned_filters:.1%} of the spatial filters pruned; parameters {_ratio(*stored)}, "
            f"multiply-adds {_ratio(*macs)}"
        )
        if self.verify_error is not None:
            lines.append(f"proved: equals the masked model to {self.verify_error:.1e}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the model and the plan, as JSON takes it."""
        return {
            "amount": self.amount,
            "criterion": self.criterion,
            "verify_error": self.verify_error,
            "pruned_filters": self.pruned_filters,
            "parameters": self.parameters,
            "multiply_adds": self.multiply_adds,
            "layers": {n: {"before": vars(self.before[n]), "after": vars(self.after[n])} for n in self.before},
            "protected": self.protected,
            "ties": self.ties,
        }

    def save_plan(self, path: str | Path) -> None:
        """Write the plan as JSON into `path`; `apply_plan(model, json.load(open(path)))` follows it."""
        Path(path).write_text(json.dumps(self.plan))

    def time(self, example_inputs: Any, rounds: int = 10) -> dict[str, tuple[float, float]]:
        """Seconds (before, after) of inference and of a training step, medians of interleaved rounds.

        Args:
            example_inputs: a tensor or a tuple of tensors, on the models' device.
            rounds: times that each model has its turn.

        Raises:
            ValueError: the model was pruned in place, or not at all: there are no two to compare.
        """
        if self.original is None or self.model is None:
            raise ValueError("report.time needs both models: prune with inplace=False and without dry_run")
        from explainfix_ext._support.timing import interleaved

        inputs, seconds = as_tuple(example_inputs), {}
        for name, run in (("inference", _infer), ("training step", _train_step)):
            calls = {"before": partial(run, self.original, inputs), "after": partial(run, self.model, inputs)}
            timings = interleaved(calls, rounds)
            seconds[name] = (timings["before"].median, timings["after"].median)
        return seconds

    def plot(self, path: str | Path) -> None:
        """Draw the kept filters of every layer into the PNG `path`."""
        from .plots import plot_kept

        plot_kept(self, Path(path))


def as_tuple(example_inputs: Any) -> tuple[Any, ...]:
    return tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)


@torch.no_grad()
def layer_costs(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, LayerCost]:
    """LayerCost of every convolution and linear layer that runs, in the order in which they first do."""
    pixels: dict[str, int] = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def forward(module: Any, args: Any, y: Tensor) -> None:
            channels = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            # A transposed convolution uses its weights once for each pixel of its input.
            moved = args[0].numel() // module.in_channels if isinstance(module, TRANSPOSED) else y.numel() // channels
            pixels[name] = pixels.get(name, 0) + moved

        return forward

    layers = {name: m for name, m in model.named_modules() if isinstance(m, COUNTED)}
    handles = [m.register_forward_hook(hook(name)) for name, m in layers.items()]
    try:
        with eval_mode(model):
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _cost(layers[name], n) for name, n in pixels.items()}


def _cost(module: Any, pixels: int) -> LayerCost:
    nonzero = nonzero_filters(module)
    stored = sum(p.numel() for p in module.parameters(recurse=False))
    linear = isinstance(module, nn.Linear)
    if isinstance(module, FixedConv2d):
        bank = module.bank
        stored += 0 if module.coeff is not None else bank.steering.numel()
        work = int(nonzero.sum()) * (bank.rank if bank.index is None else 1)
        work += module.out_channels**2 if module.pointwise is not None else 0
    else:
        work = module.weight.numel()
    return LayerCost(
        out_channels=module.out_features if linear else module.out_channels,
        in_channels=module.in_features if linear else module.in_channels,
        filters=nonzero.numel(),
        nonzero=int(nonzero.sum()),
        parameters=stored,
        multiply_adds=work * pixels,
        pixels=pixels,
        spatial=is_spatial(module),
    )


def stored_numbers(model: nn.Module) -> int:
    """Parameters, and the steering of fixed layers."""
    fixed = [m.bank.steering.numel() for m in model.modules() if isinstance(m, FixedConv2d) and m.coeff is None]
    return sum(p.numel() for p in model.parameters()) + sum(fixed)


def _row(name: str, before: LayerCost, after: LayerCost) -> tuple[str, ...]:
    def pair(a: str, b: str) -> str:
        return a if a == b else f"{a} -> {b}"

    return (
        name,
        pair(*(f"{c.in_channels}x{c.out_channels}" for c in (before, after))),
        pair(*(f"{c.nonzero:,}" for c in (before, after))),
        pair(*(f"{c.parameters:,}" for c in (before, after))),
        pair(*(f"{c.multiply_adds / 1e6:.1f} M" for c in (before, after))),
    )


def _ratio(before: int, after: int) -> str:
    return f"{before:,} -> {after:,} ({after / max(before, 1):.2f})"


def _infer(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    with eval_mode(model), torch.no_grad():
        model(*inputs)


def _train_step(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Forward and backward in training mode; statistics are put back, and no gradient is left."""
    kept = {name: b.clone() for name, b in model.named_buffers()}
    learned = [p for p in model.parameters() if p.requires_grad]
    try:
        with in_mode(model, True):
            outputs = [leaf for leaf in tree_flatten(model(*inputs))[0] if isinstance(leaf, Tensor)]
            cost = torch.stack([t.float().square().mean() for t in outputs]).sum()
            torch.autograd.grad(cost, learned, allow_unused=True)
    finally:
        for name, b in model.named_buffers():
            b.copy_(kept[name])
