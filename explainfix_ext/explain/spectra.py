"""Spectra holds what `explainsteer` measures, as tensors; it prints a table, draws pictures, and is saved as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from explainfix_ext._support.text import table_lines, times
from explainfix_ext.filters.basis import frequency_order

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMAT, _VERSION = "explainfix_ext spectra", 1


@dataclass(frozen=True, eq=False)
class Spectra:
    """Spectra hold the energies of spatial layers at the DCT-II functions of their kernels; `explainsteer` makes them.

    `print(spectra)` shows a table; `spectra.plot()` draws.

    Attributes:
        ed: name of a layer -> (kh*kw,) float64, the energy of each function from the lowest to the highest frequency,
            in `frequency_order`. Without saliency, it is the mean |DCT coefficient| of the filters.
        e1: name -> (kh + kw,): energy by frequency, first of the kh vertical ones, then of the kw horizontal ones.
        e0: name -> (K,): energy by frequency, both directions added; only layers with K x K kernels have it, and
            those of signals, which have one direction.
        kernels: name -> (kh, kw).
        filters: name -> "learned"; "frozen", a weight without gradient; "fixed", a bank; "mixed", a fixed basis whose
            coefficients are learned.
        saliency: whether each filter counts by the size of the cost's gradient.
        compat: None, or "paper".
        skipped: name of a spatial layer that has no spectrum -> its class.

    Examples:
        >>> spectra = explainsteer(FixedConv2d(64, 64, 3, init="ghaar4_s1", seed=0))
        >>> (spectra.ed[""] > 0).int().tolist()
        [1, 1, 1, 0, 0, 1, 0, 0, 0]
    """

    ed: dict[str, Tensor]
    e1: dict[str, Tensor]
    e0: dict[str, Tensor]
    kernels: dict[str, tuple[int, int]]
    filters: dict[str, str]
    saliency: bool = False
    compat: str | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def centre(self) -> dict[str, float]:
        """The mean frequency of each layer's energy: 0 for a constant, 1 for the highest, 0.5 for a flat spectrum.

        It is NaN without energy. Function (u, v) has frequency (u + v) / (kh + kw - 2).
        """
        return {n: float(ed @ frequencies(self.kernels[n]) / ed.sum()) for n, ed in self.ed.items()}

    @property
    def low(self) -> dict[str, float]:
        """The share of each layer's energy in the frequencies below 0.5."""
        return {n: float(ed[frequencies(self.kernels[n]) < 0.5].sum() / ed.sum()) for n, ed in self.ed.items()}

    @property
    def flat(self) -> dict[str, float]:
        """The value that `low` would have if all functions had the same energy: a third for 3x3 kernels."""
        return {n: float((frequencies(self.kernels[n]) < 0.5).double().mean()) for n in self.ed}

    def __str__(self) -> str:
        low, flat, centre = self.low, self.flat, self.centre
        rows = [("layer", "filters", "kernel", "energy", "in low frequencies", "centre")]
        for name, ed in self.ed.items():
            share = f"{low[name]:.1%} (flat: {flat[name]:.1%})"
            shares = (share, f"{centre[name]:.3f}") if bool(ed.any()) else ("-", "-")
            kernel = times(self.kernels[name])
            rows.append((name or "(model)", self.filters[name], kernel, f"{ed.sum():.4g}", *shares))
        lines = table_lines(rows)
        lines.append(f"energy: {self.what}; frequencies from 0 (constant) to 1, low: below 0.5, flat spectrum: 0.5")
        lines += [f"{n or '(model)'}: no e_0, the kernel is not square" for n in self.ed if n not in self.e0]
        lines += [f"{n or '(model)'}: skipped, {cls} has no spectrum" for n, cls in self.skipped.items()]
        return "\n".join(lines)

    @property
    def what(self) -> str:
        """A few words on what the energies are, for tables and pictures."""
        if not self.saliency:
            return "mean |DCT coefficient|, without saliency"
        return "|DCT coefficient| x |gradient|, with saliency" + (" as in the paper" if self.compat else "")

    def plot(self, other: Spectra | None = None, *, names: tuple[str, str] = ("", "")) -> Figure:
        """Draws a heat map of layers x functions, as `explain_plots.plot_spectra` does; this needs matplotlib.

        `other`, if given, is drawn beside it; `names` are the titles of the two sides.
        """
        from .plots import plot_spectra  # here, because matplotlib is optional

        return plot_spectra(self, other, names=names)

    def to_json(self) -> str:
        """Writes everything as JSON text, with exact numbers; `Spectra.from_json` reads it."""
        layers = {
            name: {
                "kernel": self.kernels[name],
                "filters": self.filters[name],
                "ed": self.ed[name].tolist(),
                "e1": self.e1[name].tolist(),
                "e0": self.e0[name].tolist() if name in self.e0 else None,
            }
            for name in self.ed
        }
        head = {"format": _FORMAT, "version": _VERSION, "saliency": self.saliency, "compat": self.compat}
        return json.dumps(head | {"layers": layers, "skipped": self.skipped})

    @classmethod
    def from_json(cls, text: str) -> Spectra:
        """Reads the spectra that `to_json` wrote.

        Raises:
            ValueError: the text is something else, or has another version.

        Examples:
            >>> spectra = explainsteer(nn.Conv2d(3, 8, 3))
            >>> torch.equal(Spectra.from_json(spectra.to_json()).ed[""], spectra.ed[""])
            True
        """
        try:
            found = json.loads(text)
        except (json.JSONDecodeError, RecursionError):
            found = None
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise ValueError(f"text must be what Spectra.to_json() gives, got {text[:60]!r}")
        if found["version"] != _VERSION:
            raise ValueError(f"spectra must be of version {_VERSION}, got {found['version']}")
        layers = found["layers"]

        def tensors(key: str) -> dict[str, Tensor]:
            wide: Any = {"dtype": torch.float64, "device": "cpu"}
            return {name: torch.tensor(entry[key], **wide) for name, entry in layers.items() if entry[key] is not None}

        kernels = {name: tuple(entry["kernel"]) for name, entry in layers.items()}
        filters = {name: entry["filters"] for name, entry in layers.items()}
        spectra = (tensors("ed"), tensors("e1"), tensors("e0"))
        return cls(*spectra, kernels, filters, found["saliency"], found["compat"], found["skipped"])

    def save(self, path: str | Path) -> None:
        """Writes the JSON into the file `path`."""
        Path(path).write_text(self.to_json())


def frequencies(kernel: tuple[int, int]) -> Tensor:
    """Returns (u + v) / (kh + kw - 2) of each function (u, v), in frequency order."""
    order = frequency_order(kernel)
    return (order // kernel[1] + order % kernel[1]).double() / (sum(kernel) - 2)
