"""This module has `soft_low_rank`, which a training loop calls after each epoch to bring filters to a low rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext._support.models import check_is_module, on_a_copy
from explainfix_ext.filters.bank import kept_rank, principal_axes
from explainfix_ext.memory import save_memory
from explainfix_ext.nn.fixed_conv import FixedConv
from explainfix_ext.prune.trace.graph import norms_after
from explainfix_ext.prune.trace.inputs import as_tuple, copied

from .backends import followed
from .soft import learned_layers

_ALMOST_ZERO = 1e-5  # the square of a scale that counts as small


def soft_low_rank(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    energy: float | None = None,
    rank: int | Mapping[str, int] | None = None,
    what: str = "filters",
    ignore: str | Sequence[str] = (),
) -> dict[str, int]:
    """Projects learned spatial filters to a low rank, in place, and gives the lost norm to what is kept.

    Call it after each epoch of training: the weights learn on, and what they lose is less at each call. Give `energy`
    the first time, and what that returned as `rank` from then on: the same energy again would be a share of what is
    left. At the end `convert(model, "unchanged", energy=0.9999)` fixes filters of that rank, which lose nothing more.

    Args:
        model: a model with spatial filters that are learned; of FixedConv2d with learn_coeff=True, the coefficients.
        example_inputs: a batch, or a tuple of arguments, on which the model runs. It is needed to find the BatchNorm
            that reads a layer's outputs; rows of the layer are then weighed by |gamma| / sqrt(var + eps), which that
            BatchNorm multiplies them with. None: rows weigh the same.
        energy: share of the squared norm that each layer keeps, in (0, 1]; 1 changes nothing.
        rank: number of singular values that each layer keeps, at least 1, or {layer: number}; instead of energy. A
            layer that has no more is left as it is.
        what: "filters" brings the K^2 taps of all filters of a layer, a matrix (O * I/groups, K^2), to a low rank: few
            basis functions. "channels" brings a layer's outputs, (O, I/groups * K^2) in each group, to a low rank: few
            channels and a 1x1 convolution compute it.
        ignore: a glob of layer names that are left alone, or several.

    Returns:
        Name of each layer -> its rank, in "channels" of the group that has most.

    Raises:
        ValueError: an argument is out of range, no spatial layer learns, weights are not finite, or channels cannot be
            followed by torch.fx. Nothing is changed then.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> x = torch.randn(1, 3, 8, 8)
        >>> ranks = soft_low_rank(model, x, energy=0.6)  # after the first epoch
        >>> soft_low_rank(model, x, rank=ranks) == ranks  # after each that follows
        True
        >>> _ = convert(model, "unchanged", energy=0.9999)
        >>> model[0].bank.rank == ranks["0"] < 9
        True

        The equivalent PyTorch, without BatchNorm:

        >>> conv = nn.Conv2d(3, 8, 3)
        >>> u, s, v = torch.linalg.svd(conv.weight.detach().reshape(24, 9), full_matrices=False)
        >>> kept = s[:4] * (s.square().sum() / s[:4].square().sum()).sqrt()
        >>> _ = soft_low_rank(conv, rank=4)
        >>> torch.allclose(conv.weight.reshape(24, 9), u[:, :4] * kept @ v[:4], atol=1e-6)
        True

    Source: LRPET (Guo et al. 2024), where what="channels" and ranks are given.
    """
    check_is_module(model)
    layers = learned_layers(model, ignore)
    wanted = rank if isinstance(rank, Mapping) else dict.fromkeys(layers, rank)
    _check(energy, wanted, layers, what)
    scales = {} if example_inputs is None else _norm_scales(model, example_inputs)
    found: list[tuple[nn.Parameter, Tensor]] = []
    ranks = {}
    for name, layer in layers.items():
        learned: Any = layer.coeff if isinstance(layer, FixedConv) else layer.weight
        numbers = learned.detach().double()
        if not bool(torch.isfinite(numbers).all()):
            raise ValueError(f"weights of {name} must be finite, got NaN or infinity")
        rows = numbers.flatten(2).flatten(0, 1) if what == "filters" else numbers.flatten(1)
        scale, inverse = scales.get(name, (torch.ones(len(numbers)).to(rows),) * 2)
        scale, inverse = (s.repeat_interleave(len(rows) // len(s))[:, None] for s in (scale, inverse))
        parts = (rows * scale).chunk(layer.groups if what == "channels" else 1)
        low, kept = zip(*(_low_rank(part, energy, wanted[name]) for part in parts), strict=True)
        ranks[name] = max(kept)
        if any(a is not b for a, b in zip(low, parts, strict=True)):
            found.append((learned, torch.cat(low) * inverse))
    with torch.no_grad():
        for learned, numbers in found:
            learned.copy_(numbers.reshape(learned.shape))
    return ranks


def _check(energy: float | None, ranks: Mapping[str, int | None], layers: Iterable[str], what: str) -> None:
    missing = next((name for name in layers if name not in ranks), None)
    if missing is not None:
        raise ValueError(f"rank must have a number for every learned layer, {missing} is missing")
    for rank in ranks.values():
        if (energy is None) == (rank is None):
            raise ValueError(f"energy or rank must be given, and not both, got {energy} and {rank}")
        if rank is not None and (type(rank) is not int or rank < 1):
            raise ValueError(f"rank must be an integer of at least 1, got {rank!r}")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy must be in (0, 1], got {energy}")
    if what not in ("filters", "channels"):
        raise ValueError(f"what must be filters or channels, got {what!r}")


def _low_rank(matrix: Tensor, energy: float | None, rank: int | None) -> tuple[Tensor, int]:
    """Returns the nearest matrix of that rank, scaled to the matrix's own norm, and the rank; or the matrix itself."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    axes, sigma = principal_axes(tall)
    kept = kept_rank(sigma, energy) if energy is not None and energy < 1 else min(rank or len(sigma), len(sigma))
    if kept == len(sigma) or not bool(sigma[0] > 0):
        return matrix, kept
    low = tall @ axes[:kept].T @ axes[:kept] * (sigma.norm() / sigma[:kept].norm())
    return (low if tall is matrix else low.T), kept


def _norm_scales(model: nn.Module, example_inputs: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns layer -> what the BatchNorm that reads its outputs multiplies each with, (O,) float64, and its inverse.

    The inverse of a scale near zero is near zero, too: that output hardly matters.
    """
    with on_a_copy(model) as probe:
        save_memory(probe, "off")
        graph = followed(probe.eval(), copied(as_tuple(example_inputs))).channels
    scales = {}
    for layer, name in norms_after(graph).items():
        norm: Any = model.get_submodule(name)
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_var is not None:
            deviation = (norm.running_var.double() + norm.eps).sqrt()
            scale = (1 if norm.weight is None else norm.weight.detach().double().abs()) / deviation
            scales[layer] = scale, scale / (scale.square() + _ALMOST_ZERO)
    return scales
