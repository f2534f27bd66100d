"""explainsteer computes the Spectra of a model: how much energy each layer's spatial filters have at each frequency."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext._support.layout import as_pair
from explainfix_ext._support.models import is_spatial, spatial_convolutions
from explainfix_ext._support.progress import with_progress
from explainfix_ext.filters.basis import dct_basis, frequency_order
from explainfix_ext.nn.fixed_conv import FixedConv
from explainfix_ext.nn.replaceable import REPLACEABLE

from .saliency import Cost, check_compat, check_scores, first_batches, gradient_size, sum_over_samples
from .spectra import Spectra

_WIDE: Any = {"dtype": torch.float64, "device": "cpu"}
_NOISE = 1e-12  # times a function's norm: a coefficient below this is zero but for rounding


def explainsteer(
    model: nn.Module,
    data: Iterable[tuple[Tensor, Tensor]] | None = None,
    cost: Cost | None = None,
    *,
    num_batches: int | None = None,
    compat: str | None = None,
    progress: bool = False,
) -> Spectra:
    """Measures the energy of every spatial layer at each DCT-II function B_l of its kernel, from low to high frequency.

    The energy is `e_d[l] = sum_oi w_oi |<W[o, i], B_l>|`. Without data, w = 1 / (O I/groups): the energy says how the
    filters are made. With data, w is the mean over samples of sum_hw |dc/dW[o, i]|: filters count by how much the cost
    depends on them. e_1 sums e_d^(1/2) over the functions of each vertical and of each horizontal frequency, and e_0
    adds the two.

    Filters of a bank are not composed, but for the coefficients of a hadamard bank: its basis is projected once, and
    the functions of an index bank are counted. The gradient is taken as in `saliency`: in eval mode, one layer's weight
    at a time. The model is not changed.

    Args:
        model: learned, frozen, fixed or any mix; its Conv2d and Conv1d layers larger than 1x1 are explained.
        data: batches (x, y), such as a DataLoader, read one by one.
        cost: (model output, y) -> a scalar, summed over the samples. Default: the true class's logit, for integer
            y (N,) and logits (N, classes); else sum(output * y).
        num_batches: how many batches to use, the first ones; None: all.
        compat: "paper" computes e_d, e_1 and e_0 of each batch, from the absolute value of the batch's gradient, and
            sums them over batches. This is what the authors' code does; the result depends on the batch size.
        progress: show a bar over the batches on stderr (needs rich).

    Returns:
        Spectra, float64 on the CPU, layers in the model's order.

    Raises:
        TypeError: model is no module.
        ValueError: the model has no spatial layer; cost or num_batches is given without data; data is empty; a weight
            or gradient is not finite; the saliency is zero everywhere.
        ImportError: progress=True, and rich is not installed.

    Examples:
        >>> model = torchvision.models.resnet18()
        >>> _ = convert(model, "dct2", seed=0)
        >>> explainsteer(model).filters["layer1.0.conv1"]
        'fixed'
        >>> data = [(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))]
        >>> explainsteer(model, data).e0["layer1.0.conv1"].shape
        torch.Size([3])

        The equivalent PyTorch, for e_d without data:

        >>> conv = nn.Conv2d(4, 8, 3)
        >>> functions = dct_basis((3, 3))[frequency_order((3, 3))].flatten(1)
        >>> by_hand = (conv.weight.double().flatten(2) @ functions.T).abs().mean((0, 1))
        >>> torch.allclose(explainsteer(conv).ed[""], by_hand)
        True

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
    kernels = {name: as_pair(m.kernel_size) for name, m in layers.items()}
    e1 = {name: _by_axis(root, kernels[name]) for name, root in roots.items()}
    squares = {name: e.reshape(2, -1).sum(0) for name, e in e1.items() if len({*kernels[name]}) == 1}
    signals = {name: e[1:] for name, e in e1.items() if isinstance(layers[name], nn.Conv1d)}
    return Spectra(
        ed=ed,
        e1=e1,
        e0=squares | signals,
        kernels=kernels,
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
    """Yields layer -> w (O, I/groups): once, or once for each batch with data and compat="paper"."""

    def over_taps(weight: Tensor, sizes: Tensor) -> Tensor:
        return sizes.sum(-1)

    if data is None:
        shapes = {name: (m.out_channels, m.in_channels // m.groups) for name, m in layers.items()}
        yield {name: torch.full((o, i), 1 / (o * i), **_WIDE) for name, (o, i) in shapes.items()}
    elif compat is None:
        yield sum_over_samples(model, data, cost, gradient_size, over_taps, num_batches=num_batches)
    else:
        batch = None
        for batch in first_batches(data, num_batches):
            yield sum_over_samples(model, [batch], cost, gradient_size, over_taps, whole_batch=True)
        if batch is None:
            raise ValueError("data is empty: expected batches (x, y)")


def _energy(name: str, conv: Any, weights: Tensor) -> Tensor:
    """Computes e_d (kh*kw,) in frequency order: sum_oi weights[o, i] |<W[o, i], B_l>|."""
    index, coeff, basis = _parts(conv)
    if basis.is_meta or (coeff is not None and coeff.is_meta):
        raise ValueError(f"{name or 'model'} has no numbers: it is on the meta device")
    functions = _dct_coefficients(basis.cpu().double(), as_pair(conv.kernel_size))
    if index is not None:
        counts = torch.bincount(index.cpu().flatten().long(), weights.flatten(), minlength=len(functions))
        return counts[: len(functions)] @ functions.abs()  # the last is the zero filter's
    assert coeff is not None  # a bank has an index or coefficients
    coeff = coeff.cpu()
    if not bool(torch.isfinite(coeff).all()):
        raise ValueError(f"filters of {name or 'model'} must be finite, got NaN or infinity")
    if bool(((functions != 0).sum(0) <= 1).all()):  # each B_l occurs in one function of the basis: nothing to add up
        return torch.einsum("oi,oil->l", weights, coeff.abs().double()) @ functions.abs()
    return torch.einsum("oi,oil->l", weights, (coeff.double() @ functions).abs())


def _parts(conv: Any) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Returns index (O, I/groups) or coefficients (O, I/groups, L) of a layer's filters, and their basis (L, kh*kw).

    The basis of a plain weight is one impulse for each pixel, so its coefficients are the weight.
    """
    if isinstance(conv, FixedConv):
        bank = conv.bank.with_coefficients()
        return bank.index, bank.coeff, bank.scale * bank.basis.flatten(1)
    weight = conv.weight.detach().flatten(2)
    return None, weight, torch.eye(weight.shape[2], **_WIDE)


def _dct_coefficients(functions: Tensor, kernel: tuple[int, int]) -> Tensor:
    """Expresses functions (L, kh*kw) on the DCT functions in frequency order; what is only rounding becomes zero."""
    dct = dct_basis(kernel).flatten(1)[frequency_order(kernel)]
    found = functions @ dct.T
    noise = found.abs() <= _NOISE * found.norm(dim=1, keepdim=True)
    return found.masked_fill(noise, 0)


def _by_axis(roots: Tensor, kernel: tuple[int, int]) -> Tensor:
    """Computes e_1: the sum of roots (kh*kw,) over the functions of each of the kh rows, then of the kw columns."""
    order = frequency_order(kernel)
    axes = zip(kernel, (order // kernel[1], order % kernel[1]), strict=True)
    return torch.cat([roots.new_zeros(size).index_add(0, frequency, roots) for size, frequency in axes])


def _kind(conv: Any) -> str:
    """Returns how a layer's filters are trained, as `Spectra.filters` says it."""
    if isinstance(conv, FixedConv):
        return "fixed" if conv.coeff is None else "mixed"
    return "learned" if conv.weight.requires_grad else "frozen"


def _skipped(model: nn.Module) -> dict[str, str]:
    """Returns name -> class of the spatial convolutions that are no Conv1d or Conv2d, and so have no spectrum."""
    kinds = (nn.modules.conv._ConvNd,)
    convs = {name: m for name, m in model.named_modules() if is_spatial(m, kinds) and not isinstance(m, REPLACEABLE)}
    return {name: type(module).__name__ for name, module in convs.items()}
