"""keep_zeros: pruned filters stay zero while the network learns on."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from explainfix_ext.nn.fixed_conv2d import FixedConv2d
from explainfix_ext.prune.cut.layers import nonzero_filters
from explainfix_ext.prune.cut.plan import Plan, check_zeros, zeros_of


def keep_zeros(model: nn.Module, plan: Plan) -> list[RemovableHandle]:
    """Let the learned filters that `plan` set to zero have no gradient, so that fine-tuning leaves them zero. Fixed
    filters stay zero by themselves.

    Args:
        model: pruned by `plan`.
        plan: `PruneReport.plan`, or what `json.load` reads of its file.

    Returns:
        Handles of the hooks; `handle.remove()` lets a layer learn freely again. Copies of the model have no hooks.

    Raises:
        ValueError: the model is not pruned by this plan.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> report = channelprune(model, torch.randn(1, 3, 8, 8), amount=0.5, criterion="l1")
        >>> _ = keep_zeros(report.model, report.plan)
        >>> _ = report.model(torch.randn(1, 3, 8, 8)).sum().backward()
        >>> layer = report.model[2]
        >>> bool(layer.weight.grad[layer.weight == 0].any())
        False
    """
    check_zeros(model, plan)
    handles = []
    for name, zero in zeros_of(plan).items():
        layer: Any = model.get_submodule(name)
        if bool((nonzero_filters(layer) & zero).any()):
            raise ValueError(f"model must be pruned by the plan: {name} has filters that the plan sets to zero")
        learned = layer.coeff if isinstance(layer, FixedConv2d) else layer.weight
        if learned is not None and learned.requires_grad:
            mask = zero.reshape(*zero.shape, *[1] * (learned.ndim - 2)).to(learned.device)
            handles.append(learned.register_hook(lambda gradient, mask=mask: gradient.masked_fill(mask, 0)))
    return handles
