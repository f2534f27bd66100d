"""Draws curves.png, the picture of training that `explainfix train` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from explainfix_ext._support.pictures import new_figure, save_figure


def plot_curves(results: dict[str, Any], path: Path) -> None:
    """Draws loss and metric against the epoch into an image file, one colour per network.

    Args:
        results: what `train_networks` returns.
        path: the file to write; a former one is replaced.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure = new_figure(10, 4)
    from matplotlib.ticker import MaxNLocator  # after new_figure, whose error says that matplotlib is needed

    metric = results["metric"]
    left, right = figure.subplots(1, 2)
    for i, run in enumerate(results["runs"]):
        history, colour = run["history"], f"C{i}"
        epochs = [record["epoch"] for record in history]
        left.plot(epochs, [record["train_loss"] for record in history], "--", color=colour, alpha=0.6)
        left.plot(epochs, [record["val_loss"] for record in history], "o-", color=colour, markersize=3)
        label = f"{run['network']} (test {run['test'][metric]:.3f})"
        right.plot(epochs, [r[f"val_{metric}"] for r in history], "o-", color=colour, markersize=3, label=label)
    left.set(xlabel="epoch", ylabel="loss", yscale="log", title="loss: dashed training, solid validation")
    right.set(xlabel="epoch", ylabel=metric, title=f"validation {metric}")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    model, data = results["runs"][0]["config"]["model"], results["data"]["name"]
    figure.suptitle(f"{model} on {data}")
    save_figure(figure, path)
