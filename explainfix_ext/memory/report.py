"""`memory_report` shows what a training step keeps by layer, beside the same network with plain frozen convolutions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from explainfix_ext._support.models import check_has_tensors, check_is_module, on_a_copy
from explainfix_ext._support.text import table_lines
from explainfix_ext.nn.fixed_conv import FixedConv
from explainfix_ext.nn.swap import become

from .count import MIB, Usage, count_step
from .plots import plot_memory
from .save import save_memory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class MemoryReport:
    """Holds what `memory_report` found. `print(report)` shows tables; `report.plot("memory.png")` draws them.

    Attributes:
        ours: Usage of the model as it is.
        frozen: Usage of the same model with plain frozen convolutions, which keeps what torch keeps.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))
        >>> _ = convert(model, "dct2", seed=0, memory="exact")
        >>> report = memory_report(model, torch.randn(2, 3, 10, 10))
        >>> ours, frozen = report.by(lambda name, kind: kind)
        >>> frozen["ReLU"], ours["ReLU"] < frozen["ReLU"]  # torch keeps the 2 x 8 x 8 x 8 numbers of its output
        (4096, True)
    """

    ours: Usage
    frozen: Usage

    def __str__(self) -> str:
        head = ("kept (MiB)", "frozen torch (MiB)")
        kinds = [("kind of layer", *head), *self._rows(lambda name, kind: kind)]
        layers = [("layer", *head), *self._rows(lambda name, kind: name or "(model)")]
        totals = [
            ("kept for backward", _mib(self.ours.kept_bytes), _mib(self.frozen.kept_bytes)),
            ("peak of activations and gradients", _mib(self.ours.peak), _mib(self.frozen.peak)),
        ]
        ratio = self.ours.peak / max(self.frozen.peak, 1)
        return "\n\n".join(
            [_aligned(layers), _aligned(kinds), f"{_aligned(totals)}\npeak over frozen torch: {ratio:.2f}"]
        )

    def _rows(self, label: Callable[[str, str], str]) -> list[tuple[str, str, str]]:
        """Makes table rows of the sums by label, the largest of frozen torch's first."""
        ours, frozen = self.by(label)
        names = sorted({*ours, *frozen}, key=lambda name: (-frozen[name], -ours[name], name))
        return [(name, _mib(ours[name]), _mib(frozen[name])) for name in names]

    def by(self, label: Callable[[str, str], str]) -> tuple[Counter[str], Counter[str]]:
        """Sums the kept bytes, of ours and of frozen torch, over layers for which `label`(name, class) is equal."""
        sums: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        for total, usage in zip(sums, (self.ours, self.frozen), strict=True):
            for layer, size in usage.kept.items():
                total[label(*layer)] += size
        return sums

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draws what is alive over a step, and what is kept by kind of layer.

        Returns the matplotlib Figure, and writes it into `path`, if given, in the format that its ending says.

        Raises:
            ValueError: matplotlib is not installed.
        """
        figure = plot_memory(self.ours, self.frozen, self.by(lambda name, kind: kind))
        if path is not None:
            figure.savefig(path)
        return figure


def memory_report(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...],
    loss: Callable[[Any], Tensor] | None = None,
) -> MemoryReport:
    """Runs one training step of `model` and of its frozen original, each on a copy, and counts bytes.

    It counts the storages of activations and gradients, each once, and not those of parameters, buffers, fixed filters
    and inputs. What an operation allocates and frees inside itself is not seen. The frozen original has plain
    convolutions with the same filters, requires_grad=False, and keeps what torch keeps; so do layers that learn
    coefficients or a 1x1, which stay.

    Args:
        model: any module, in the mode (training or eval) in which it is to be counted.
        example_inputs: the input of its forward, or a tuple of several.
        loss: makes a scalar of the model's output; by default the mean square of its floating-point tensors.

    Returns:
        A MemoryReport, in bytes. The model, its gradients, the inputs and the random generators are untouched.

    Raises:
        TypeError: `model` is no nn.Module, or `example_inputs` hold no tensor.

    Examples:
        >>> model = torchvision.models.resnet18()
        >>> _ = convert(model, "dct2", seed=0), save_memory(model, "recompute")
        >>> report = memory_report(model, torch.randn(2, 3, 64, 64))
        >>> report.ours.kept_bytes < 0.3 * report.frozen.kept_bytes
        True

        The equivalent PyTorch, for what the forward pass keeps:

        >>> model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid()), torch.randn(2, 3, 10, 10)
        >>> kept = {}
        >>> def pack(t):
        ...     kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        ...     return t
        >>> own = {t.untyped_storage().data_ptr() for t in (x, *model.parameters())}
        >>> with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        ...     y = model(x)
        >>> sum(n for at, n in kept.items() if at not in own) == 4 * y.numel() == 4096
        True
        >>> memory_report(model, x, loss=torch.sum).ours.kept_bytes
        4096
    """
    check_is_module(model)
    check_has_tensors("example_inputs", example_inputs)
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    usages = []
    for plain in (False, True):
        with on_a_copy(model) as copied:
            if plain:
                if hasattr(vars(copied).get("forward"), "streams"):  # set by `stream`, whose room is above this one
                    del copied.forward
                save_memory(copied, "off")
                fixed = [module for module in copied.modules() if isinstance(module, FixedConv)]
                become({m: m._to_conv() for m in fixed if m.coeff is None and m.pointwise is None})
            copied.zero_grad(set_to_none=True)
            given = tree_map_only(Tensor, _copy_of_input, inputs)
            usages.append(count_step(copied, lambda net: (loss or mean_square)(net(*given))))  # noqa: B023
        del copied
    return MemoryReport(*usages)


def _copy_of_input(x: Tensor) -> Tensor:
    """Copies an input, which the model may overwrite, and whose gradient, and graph, are the user's."""
    return x.detach().requires_grad_(x.requires_grad).clone()


def mean_square(output: Any) -> Tensor:
    """Returns the mean square of an output's floating-point tensors, a loss for any model."""
    tensors = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]
    return torch.stack([t.float().square().mean() for t in tensors]).sum()


def _mib(size: int) -> str:
    return f"{size / MIB:.2f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(table_lines(rows, numbers=True))
