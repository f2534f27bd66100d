"""This module has what a training loop calls: `soft_prune` zeroes filters that may come back, `keep_zeros` lets none.

`soft_prune` runs after each epoch, before `channelprune`; `keep_zeros` runs once, before fine-tuning what that pruned;
`spectral_penalty` is a part of the loss in each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from explainfix_ext._support.layout import as_pair
from explainfix_ext._support.models import spatial_convolutions
from explainfix_ext.filters.basis import dct_basis
from explainfix_ext.nn.fixed_conv import FixedConv
from explainfix_ext.prune.cut.layers import nonzero_filters, prunable_layers, zero_filters_
from explainfix_ext.prune.cut.plan import Plan, zeros_of
from explainfix_ext.prune.cut.plan_check import check_zeros
from explainfix_ext.prune.score.criteria import Context, Criterion, score
from explainfix_ext.prune.score.select import effective_limit, lowest, lowest_rows

from .settings import check_amount, check_choice


def soft_prune(
    model: nn.Module,
    amount: float,
    *,
    criterion: Criterion = "l2",
    scope: str = "layer",
    granularity: str = "channel",
    ignore: str | Sequence[str] = (),
) -> int:
    """Sets the filters with the lowest scores to zero, in place, and lets training change them again.

    Call it after each epoch, and `channelprune` at the end. A filter that an early epoch zeroed can come back. Learned
    weights and learned coefficients (FixedConv2d with learn_coeff=True) are pruned. Fixed filters would never come
    back, so they are left alone.

    Args:
        model: a model with spatial filters that are learned.
        amount: share of the filters to set to zero, in [0, 1).
        criterion: one of `channelprune` that needs no data: "l1", "l2", "random", {layer: scores}, or a callable.
        scope, granularity, ignore: as `channelprune` takes them.

    Returns:
        The number of filters that were set to zero.

    Raises:
        TypeError: model is no module.
        ValueError: an argument is out of range, or no spatial layer learns.

    Examples:
        >>> model = nn.Sequential(FixedConv2d(3, 8, 3, seed=0, learn_coeff=True), nn.ReLU())
        >>> soft_prune(model, 0.5)
        12

        The equivalent PyTorch:

        >>> conv = nn.Conv2d(3, 8, 3)
        >>> norms = conv.weight.detach().flatten(1).norm(dim=1)
        >>> lowest = norms.argsort()[:4]
        >>> _ = soft_prune(nn.Sequential(conv), 0.5)
        >>> torch.equal(conv.weight.detach().flatten(1).any(1).logical_not().nonzero().flatten(), lowest.sort().values)
        True

    Source: He et al. 2018, "Soft Filter Pruning", where whole output channels go, by their l2 norm: the defaults.
    """
    check_amount(amount)
    check_choice("scope", scope)
    check_choice("granularity", granularity)
    learned = learned_layers(model, ignore)
    scores = score(criterion, Context(model, learned))
    select = lowest_rows if granularity == "channel" else lowest
    zero = select(scores, amount, scope, effective_limit(amount, 0.95))
    with torch.no_grad():
        for name, mask in zero.items():
            zero_filters_(learned[name], mask)
    return sum(int(mask.sum()) for mask in zero.values())


def spectral_penalty(model: nn.Module) -> Tensor:
    """Returns the mean |DCT-II coefficient| of each layer's learned spatial filters, summed over layers.

    Added to the loss, it makes filters of few frequencies, such as `convert(model, "unchanged", energy=0.9)` compresses
    and pruning leaves out. Filters that do not learn are left out; learned mixes of fixed functions are counted.

    Args:
        model: a model with spatial filters that are learned.

    Returns:
        A scalar of the weights' dtype, differentiable with respect to them.

    Raises:
        TypeError: model is no module.
        ValueError: no spatial layer learns.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 5))
        >>> loss = model(torch.randn(2, 3, 16, 16)).square().mean() + 0.1 * spectral_penalty(model)
        >>> loss.backward()

        The equivalent PyTorch:

        >>> penalties = []
        >>> for conv in (model[0], model[2]):
        ...     dct = dct_basis(conv.kernel_size, dtype=torch.float32).flatten(1)
        ...     penalties.append((conv.weight.flatten(2) @ dct.T).abs().mean())
        >>> torch.allclose(spectral_penalty(model), sum(penalties))
        True

    Source: the prior `dct_l1` in the authors' code of ExplainFix 2023.
    """
    means = []
    for layer in spatial_convolutions(model).values():
        if _learns(layer):
            weight = layer.weight
            dct = dct_basis(as_pair(layer.kernel_size), dtype=weight.dtype).flatten(1).to(weight.device)
            means.append((weight.flatten(2) @ dct.T).abs().mean())
    if not means:
        raise ValueError("model has no spatial filters that are learned: fixed ones cannot be penalised")
    return torch.stack(means).sum()


def learned_layers(model: nn.Module, ignore: str | Sequence[str]) -> dict[str, Any]:
    """Returns name -> spatial layer whose weights or coefficients are learned; raises ValueError if there is none.

    Args:
        ignore: a glob of layer names to leave out, or several.
    """
    globs = [ignore] if isinstance(ignore, str) else ignore
    learned = {
        name: layer
        for name, layer in prunable_layers(model).items()
        if _learns(layer) and not any(fnmatchcase(name, glob) for glob in globs)
    }
    if not learned:
        raise ValueError("model has no spatial filters that are learned: fixed ones stay as they are")
    return learned


def _learns(layer: nn.Conv2d) -> bool:
    return layer.coeff is not None if isinstance(layer, FixedConv) else layer.weight.requires_grad


def keep_zeros(model: nn.Module, plan: Plan) -> list[RemovableHandle]:
    """Keeps the learned filters that `plan` set to zero at zero while the model is fine-tuned.

    Hooks set their gradients to zero. Fixed filters stay zero by themselves.

    Args:
        model: a model pruned by `plan`.
        plan: `PruneReport.plan`, or what `json.load` reads from its file.

    Returns:
        The handles of the hooks; `handle.remove()` lets a layer learn freely again. Copies of the model have no hooks.

    Raises:
        ValueError: the model was not pruned by this plan.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> report = channelprune(model, torch.randn(1, 3, 8, 8), amount=0.5, criterion="l1")
        >>> _ = keep_zeros(report.model, report.plan)
        >>> _ = report.model(torch.randn(1, 3, 8, 8)).sum().backward()
        >>> layer = report.model[2]
        >>> bool(layer.weight.grad[layer.weight == 0].any())
        False

        The equivalent PyTorch, for one layer:

        >>> learned = layer.weight != 0
        >>> handle = layer.weight.register_hook(lambda gradient: gradient * learned)
    """
    check_zeros(model, plan)
    handles, zeros = [], zeros_of(plan)
    for name, zero in zeros.items():
        if bool((nonzero_filters(model.get_submodule(name)) & zero).any()):
            raise ValueError(f"model must be pruned by the plan: {name} has filters that the plan sets to zero")
    for name, zero in zeros.items():
        layer: Any = model.get_submodule(name)
        learned = layer.coeff if isinstance(layer, FixedConv) else layer.weight
        if learned is not None and learned.requires_grad:
            mask = zero.reshape(*zero.shape, *[1] * (learned.ndim - 2)).to(learned.device)
            handles.append(learned.register_hook(lambda gradient, mask=mask: gradient.masked_fill(mask, 0)))
    return handles
