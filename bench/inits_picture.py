"""Draws bench/results/inits.png: 16 filters of each initialisation. Run: python bench/inits_picture.py"""

from pathlib import Path

import matplotlib
import torch

import explainfix_ext as efx

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).parent / "results" / "inits.png"


def filters(init: str, size: int) -> torch.Tensor:
    """(16, size, size), each scaled to [-1, 1]."""
    options = {}
    if init in ("unchanged", "fill_zero"):
        torch.manual_seed(0)
        options["weight"] = torch.randn(4, 4, size, size)
        options["weight"][1:3, 1:3] = 0
    w = efx.make_bank(init, 4, 4, size, seed=1, **options).weight().flatten(0, 1)
    return w / w.abs().amax((1, 2), keepdim=True).clamp(min=1e-9)


def main() -> None:
    others = ("guided_steer", "svd_steer", "sinc", "minirocket")  # like other filters, or of signals
    names = [name for name in efx.initializers() if name not in others]
    figure, axes = plt.subplots(len(names), 33, figsize=(16, 0.56 * len(names)))
    for row, name in zip(axes, names, strict=True):
        for cell in row:
            cell.axis("off")
        for start, size in ((0, 3), (17, 7)):
            for cell, image in zip(row[start : start + 16], filters(name, size), strict=True):
                cell.imshow(image, cmap="RdBu", vmin=-1, vmax=1, interpolation="nearest")
        row[0].text(-0.6, 0.5, name, ha="right", va="center", transform=row[0].transAxes, fontsize=11)
    figure.suptitle("16 filters of each initialisation, 3x3 (left) and 7x7 (right); red < 0 < blue")
    figure.subplots_adjust(left=0.12, right=0.995, top=0.95, bottom=0.01, wspace=0.1, hspace=0.15)
    figure.savefig(OUT, dpi=70)
    print(OUT)


if __name__ == "__main__":
    main()
