"""The picture of a memory report."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from explainfix_ext._support.pictures import new_figure

from .count import Usage


def plot_memory(ours: Usage, frozen: Usage, kinds: tuple[Counter[str], Counter[str]], path: Path) -> None:
    """Draws, on the left, what is alive after each operation of a step; on the right, what each kind of layer keeps.

    Args:
        ours, frozen: of the model as it is, and of the same with plain frozen convolutions.
        kinds: bytes kept for the backward pass by kind of layer, of both.
        path: of the picture.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure = new_figure(11, 4)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for usage, name in ((frozen, "frozen torch"), (ours, "ours")):
        before, after = usage.timeline[: usage.forward], usage.timeline[usage.forward :]
        # Each pass is one unit wide, or the curves of different programs could not be compared.
        at = [i / max(len(before), 1) for i in range(len(before))]
        at += [1 + i / max(len(after), 1) for i in range(len(after))]
        label = f"{name}: peak {usage.peak / 2**20:.0f} MiB"
        left.fill_between(at, [size / 2**20 for size in usage.timeline], alpha=0.5, label=label)
    left.axvline(1, color="black", linewidth=0.8)
    left.set(xlabel="forward | backward", ylabel="MiB alive", xlim=(0, 2), ylim=(0, None))
    left.set_xticks([])
    left.legend()
    kept, torchs = kinds
    names = sorted({*kept, *torchs}, key=lambda kind: -torchs[kind] - kept[kind])[:12]
    places = range(len(names))
    right.barh([i - 0.2 for i in places], [torchs[kind] / 2**20 for kind in names], 0.4, label="frozen torch")
    right.barh([i + 0.2 for i in places], [kept[kind] / 2**20 for kind in names], 0.4, label="ours")
    right.set_yticks(places, names)
    right.invert_yaxis()
    right.set(xlabel="MiB kept for the backward pass")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path)
