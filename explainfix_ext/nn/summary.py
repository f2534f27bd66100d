"""This module counts what each fixed layer stores and computes, beside a dense convolution: `summary`.

`multiply_adds` is the one rule for counting a layer's arithmetic; pruning uses it, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from explainfix_ext._support.models import check_is_module, eval_mode
from explainfix_ext._support.text import shown, table_lines, times

from .fixed_conv import FixedConv


@dataclass(frozen=True)
class LayerSummary:
    """Says what one fixed layer stores and computes.

    Attributes:
        name: the layer's name in `named_modules`.
        shape: (O, I/groups, kh, kw), the shape of the weight that it does not store.
        nonzero: number of its filters that are not zero; None on the meta device.
        init: name of the initialisation, or "learned coefficients" or "given filters".
        rank: number of basis functions.
        is_index: True if each filter is one basis function.
        kernel: name of the kernel that runs it.
        stored_bytes: bytes of the bank, and of what its kernel packed or keeps of it.
        dense_bytes: bytes of a dense weight in the layer's dtype.
        multiply_adds: those of this layer, with its learned 1x1, for one input of the size given to `summary`; None
            without a size, or on the meta device.
        dense_multiply_adds: those of a dense convolution in its place; None without a size.
    """

    name: str
    shape: tuple[int, int, int, int]
    nonzero: int | None
    init: str
    rank: int
    is_index: bool
    kernel: str
    stored_bytes: int
    dense_bytes: int
    multiply_adds: int | None
    dense_multiply_adds: int | None


@dataclass(frozen=True)
class Summary:
    """Says what a model's fixed layers store and compute, and how much it learns. `print(summary)` shows a table.

    Attributes:
        layers: a LayerSummary for each fixed layer, in the model's order.
        learned_parameters: number of parameters that require gradients.

    Examples:
        >>> summary(nn.Sequential(FixedConv2d(3, 8, 3, seed=0), nn.Conv2d(8, 4, 1))).learned_parameters  # 8 + 4 * 9
        44
    """

    layers: list[LayerSummary]
    learned_parameters: int

    def __str__(self) -> str:
        head = ("layer", "filters (nonzero)", "init", "kernel", "stored / dense", "multiply-adds / dense")
        rows = [head] + [_row(layer) for layer in self.layers]
        if all(layer.dense_multiply_adds is None for layer in self.layers):  # no size was given
            rows = [row[:-1] for row in rows]
        lines = table_lines(rows)
        stored = sum(layer.stored_bytes for layer in self.layers)
        dense = sum(layer.dense_bytes for layer in self.layers)
        lines.append(
            f"{len(self.layers)} fixed layers store {_bytes(stored)}; dense weights would take {_bytes(dense)}"
        )
        lines.append(f"{self.learned_parameters:,} learned parameters")
        mixed = [layer for layer in self.layers if not layer.is_index and layer.kernel != "hadamard"]
        if any(layer.rank == math.prod(layer.shape[2:]) for layer in mixed):
            lines.append("A bank of full rank saves activations, gradients and checkpoint bytes, but no arithmetic.")
        return "\n".join(lines)


def summary(model: nn.Module, input_size: Sequence[int] | None = None) -> Summary:
    """Returns what the fixed layers of a model store and compute.

    Args:
        model: any module; it is not changed.
        input_size: (N, C, H, W), or (N, C, L) for signals: runs the model once on zeros to count multiply-adds. They
            count the arithmetic that the filters ask for: one addition for each nonzero filter of an index bank, `rank`
            multiply-adds for each of a coefficient bank, `hadamard.operations` of a hadamard bank, and O * O for a
            learned 1x1 (`pointwise=True`), for every output pixel. The transform to the basis, which all outputs share,
            is not counted. A layer whose kernel is "dense" does the dense number instead.

    Returns:
        A Summary; its table shows multiply-adds only if a size was given.

    Raises:
        TypeError: `model` is no nn.Module, or `input_size` no sizes.

    Examples:
        >>> conv = FixedConv2d(3, 8, 3, seed=0, plan="dense")
        >>> layer = summary(nn.Sequential(conv), (1, 3, 32, 32)).layers[0]
        >>> layer.stored_bytes, layer.dense_bytes, layer.multiply_adds, layer.dense_multiply_adds
        (672, 864, 86400, 194400)
    """
    check_is_module(model)
    if isinstance(input_size, (Tensor, int)):
        got = "a tensor: give its shape" if isinstance(input_size, Tensor) else shown(input_size)
        raise TypeError(f"input_size must be (N, C, H, W), such as (1, 3, 224, 224), or (N, C, L), got {got}")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, FixedConv)}
    pixels = _output_pixels(model, layers, input_size) if input_size is not None else {}
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Summary([_summarise(name, conv, pixels.get(name)) for name, conv in layers.items()], learned)


def multiply_adds(layer: nn.Module, pixels: int) -> int:
    """Counts the multiply-adds of a convolution or linear layer that uses its weights at `pixels` pixels.

    A plain layer uses all its weights at each pixel; what a fixed one counts is said in `summary`, which calls this
    for its table, as pruning does for its report.
    """
    if not isinstance(layer, FixedConv):
        return cast(Tensor, layer.weight).numel() * pixels
    bank = layer.bank
    mixing = 0 if layer.pointwise is None else layer.pointwise.numel()
    if bank.hadamard is not None:
        return (bank.hadamard.operations + mixing) * pixels
    per_filter = bank.rank if bank.index is None else 1
    return (int(bank.nonzero.sum()) * per_filter + mixing) * pixels


def _summarise(name: str, conv: FixedConv, pixels: int | None) -> LayerSummary:
    bank = conv.bank
    filters, k2 = math.prod(bank.shape[:2]), math.prod(bank.shape[2:])
    nonzero = None if bank.device.type == "meta" else int(bank.nonzero.sum())
    stored = bank.basis.nbytes if conv.coeff is not None else bank.nbytes
    plan, kept = conv.kernel_plan, conv._held.weight
    init = "learned coefficients" if conv.coeff is not None else bank.recipe.init if bank.recipe else "given filters"
    return LayerSummary(
        name=name,
        shape=bank.shape,
        nonzero=nonzero,
        init=init,
        rank=bank.rank,
        is_index=bank.index is not None,
        kernel=plan.name if kept is None else "dense, weight kept",
        stored_bytes=stored + sum(t.nbytes for t in (plan.packed, kept) if t is not None),
        dense_bytes=filters * k2 * torch.empty(0, dtype=conv._held.dtype).element_size(),
        multiply_adds=None if pixels is None or nonzero is None else multiply_adds(conv, pixels),
        dense_multiply_adds=None if pixels is None else filters * k2 * pixels,
    )


def _output_pixels(model: nn.Module, layers: dict[str, FixedConv], input_size: Sequence[int]) -> dict[str, int]:
    """Runs the model in eval mode on zeros, and returns layer -> the number of its output pixels."""
    pixels = dict.fromkeys(layers, 0)

    def count(name: str) -> Callable[[Any, tuple, Tensor], None]:
        def hook(module: Any, args: tuple, y: Tensor) -> None:
            pixels[name] += y.numel() // module.out_channels

        return hook

    hooks = [conv.register_forward_hook(count(name)) for name, conv in layers.items()]
    like = next(iter(model.parameters()), torch.empty(0))
    try:
        with eval_mode(model), torch.no_grad():
            model(torch.zeros(*input_size, dtype=like.dtype, device=like.device))
    finally:
        for hook in hooks:
            hook.remove()
        for conv in layers.values():
            conv._held.weight = None  # kept in eval mode
    return pixels


def _row(layer: LayerSummary) -> tuple[str, ...]:
    size = times(layer.shape)
    arithmetic = "-"
    if layer.multiply_adds is not None and layer.dense_multiply_adds:
        arithmetic = f"{layer.multiply_adds / 1e6:.1f} M / {layer.dense_multiply_adds / 1e6:.1f} M"
    stored = f"{_bytes(layer.stored_bytes)} / {_bytes(layer.dense_bytes)}"
    return (
        layer.name,
        f"{size} ({'?' if layer.nonzero is None else layer.nonzero})",
        layer.init,
        layer.kernel,
        stored,
        arithmetic,
    )


def _bytes(n: int) -> str:
    return f"{n / 1e6:.2f} MB" if n >= 1e5 else f"{n / 1e3:.1f} kB"
