"""This module holds PruneReport, which says what `channelprune` did and what that saves."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from explainfix_ext._support.files import write_atomic
from explainfix_ext._support.models import eval_mode, in_mode
from explainfix_ext._support.text import table_lines
from explainfix_ext._support.timing import interleaved
from explainfix_ext.prune.cut.plan import Plan
from explainfix_ext.prune.trace.inputs import as_tuple

from .costs import LayerCost
from .plots import plot_shares

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class PruneReport:
    """Says what `channelprune` did, with the pruned model and its plan. `print(report)` shows a table.

    Attributes:
        model: the pruned model; None after a dry run.
        plan: kept channels and zero filters, for `apply_plan`; a dict that JSON can hold.
        amount: as it was asked for; `pruned_filters` is the share that was reached.
        criterion: as it was asked for.
        verify_error: largest difference to the masked model's output, as a share of its norm; None if `verify` was
            False, or if no channel was removed.
        layers: names of the layers whose filters were scored.
        before: name -> LayerCost, for every convolution and linear layer that runs.
        after: the same of the pruned model.
        protected: name of a layer -> why some of its channels must stay.
        ties: names of layers whose channels can only go together.
        parameters: numbers stored before and after pruning; those that choose the filters of fixed layers count.
        original: the model before pruning, for `time`; None if it was pruned in place, or after a dry run.
        bn_bias: as it was asked for.

    Examples:
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
    bn_bias: str = "keep"

    @property
    def pruned_filters(self) -> float:
        """Returns the share of the filters of `layers` that are zero or gone."""
        total, left = sum(self.before[n].filters for n in self.layers), sum(self.after[n].nonzero for n in self.layers)
        return 1 - left / total

    @property
    def multiply_adds(self) -> tuple[int, int]:
        """Returns the multiply-adds of all layers together, before and after pruning."""
        before, after = (sum(cost.multiply_adds for cost in side.values()) for side in (self.before, self.after))
        return before, after

    def __str__(self) -> str:
        head = ("layer", "channels", "nonzero filters", "parameters", "multiply-adds")
        rows = [head, *(_row(name, self.before[name], self.after[name]) for name in self.before)]
        lines = table_lines(rows)
        lines += [f"{name}: some channels stay: {reason}" for name, reason in self.protected.items()]
        if slower := [name for name, cost in self.before.items() if cost.hadamard and not self.after[name].hadamard]:
            lines.append(
                f"{', '.join(slower)}: filters of pairs of channels are zero, which a fast transform cannot leave out: "
                f'the layer has coefficients now (granularity="channel" keeps the transform)'
            )
        macs, stored = self.multiply_adds, self.parameters
        lines.append(
            f"{self.pruned_filters:.1%} of the spatial filters pruned; parameters {_ratio(*stored)}, "
            f"multiply-adds {_ratio(*macs)}"
        )
        if self.bn_bias == "keep" and self.pruned_filters and stored[0] == stored[1]:
            lines.append(
                'no channel went: those of zero filters are constants after BatchNorm, which bn_bias="keep" keeps; '
                'bn_bias="drop" forgets them, and the model is smaller'
            )
        if self.verify_error is not None:
            lines.append(f"verified: equals the masked model to {self.verify_error:.1e} of the output's norm")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Returns all but the model and the plan, as a dict that JSON can hold."""
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
        """Writes the plan as JSON into `path`, whole or not at all.

        `apply_plan(model, json.load(open(path)))` prunes by it.

        Raises:
            OSError: the file cannot be written. What stood there before is still there.
        """
        text = json.dumps(self.plan).encode()
        write_atomic(Path(path), lambda file: file.write(text))

    def time(self, example_inputs: Any, rounds: int = 10) -> dict[str, tuple[float, float]]:
        """Times inference and a training step of the model before and after pruning.

        Args:
            example_inputs: a tensor or a tuple of tensors, on the models' device.
            rounds: number of runs of each; the two models take turns.

        Returns:
            "inference" and "training step" -> median seconds (before, after).

        Raises:
            ValueError: the model was pruned in place, or in a dry run, so that there are no two to compare.
        """
        if self.original is None or self.model is None:
            raise ValueError("report.time needs both models: prune with inplace=False and without dry_run")
        inputs, seconds = as_tuple(example_inputs), {}
        for name, run in (("inference", infer), ("training step", train_step)):
            calls = {"before": partial(run, self.original, inputs), "after": partial(run, self.model, inputs)}
            timings = interleaved(calls, rounds)
            seconds[name] = (timings["before"].median, timings["after"].median)
        return seconds

    def plot(self, path: str | Path | BinaryIO | None = None) -> Figure:
        """Draws the shares of filters and channels that each layer keeps.

        Returns the matplotlib Figure, and writes it as a PNG into `path`, or an open file, if given.
        """
        title = f"{self.pruned_filters:.1%} of the spatial filters pruned by {self.criterion}"
        figure = plot_shares(self.before, self.after, title)
        if path is not None:
            figure.savefig(path, format="png")
        return figure


def layers_by_reason(protected: dict[str, str]) -> dict[str, list[str]]:
    """Groups the layers of `PruneReport.protected` by the reason why some of their channels stay."""
    layers: dict[str, list[str]] = {}
    for name, reason in protected.items():
        layers.setdefault(reason, []).append(name)
    return layers


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


def infer(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Runs the model in eval mode, without gradients."""
    with eval_mode(model), torch.no_grad():
        model(*inputs)


def train_step(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Runs the model forward and backward in training mode, and leaves statistics and gradients as they were."""
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
