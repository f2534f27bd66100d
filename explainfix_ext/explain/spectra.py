"""ExplainSteer: of which frequencies the spatial filters of each layer are made."""

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
_WIDE: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}


@dataclass(frozen=True, eq=False)
class Spectra:
    """Energies of spatial layers over the DCT-II functions of their kernels, as `explainsteer` finds them.
    `print(spectra)` shows a table; `spectra.plot()` draws.

    Attributes:
        ed: layer name -> (kh*kw,) float64, the energy of each function from the lowest to the highest frequency, in
            `frequency_order`. Without saliency: the mean |DCT coefficient| of the filters.
        e1: -> (kh + kw,): energy by frequency, first of the kh vertical ones, then of the kw horizontal ones.
        e0: -> (K,): energy by frequency, both directions added. Only of layers with K x K kernels.
        kernels: -> (kh, kw).
        filters: -> "learned"; "frozen", a weight without gradient; "fixed", a bank; "mixed", a fixed basis whose
            coefficients are learned.
        saliency: whether filters count by the size of the cost's gradient.
        compat: None, or "paper".
        skipped: name of a spatial layer that has no spectrum -> its class.

    Example:
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
        """Layer -> mean frequency of its energy: 0 for a constant, 1 for the highest, 0.5 for a flat spectrum, NaN for
        none. Function (u, v) has frequency (u + v) / (kh + kw - 2)."""
        return {n: float(ed @ _frequencies(self.kernels[n]) / ed.sum()) for n, ed in self.ed.items()}

    @property
    def low(self) -> dict[str, float]:
        """Layer -> share of its energy in the frequencies below 0.5."""
        return {n: float(ed[_frequencies(self.kernels[n]) < 0.5].sum() / ed.sum()) for n, ed in self.ed.items()}

    @property
    def flat(self) -> dict[str, float]:
        """Layer -> what `low` would be if all functions had the same energy: a third for 3x3 kernels."""
        return {n: float((_frequencies(self.kernels[n]) < 0.5).double().mean()) for n in self.ed}

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
        """What the energies are, in words."""
        if not self.saliency:
            return "mean |DCT coefficient|, without saliency"
        return "|DCT coefficient| x |gradient|, with saliency" + (" as in the paper" if self.compat else "")

    def plot(self, other: Spectra | None = None, *, names: tuple[str, str] = ("", "")) -> Figure:
        """`explain_plots.plot_spectra`: a heat map of layers x functions; with `other` beside it, titled by `names`."""
        from .plots import plot_spectra

        return plot_spectra(self, other, names=names)

    def to_json(self) -> str:
        """All of it as JSON text, numbers exact; `Spectra.from_json` reads it."""
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
        """The spectra that `to_json` wrote.

        Raises:
            ValueError: the text is something else, or of another version.

        Example:
            >>> spectra = explainsteer(nn.Conv2d(3, 8, 3))
            >>> torch.equal(Spectra.from_json(spectra.to_json()).ed[""], spectra.ed[""])
            True
        """
        try:
            found = json.loads(text)
        except json.JSONDecodeError:
            found = None
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise ValueError(f"text must be what Spectra.to_json() gives, got {text[:60]!r}")
        if found["version"] != _VERSION:
            raise ValueError(f"spectra must be of version {_VERSION}, got {found['version']}")
        layers = found["layers"]

        def tensors(key: str) -> dict[str, Tensor]:
            return {n: torch.tensor(e[key], **_WIDE) for n, e in layers.items() if e[key] is not None}

        kernels = {name: tuple(entry["kernel"]) for name, entry in layers.items()}
        filters = {name: entry["filters"] for name, entry in layers.items()}
        spectra = (tensors("ed"), tensors("e1"), tensors("e0"))
        return cls(*spectra, kernels, filters, found["saliency"], found["compat"], found["skipped"])

    def save(self, path: str | Path) -> None:
        """Write the JSON into the file `path`."""
        Path(path).write_text(self.to_json())


def _frequencies(kernel: tuple[int, int]) -> Tensor:
    """(u + v) / (kh + kw - 2) of each function, in frequency order."""
    order = frequency_order(kernel)
    return (order // kernel[1] + order % kernel[1]).double() / (sum(kernel) - 2)
