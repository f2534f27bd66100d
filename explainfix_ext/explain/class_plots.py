"""This module draws what `class_purity` and `class_features` find; their `plot` methods call it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from explainfix_ext._support.pictures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROW = 0.26  # inches, the height of a layer's row


class Purities(Protocol):
    """Purities are the attributes of `ClassPurity` that a picture needs; its module imports this one."""

    @property
    def purity(self) -> dict[str, Tensor]: ...
    @property
    def chance(self) -> dict[str, float]: ...


class Accuracies(Protocol):
    """Accuracies are the attributes of `ClassFeatures` that a picture needs."""

    @property
    def accuracy(self) -> dict[int, float]: ...
    @property
    def chance(self) -> dict[int, float]: ...


def plot_class_purity(found: Purities, width: float = 7.0) -> Figure:
    """Draws each channel as a tick at its purity, a row for each layer; grey reaches to the best that chance gives."""
    names = list(found.purity)
    figure = new_figure(width, 1 + _ROW * len(names))
    axes = figure.subplots()
    rows = range(len(names))
    axes.barh(
        rows, [found.chance[name] for name in names], height=0.8, color="0.6", alpha=0.6, label="by chance, at most"
    )
    for row, name in zip(rows, names, strict=True):
        purity = found.purity[name].tolist()
        label = "a channel" if row == 0 else None
        axes.plot(purity, [row] * len(purity), "|", color="tab:blue", markersize=9, alpha=0.7, label=label)
    axes.set(yticks=[*rows], ylim=(len(names) - 0.4, -0.6), xlim=(0, 1), xlabel="purity")
    axes.set_yticklabels(names, fontsize=7)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=7, frameon=False)
    return figure


def plot_class_features(found: Accuracies, width: float = 5.0) -> Figure:
    """Draws the accuracy over the number of inputs that each class keeps, and that of random inputs."""
    figure = new_figure(width, 2.8)
    axes = figure.subplots()
    counts: Sequence[int] = list(found.accuracy)
    axes.plot(counts, list(found.accuracy.values()), "o-", markersize=4, label="those that contribute most")
    axes.plot(counts, list(found.chance.values()), "o-", markersize=4, color="0.6", label="random ones")
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, labels=[f"{n}" for n in counts], fontsize=7)
    axes.minorticks_off()
    axes.set(xlabel="inputs kept for each class", ylabel="accuracy", ylim=(0, 1.02))
    axes.legend(loc="lower right", fontsize=7, frameon=False)
    return figure
