"""ExplainSteer: of which frequencies the spatial filters of each layer are made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext._support.models import spatial_convolutions
from explainfix_ext._support.progress import with_progress
from explainfix_ext.filters.basis import dct_basis, frequency_order
from explainfix_ext.nn.fixed_conv2d import FixedConv2d

from .saliency import Cost, check_compat, check_scores, first_batches, sum_over_samples
from .spectra import _WIDE, Spectra

_NOISE = 1e-12  # of a function's norm: what is left of a coefficient that is zero but for rounding


def explainsteer(
    model: nn.Module,
    data: Iterable[tuple[Tensor, Tensor]] | None = None,
    cost: Cost | None = None,
    *,
    num_batches: int | None = None,
    compat: str | None = None,
    progress: bool = False,
) -> Spectra:
    """Energy of every spatial layer over the DCT-II functions B_l of its kernel: e_d[l] = sum_oi w_oi |<W[o, i], B_l>|.

    Without data, w = 1 / (O I/groups): how the filters are made. With data, w is the mean over samples of
    sum_hw |dc/dW[o, i]|: on which of them the cost depends. e_1 sums e_d^(1/2) over the functions of each vertical and
    of each horizontal frequency, and e_0 adds the two.

    Filters of a bank are not composed: its basis is projected once, and index banks are counted. The gradient with
    data is `saliency`'s: in eval mode, one layer's weight at a time, and the model is afterwards as before.

    Args:
        model: learned, frozen, fixed or any mix; its Conv2d layers larger than 1x1 are explained.
        data: batches (x, y), such as a DataLoader, taken one by one.
        cost: (model output, y) -> a scalar, summed over the samples. Default: the true class's logit, for integer
            y (N,) and logits (N, classes); else sum(output * y).
        num_batches: use the first so many.
        compat: "paper" takes the absolute value of each batch's gradient, its own roots for e_1 and e_0, and sums all
            over batches, as the authors' code does: it depends on the batch size.
        progress: show a bar over the batches on stderr (needs rich).

    Returns:
        Spectra, float64 on the CPU, layers in the model's order.

    Raises:
        ValueError: no spatial layer; cost or num_batches without data; no data; a weight or gradient that is not
            finite; a saliency that is zero everywhere.
        ImportError: progress without rich.

    Example:
        >>> model = torchvision.models.resnet18()
        >>> _ = convert(model, "dct2", seed=0)
        >>> explainsteer(model).filters["layer1.0.conv1"]
        'fixed'
        >>> data = [(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))]
        >>> explainsteer(model, data).e0["layer1.0.conv1"].shape
        torch.Size([3])

    Source: ExplainFix 2023, section 3.2 and algorithm 2, with e_0 a sum as in the authors' code.
    """
    check_compat(compat)
    if data is None and (cost is not None or num_batches is not None):
        raise ValueError("data must be given with cost or num_batches, got None")
    layers = spatial_convolutions(model)
    if not layers:
        raise ValueError("model has no spatial convolution: nothing has a spectrum")
    if progress and data is not None:
        data = with_progress(data, "explainsteer", num_batches)
    ed = {name: torch.zeros(math.prod(m.kernel_size), **_WIDE) for name, m in layers.items()}
    roots = {name: zeros.clone() for name, zeros in ed.items()}
    for weights in _filter_weights(model, layers, data, cost, num_batches, compat):
        for name, conv in layers.items():
            energy = _energy(name, conv, weights[name])
            ed[name] += energy
            roots[name] += energy.sqrt()
    if data is not None:
        check_scores(ed)
    e1 = {name: _by_axis(root, layers[name].kernel_size) for name, root in roots.items()}
    return Spectra(
        ed=ed,
        e1=e1,
        e0={name: e.reshape(2, -1).sum(0) for name, e in e1.items() if len(set(layers[name].kernel_size)) == 1},
        kernels={name: m.kernel_size for name, m in layers.items()},
        filters={name: _kind(m) for name, m in layers.items()},
        saliency=data is not None,
        compat=compat,
        skipped=_skipped(model),
    )


def _filter_weights(
    model: nn.Module,
    layers: dict[str, Any],
    data: Iterable[tuple[Tensor, Tensor]] | None,
    cost: Cost | None,
    num_batches: int | None,
    compat: str | None,
) -> Iterator[dict[str, Tensor]]:
    """Layer -> w (O, I/groups): once; with compat="paper" and data once a batch."""

    def size(weight: Tensor, gradients: Tensor) -> Tensor:
        return gradients.abs().sum((0, -1))

    if data is None:
        shapes = {name: (m.out_channels, m.in_channels // m.groups) for name, m in layers.items()}
        yield {name: torch.full((o, i), 1 / (o * i), **_WIDE) for name, (o, i) in shapes.items()}
    elif compat is None:
        yield sum_over_samples(model, data, cost, size, num_batches=num_batches)
    else:
        batch = None
        for batch in first_batches(data, num_batches):
            yield sum_over_samples(model, [batch], cost, size, whole_batch=True)
        if batch is None:
            raise ValueError("data is empty: expected batches (x, y)")


def _energy(name: str, conv: Any, weights: Tensor) -> Tensor:
    """e_d (kh*kw,) in frequency order: sum_oi weights[o, i] |<W[o, i], B_l>|, where W = steering times functions."""
    steering, functions = _steered(name, conv)
    if steering.dtype == torch.uint8:
        counts = torch.bincount(steering.flatten().long(), weights.flatten(), minlength=len(functions))
        return counts[: len(functions)] @ functions.abs()
    if not bool(torch.isfinite(steering).all()):
        raise ValueError(f"filters of {name or 'model'} must be finite, got NaN or infinity")
    if bool(((functions != 0).sum(0) <= 1).all()):  # each DCT function comes from one of the basis: no sum to take
        return torch.einsum("oi,oil->l", weights, steering.abs().double()) @ functions.abs()
    return torch.einsum("oi,oil->l", weights, (steering.double() @ functions).abs())


def _steered(name: str, conv: Any) -> tuple[Tensor, Tensor]:
    """Index (O, I/groups) or coefficients (O, I/groups, L) of the filters, and the L functions that they steer, as DCT
    coefficients (L, kh*kw) in frequency order. A plain weight steers impulses, one a pixel."""
    dct = dct_basis(conv.kernel_size).flatten(1)[frequency_order(conv.kernel_size)]
    if isinstance(conv, FixedConv2d):
        bank = conv.bank
        steering, basis = bank.steering, bank.scale * bank.basis.flatten(1)
    else:
        steering, basis = conv.weight.detach().flatten(2), torch.eye(len(dct), **_WIDE)
    if steering.is_meta:
        raise ValueError(f"{name or 'model'} has no numbers: it is on the meta device")
    functions = basis.cpu().double() @ dct.T
    noise = functions.abs() <= _NOISE * functions.norm(dim=1, keepdim=True)
    return steering.cpu(), functions.masked_fill(noise, 0)


def _by_axis(roots: Tensor, kernel: tuple[int, int]) -> Tensor:
    """e_1: sums of roots (kh*kw,), in frequency order, over the functions of each of the kh rows and kw columns."""
    order = frequency_order(kernel)
    axes = zip(kernel, (order // kernel[1], order % kernel[1]), strict=True)
    return torch.cat([roots.new_zeros(size).index_add(0, frequency, roots) for size, frequency in axes])


def _kind(conv: Any) -> str:
    if isinstance(conv, FixedConv2d):
        return "fixed" if conv.coeff is None else "mixed"
    return "learned" if conv.weight.requires_grad else "frozen"


def _skipped(model: nn.Module) -> dict[str, str]:
    """Name -> class of the spatial convolutions that are no Conv2d."""
    convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.modules.conv._ConvNd)}
    return {n: type(m).__name__ for n, m in convs.items() if not isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1}
