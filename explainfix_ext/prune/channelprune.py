"""This module has `channelprune`, which zeroes the filters that matter least and removes channels that become useless.

It runs the other modules of this room in turn, on copies of the model, and changes the model itself last, if at all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext._support.models import check_is_module
from explainfix_ext._support.text import first_line
from explainfix_ext.explain.saliency import Cost
from explainfix_ext.memory.save import save_memory
from explainfix_ext.prune.cut.cuts import Cuts
from explainfix_ext.prune.cut.fill import fill_zeros_, recipes_of
from explainfix_ext.prune.cut.layers import nonzero_filters, prunable_layers, unprunable_layers
from explainfix_ext.prune.cut.plan import add_zeros, apply_plan
from explainfix_ext.prune.score.criteria import Criterion
from explainfix_ext.prune.trace.inputs import Inputs, as_tuple, copied

from .backends import find_cuts, trace_channels
from .checks import check_pruned
from .costs import LayerCost, layer_costs, stored_numbers
from .masking import NothingToPrune, mask_
from .report import PruneReport
from .schedule import FineTune, amounts_of, prune_in_steps
from .settings import Settings, default_granularity


def channelprune(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...],
    *,
    amount: float,
    criterion: Criterion = "explainfix",
    data: Iterable[tuple[Tensor, Tensor]] | None = None,
    cost: Cost | None = None,
    scope: str = "global",
    granularity: str | None = None,
    weigh: str = "score",
    structured: bool = True,
    agree: str = "all",
    round_to: int = 1,
    min_channels: int = 1,
    max_layer_amount: float = 0.95,
    ignore: str | Sequence[str] = (),
    fill: str = "none",
    bn_bias: str = "keep",
    inplace: bool = False,
    verify: bool = True,
    dry_run: bool = False,
    compat: str | None = None,
    backend: str = "auto",
    schedule: int | Sequence[float] | None = None,
    fine_tune: FineTune | None = None,
    seed: int = 0,
) -> PruneReport:
    """Sets the spatial filters with the lowest scores to zero, and removes the channels that are useless without them.

    A channel goes if every filter that writes it is zero, or if no filter reads it. Sums, concatenations, splits,
    groups and gates tie channels of several layers together: those go together or stay. What touches the model's
    inputs and outputs, or an operation that computes with several channels at once, stays, and the report says why.
    The pruned model is then verified: its outputs equal those of the masked model (the same filters zero, nothing
    removed) to 1e-5 of their norm, in eval mode and, with dropout and batch statistics off, in training mode; and also
    with scales near zero, such as a LayerScale, replaced by others that do not hide an error.

    Args:
        model: any module that torch.fx can trace, or whose run can be recorded; learned, converted, or both. Outputs
            that it has in training only keep their shapes, too. It stays as it is, unless `inplace`.
            Make the optimizer after pruning; `keep_zeros` then keeps learned filters at zero.
        example_inputs: a tensor or a tuple of tensors, of the size that the model is for. Branches of the model's code
            that it does not take, other than those of training mode, are not followed.
        amount: share of the spatial filters, in layers that are not ignored, that are zero afterwards, in [0, 1).
            Filters that are zero already count.
        criterion: "explainfix", "taylor", "l1", "l2", "bn_scale", "hrank", "nisp", "response", "obs", "random"; or
            {layer: scores (O, I/groups)}; or a callable (name, module) -> scores.
        data: batches (x, y), for explainfix and taylor, and for hrank, response and obs, which do not look at y.
        cost: (model output, y) -> a scalar, as `saliency` takes it, for explainfix and taylor.
        scope: "global" takes the lowest scores of the network; "layer" takes the same share of each layer.
        granularity: "filter", single filters, as in the paper; or "channel", which zeroes all filters that write or
            read a channel at once, by their mean score, and with them what other layers (1x1, linear) write into it, so
            that the channel can go: smaller and faster networks for the same amount. Fewer than `amount` may be
            possible. None takes "channel" for networks with hadamard layers, else "filter": a fast transform can leave
            out channels, but no single filters, for which the layer would get coefficients, larger and slower; the
            report names such layers.
        weigh: "score"; or "work", which divides the score by the number of pixels that a filter is computed for, so
            that filters which save more multiply-adds go first: faster networks for the same amount.
        structured: False only sets filters to zero, and removes no channel. Index banks then run the filter-sparse
            kernels.
        agree: "all" layers that write a channel must write zero; or "any" one is enough, as in the paper, which
            changes what residual networks compute.
        round_to: a layer of one group keeps a multiple of so many channels.
        min_channels: a layer keeps at least so many channels.
        max_layer_amount: a layer loses no more than this share of its filters, or than (1 + amount) / 2 if that is
            more. Scope "layer" with granularity "filter" does not use it.
        ignore: a glob of layer names that are not pruned, or several.
        fill: what becomes of filters that are zero and stay: "none" leaves them; "reset" draws them anew; "fill_zero"
            uses the initialisation of that name.
        bn_bias: what becomes of a channel of zero filters, which is a constant, set by its bias or by the BatchNorm
            that follows. "keep" keeps the channel, unless the constant is zero. "drop" ignores the constant (so does
            the masked model). "fold" adds it to the bias of the layers that read it, where that is exact for images of
            any size (no padding by zeros on the way, no sum over pixels), else keeps the channel; the constant is that
            of eval mode.
        inplace: prune `model` itself; `report.model` is then the same object.
        verify: compare the pruned with the masked model, and refuse if they differ by more than 1e-5 of the output's
            norm.
        dry_run: only report; `report.model` is None.
        compat: "paper" sets agree="any" and bn_bias="drop", and takes the paper's saliency.
        backend: "fx" follows a graph of torch.fx, traced or else recorded while the model runs on the example;
            "torch_pruning" follows autograd with the library of that name (extra `prune`); "auto" takes the first that
            works.
        schedule: prunes in steps, with new scores in each. Give their amounts, rising to `amount`; or their number, and
            each step keeps the same share of what is left.
        fine_tune: (model, step), called between two steps of `schedule` to train the model in place, so never without
            one; what it returns is ignored.
        seed: seed for criterion "random", fill "reset", and the random input of the verification.

    Returns:
        A PruneReport; its `model` is the pruned model.

    Raises:
        ValueError: an argument is bad, the model has no spatial layer or nothing to prune, it cannot be traced, or the
            pruned model differs from the masked one (the message says where). The model is unchanged then.

    Examples:
        >>> model = torchvision.models.resnet18()
        >>> _ = convert(model, "dct2", seed=0)
        >>> report = channelprune(model, torch.randn(1, 3, 64, 64), amount=0.9, criterion="l1", granularity="channel")
        >>> report.verify_error < 1e-5, report.parameters[1] < report.parameters[0]
        (True, True)

        The equivalent PyTorch, of which `channelprune` also removes what is useless then:

        >>> model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), torch.randn(1, 3, 8, 8)
        >>> pruned = channelprune(model, x, amount=0.5, criterion="l1").model
        >>> weights = [model[0].weight.detach(), model[2].weight.detach()]
        >>> scores = [weight.abs().sum((2, 3)) for weight in weights]
        >>> limit = torch.cat([score.flatten() for score in scores]).kthvalue(28).values  # half of 24 + 32 filters
        >>> for weight, score in zip(weights, scores):
        ...     weight[score <= limit] = 0
        >>> torch.allclose(pruned(x), model(x), atol=1e-5)
        True

    Source: ExplainFix 2023, section 3.3 (ChannelPrune).
    """
    check_is_module(model)
    settings = Settings(
        amount=amount,
        criterion=criterion,
        data=data,
        cost=cost,
        scope=scope,
        granularity=granularity or default_granularity(model),
        weigh=weigh,
        structured=structured,
        agree=agree,
        round_to=round_to,
        min_channels=min_channels,
        max_layer_amount=max_layer_amount,
        ignore=(ignore,) if isinstance(ignore, str) else tuple(ignore),
        fill=fill,
        bn_bias=bn_bias,
        inplace=inplace,
        verify=verify,
        dry_run=dry_run,
        compat=compat,
        backend=backend,
        seed=seed,
    )
    inputs = copied(as_tuple(example_inputs))
    if schedule is None and fine_tune is None:
        return _prune(model, inputs, settings)
    if dry_run:
        raise ValueError("dry_run looks one step ahead: it takes no schedule and no fine_tune")
    if data is not None and iter(data) is data:
        raise ValueError(
            "data must be iterable more than once, such as a list or DataLoader, with schedule: got an iterator"
        )
    amounts = amounts_of(1 if schedule is None else schedule, amount)
    return prune_in_steps(_prune, model, inputs, settings, amounts=amounts, fine_tune=fine_tune)


def _prune(model: nn.Module, inputs: Inputs, settings: Settings) -> PruneReport:
    """Prunes once. All is tried on copies; the model itself is changed at the very end, and only in place."""
    masked = copy.deepcopy(model)
    save_memory(masked, "off")
    masked.eval()
    before = _costs(masked, inputs)
    layers = _layers_to_prune(masked, before, settings.ignore)
    trace = trace_channels(masked, inputs, settings) if settings.structured else None
    new, beside = mask_(masked, layers, before, None if trace is None else trace.channels, settings)
    zero = {name: ~nonzero_filters(layer) for name, layer in layers.items()}
    cuts = find_cuts(masked, inputs, trace, settings) if settings.structured else Cuts()
    if not new and not cuts.plan["layers"]:
        share = torch.cat([mask.flatten() for mask in zero.values()]).double().mean()
        raise NothingToPrune(
            f"nothing to prune: {share:.1%} of the filters are zero, and amount is {settings.amount:.1%}"
        )
    add_zeros(cuts.plan, masked, zero | beside)

    pruned = apply_plan(copy.deepcopy(model), cuts.plan)
    check = settings.verify and bool(cuts.plan["layers"])
    report = PruneReport(
        model=None,
        plan=cuts.plan,
        amount=settings.amount,
        criterion=settings.criterion if isinstance(settings.criterion, str) else "given",
        verify_error=check_pruned(model, pruned, masked, cuts, inputs, settings) if check else None,
        layers=tuple(layers),
        before=before,
        after=layer_costs(pruned, inputs),
        protected=unprunable_layers(masked) | cuts.protected,
        ties=cuts.ties,
        parameters=(stored_numbers(model), stored_numbers(pruned)),
        bn_bias=settings.bn_bias,
    )
    if not settings.dry_run:
        recipes = recipes_of(model)
        report.original = None if settings.inplace else model
        report.model = pruned
        fill_zeros_(pruned, recipes, cuts.plan, fill=settings.fill, seed=settings.seed)
        if settings.inplace:  # after the copy, since an initialisation may fail
            report.model = apply_plan(model, cuts.plan)
            fill_zeros_(model, recipes, cuts.plan, fill=settings.fill, seed=settings.seed)
    return report


def _costs(model: nn.Module, inputs: Inputs) -> dict[str, LayerCost]:
    try:
        return layer_costs(model, inputs)
    except Exception as error:  # a model may raise anything
        shapes = [list(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in inputs]
        raise ValueError(f"model does not run on example_inputs {shapes}: {first_line(error)}") from error


def _layers_to_prune(model: nn.Module, ran: dict[str, LayerCost], ignore: Sequence[str]) -> dict[str, nn.Conv2d]:
    """Returns the spatial layers that are not ignored and that ran in eval mode: auxiliary heads have no saliency."""
    found = prunable_layers(model)
    if not found:
        others = unprunable_layers(model)
        why = "; ".join(f"{name}: {reason}" for name, reason in [*others.items()][:3])
        raise ValueError(
            f"model has no spatial convolution (Conv2d or Conv1d larger than 1x1) to prune{': ' * bool(why)}{why}"
        )
    layers = {n: m for n, m in found.items() if n in ran and not any(fnmatchcase(n, glob) for glob in ignore)}
    if not layers:
        raise ValueError(f"ignore must leave a spatial convolution, got {list(ignore)} of {', '.join(found)}")
    return layers
