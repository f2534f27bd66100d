"""This module draws what pruning left: shares of filters and channels, and a map of the filters of each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from explainfix_ext._support.models import spatial_convolutions
from explainfix_ext._support.pictures import new_figure
from explainfix_ext.prune.cut.layers import filter_shape
from explainfix_ext.prune.cut.plan import Plan, zeros_of
from explainfix_ext.prune.cut.plan_check import check_pruning_plan

from .costs import LayerCost

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Costs = Mapping[str, LayerCost]


class Pruned(Protocol):
    """Lists what a picture needs from a PruneReport."""

    plan: Plan
    before: dict[str, LayerCost]


_INCHES_PER_LAYER = 0.2  # names do not touch, however many layers there are


def plot_shares(before: Costs, after: Costs, title: str) -> Figure:
    """Draws one row for each spatial layer, in network order; the picture is as high as there are layers.

    The left panel shows the share of the layer's filters that are not zero, the right one that of its output channels.

    Args:
        before, after: name -> LayerCost, before and after pruning.
        title: the picture's title.

    Raises:
        ValueError: matplotlib is not installed.
    """
    layers = [(name, cost, after[name]) for name, cost in before.items() if cost.spatial]
    figure = new_figure(11, 1.5 + _INCHES_PER_LAYER * len(layers))
    left, right = figure.subplots(1, 2, sharey=True)
    filters = [(was.filters, was.nonzero, now.nonzero) for _, was, now in layers]
    channels = [(was.out_channels, was.out_channels, now.out_channels) for _, was, now in layers]
    for axes, counts, what in ((left, filters, "filters"), (right, channels, "output channels")):
        places = range(len(counts))
        axes.barh(places, [100 * was / of for of, was, _ in counts], color="0.85", label="before")
        axes.barh(places, [100 * now / of for of, _, now in counts], color="C0", label="kept")
        for place, (of, _, now) in enumerate(counts):
            axes.text(101, place, f"{now:,} of {of:,}", fontsize=7, va="center")
        axes.set(xlim=(0, 132), xticks=range(0, 101, 20), xlabel=f"% of the {what}")
        axes.grid(axis="x", alpha=0.3)
    left.set_yticks(range(len(layers)), [name for name, _, _ in layers], fontsize=7)
    left.set(ylim=(len(layers) - 0.4, -0.6))  # the first layer at the top, no empty rows
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower right", ncols=2, fontsize=8)
    figure.suptitle(title)
    return figure


_STATES = {"kept": (0.0, 0.27, 0.6), "set to zero": (1.0, 0.75, 0.4), "removed with its channel": (0.92, 0.92, 0.92)}


def plot_kept(pruned: Pruned | Plan, model: nn.Module | None = None) -> Figure:
    """Draws a map of the filters of every spatial layer: kept, set to zero, or removed with a channel.

    A map has a row for each output channel and a column for each input channel. (`PruneReport.plot` draws the shares.)

    Args:
        pruned: what `channelprune` returns, or its plan.
        model: with a plan, the model before pruning.

    Returns:
        A matplotlib Figure.

    Raises:
        ValueError: a plan comes without a model, or is of another one; no layer is spatial.

    Examples:
        >>> model = torchvision.models.resnet18()
        >>> report = channelprune(model, torch.randn(1, 3, 64, 64), amount=0.5, criterion="l1", dry_run=True)
        >>> plot_kept(report).axes[0].get_title().splitlines()[0]
        'conv1'
    """
    plan = pruned if isinstance(pruned, dict) else pruned.plan
    if isinstance(pruned, dict) and model is None:
        raise ValueError("model must be given with a plan, the one before pruning, got None")
    shapes = _shapes_before(pruned, model)
    if not shapes:
        raise ValueError("model has no spatial convolution: there are no filters to draw")
    columns = min(6, len(shapes))
    rows = math.ceil(len(shapes) / columns)
    figure = new_figure(2 * columns, 2 * rows + 0.8)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    palette, zeros = torch.tensor(list(_STATES.values())), zeros_of(plan)
    for axes, (name, (outputs, inputs)) in zip(panels, shapes.items(), strict=False):
        states = _states(plan["layers"].get(name, {}), zeros.get(name), outputs, inputs)
        axes.imshow(palette[states].numpy(), aspect="auto", interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(f"{inputs:,} inputs", fontsize=8)
        axes.set_ylabel(f"{outputs:,} outputs", fontsize=8)
        axes.set_title(f"{name}\n{(states == 0).double().mean():.1%} kept", fontsize=8)
    for axes in panels[len(shapes) :]:
        axes.set_axis_off()
    from matplotlib.patches import Patch

    patches = [Patch(facecolor=colour, label=label) for label, colour in _STATES.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=3)
    figure.suptitle("Spatial filters after pruning")
    return figure


def _shapes_before(pruned: Pruned | Plan, model: nn.Module | None) -> dict[str, tuple[int, int]]:
    """Returns name -> (O, I/groups), the filters that each spatial layer had before pruning."""
    if not isinstance(pruned, dict):
        costs = {name: cost for name, cost in pruned.before.items() if cost.spatial}
        return {name: (cost.out_channels, cost.filters // cost.out_channels) for name, cost in costs.items()}
    assert model is not None
    check_pruning_plan(model, pruned)
    return {name: filter_shape(conv) for name, conv in spatial_convolutions(model).items()}


def _states(cut: dict[str, Any], zero: Tensor | None, outputs: int, inputs: int) -> Tensor:
    """Returns (O, I/groups), the number in _STATES of each filter that a layer had before pruning.

    Args:
        cut: the layer's entry in the plan; empty if it keeps all channels.
        zero: (O, I/groups) bool, the zero filters of the pruned layer; None if it has none.
        outputs, inputs: how many filters it had, (O, I/groups).
    """
    rows = range(outputs) if cut.get("outputs") is None else cut["outputs"]
    columns = (
        range(inputs) if cut.get("inputs") is None else sorted({k % inputs for k in cut["inputs"]})
    )  # the same in each group
    states = torch.full((outputs, inputs), 2)
    states[torch.tensor(rows)[:, None], torch.tensor(columns)] = 0 if zero is None else zero.long()
    return states
