"""channelprune: zero the filters that matter least, remove the channels that are left without any, prove it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from explainfix_ext._support.models import eval_mode
from explainfix_ext._support.text import first_line
from explainfix_ext.explain.saliency import Cost
from explainfix_ext.memory.save import save_memory
from explainfix_ext.prune.cut.cuts import Cuts, protected_layers
from explainfix_ext.prune.cut.fill import fill_zeros_, recipes_of
from explainfix_ext.prune.cut.layers import nonzero_filters, spatial_layers, unprunable_layers, zero_filters_
from explainfix_ext.prune.cut.plan import add_zeros, apply_plan
from explainfix_ext.prune.score.criteria import Context, Criterion, score
from explainfix_ext.prune.score.select import effective_limit, lowest, lowest_rows
from explainfix_ext.prune.score.units import choose_units, find_units
from explainfix_ext.prune.trace.graph import ChannelGraph

from .backends import find_cuts, trace_channels
from .costs import LayerCost, layer_costs, stored_numbers
from .report import PruneReport, as_tuple
from .schedule import FineTune, NothingToPrune, amounts_of, prune_in_steps
from .settings import Settings
from .verify import ProofError, copied, prove, silence_, where_they_part


def channelprune(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...],
    *,
    amount: float,
    criterion: Criterion = "explainfix",
    data: Iterable[tuple[Tensor, Tensor]] | None = None,
    cost: Cost | None = None,
    scope: str = "global",
    granularity: str = "filter",
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
    """Set the spatial filters with the lowest scores to zero, and remove the channels that are useless without them.

    A channel goes where every filter that writes it is zero, or no filter reads it, everywhere that the network ties it
    to others: by sums, concatenations, splits, groups, gates. What touches the model's inputs and outputs, or an
    operation that computes with several channels at once, stays, and the report says why. The pruned model is then
    proved to compute what the masked one (the same filters zero, nothing removed) computes.

    Args:
        model: any module that torch.fx can trace; learned, converted, or both. On return it is as before, unless
            `inplace`. Make its optimizer after pruning; `keep_zeros` then leaves learned filters zero.
        example_inputs: a tensor or a tuple of tensors, of the size that the model is for.
        amount: share of the spatial filters, of layers that are not ignored, that are zero afterwards, in [0, 1). Those
            that are zero already count.
        criterion: "explainfix", "taylor", "l1", "l2", "bn_scale", "hrank", "nisp", "random"; or {layer: scores
            (O, I/groups)}; or a callable (name, module) -> scores.
        data: batches (x, y), for explainfix, taylor and hrank.
        cost: as `saliency` takes it.
        scope: "global": the lowest of the network; "layer": the same share of each layer.
        granularity: "filter", or "channel": all filters that write or read a channel at once, by their mean score, so
            that it can go: smaller and faster networks for the same amount. Fewer than `amount` may be possible.
        weigh: "score"; or "work": the score is divided by the pixels that a filter is computed for, so that what saves
            more multiply-adds goes first: faster networks for the same amount.
        structured: False only sets filters to zero: index banks then run the filter-sparse kernels.
        agree: "all" layers that write a channel must write zero; "any" one is enough, as in the paper: it changes what
            residual networks compute.
        round_to: a layer of one group keeps a multiple of so many channels.
        min_channels: a layer keeps at least so many.
        max_layer_amount: a layer loses no more than this share, or, if that is more, all but half of the average share
            that stays: (1 + amount) / 2.
        ignore: a glob of layer names to leave, or several.
        fill: filters that are zero and stay: "none"; "reset" draws them anew; "fill_zero" repairs them as the init of
            that name.
        bn_bias: a channel of zero filters is a constant, by the bias or BatchNorm behind. "keep" the channel, unless
            the constant is zero; "drop" it (the masked model then ignores it too); "fold" it into the bias of what
            reads it, where that is exact (no padding in between), else keep it. In eval mode, as the proof is.
        verify: prove it, to 1e-5 of the output's norm.
        dry_run: report, and return no model.
        compat: "paper": agree="any", bn_bias="drop", and the paper's saliency.
        backend: "fx"; "torch_pruning", for models that torch.fx cannot trace, follows autograd with the library of that
            name (extra `prune`); "auto" takes the first that works.
        schedule: prune in steps, with new scores for each: their amounts, rising to `amount`; or how many, each of
            which keeps the same share of what is left.
        fine_tune: (model, step), called between two steps to train the model in place, whatever it returns.
        seed: of criterion "random", fill "reset", and the input of the proof.

    Returns:
        A PruneReport: the pruned model is its `model`.

    Raises:
        ValueError: bad arguments, no spatial layers, nothing to prune, a model that cannot be traced, or a proof that
            failed: where the two part is named. The model is unchanged then.

    Example:
        >>> model = torchvision.models.resnet18()
        >>> _ = convert(model, "dct2", seed=0)
        >>> report = channelprune(model, torch.randn(1, 3, 64, 64), amount=0.9, criterion="l1", granularity="channel")
        >>> report.verify_error < 1e-5, report.parameters[1] < report.parameters[0]
        (True, True)

    Source: ExplainFix 2023, section 3.3 (ChannelPrune).
    """
    globs = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    settings = Settings(
        amount, criterion, data, cost, scope, granularity, weigh, structured, agree, round_to, min_channels,
        max_layer_amount, globs, fill, bn_bias, inplace, verify, dry_run, compat, backend, seed,
    )  # fmt: skip
    inputs = tree_map(copied, as_tuple(example_inputs))  # a model may write into them
    if schedule is None and fine_tune is None:
        return _prune(model, inputs, settings)
    if dry_run:
        raise ValueError("dry_run looks one step ahead: it takes no schedule and no fine_tune")
    if data is not None and iter(data) is data:
        raise ValueError(
            "data must be iterable more than once, such as a list or DataLoader, with schedule: got an iterator"
        )
    return prune_in_steps(
        _prune, model, inputs, settings, amounts_of(1 if schedule is None else schedule, amount), fine_tune
    )


def _prune(model: nn.Module, inputs: tuple[Any, ...], settings: Settings) -> PruneReport:
    """Everything happens on copies; the model itself is touched at the very end, if at all."""
    masked = copy.deepcopy(model)
    save_memory(masked, "off")
    masked.eval()
    before = _costs(masked, inputs)
    layers = _layers_to_prune(masked, before, settings.ignore)
    trace = trace_channels(masked, inputs, settings) if settings.structured else None
    channels = None if trace is None else trace.channels
    context = Context(masked, layers, channels, settings.data, settings.cost, settings.compat, settings.seed)
    scores = score(settings.criterion, context)
    if settings.weigh == "work":
        scores = {name: s / before[name].pixels for name, s in scores.items()}
    chosen = _filters_to_zero(scores, layers, channels, settings)
    new = any(bool((mask & nonzero_filters(layers[name])).any()) for name, mask in chosen.items())
    for name, mask in chosen.items():
        zero_filters_(layers[name], mask)
    zero = {name: ~nonzero_filters(layer) for name, layer in layers.items()}
    cuts = find_cuts(masked, inputs, trace, settings) if settings.structured else Cuts()
    if not new and not cuts.plan["layers"]:
        share = torch.cat([mask.flatten() for mask in zero.values()]).double().mean()
        raise NothingToPrune(
            f"nothing to prune: {share:.1%} of the filters are zero, and amount is {settings.amount:.1%}"
        )
    add_zeros(cuts.plan, masked, zero)

    pruned = apply_plan(copy.deepcopy(model), cuts.plan)
    error = _proved(model, pruned, masked, cuts, inputs, settings) if settings.verify and cuts.plan["layers"] else None
    after = layer_costs(pruned, inputs)
    report = PruneReport(
        model=None,
        plan=cuts.plan,
        amount=settings.amount,
        criterion=settings.criterion if isinstance(settings.criterion, str) else "given",
        verify_error=error,
        layers=tuple(layers),
        before=before,
        after=after,
        protected=unprunable_layers(masked) | cuts.protected,
        ties=cuts.ties,
        parameters=(stored_numbers(model), stored_numbers(pruned)),
    )
    if not settings.dry_run:
        recipes = recipes_of(model)
        report.original = None if settings.inplace else model
        report.model = apply_plan(model, cuts.plan) if settings.inplace else pruned
        fill_zeros_(report.model, recipes, cuts.plan, settings.fill, settings.seed)
    return report


def _costs(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, LayerCost]:
    try:
        return layer_costs(model, inputs)
    except Exception as error:  # a model may raise anything
        shapes = [list(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in inputs]
        raise ValueError(f"model does not run on example_inputs {shapes}: {first_line(error)}") from error


def _layers_to_prune(model: nn.Module, ran: dict[str, LayerCost], ignore: Sequence[str]) -> dict[str, nn.Conv2d]:
    """Spatial layers that run in eval mode (an auxiliary head does not: it has no saliency), less the ignored."""
    found = spatial_layers(model)
    if not found:
        others = unprunable_layers(model)
        why = "; ".join(f"{name}: {reason}" for name, reason in [*others.items()][:3])
        raise ValueError(f"model has no spatial convolution (Conv2d larger than 1x1) to prune{': ' * bool(why)}{why}")
    layers = {n: m for n, m in found.items() if n in ran and not any(fnmatchcase(n, glob) for glob in ignore)}
    if not layers:
        raise ValueError(f"ignore must leave a spatial convolution, got {list(ignore)} of {', '.join(found)}")
    return layers


def _filters_to_zero(
    scores: dict[str, Tensor], layers: dict[str, nn.Conv2d], channels: ChannelGraph | None, settings: Settings
) -> dict[str, Tensor]:
    """(O, I/groups) bool for each layer."""
    limit = effective_limit(settings.amount, settings.max_layer_amount)
    zeros = {name: ~nonzero_filters(layers[name]) for name in scores}
    if settings.granularity == "filter":
        zeros_first = {name: s.masked_fill(zeros[name], -torch.inf) for name, s in scores.items()}
        return lowest(zeros_first, settings.amount, settings.scope, limit)
    if channels is None:
        return lowest_rows(scores, settings.amount, settings.scope, limit)
    units = find_units(channels, set(scores))
    if not bool(units.can_go.any()):
        reasons = protected_layers(channels, units.groups)
        found = [reasons[name] for name in scores if name in reasons] or [reason for _, reason in channels.protected]
        held = "; ".join(dict.fromkeys(found)) or "layers that are not spatial, or are ignored, write and read them"
        raise NothingToPrune(f"nothing to prune: every channel of the spatial layers must stay: {held}")
    return choose_units(units, scores, zeros, settings.amount, settings.scope, limit)


def _proved(
    model: nn.Module, pruned: nn.Module, masked: nn.Module, cuts: Cuts, inputs: tuple[Any, ...], settings: Settings
) -> float:
    if settings.bn_bias == "drop" or settings.agree == "any":
        for name, columns in cuts.unread.items():
            silence_(masked.get_submodule(name), columns)

    def exact() -> nn.Module:
        return apply_plan(copy.deepcopy(model).double(), cuts.plan)

    heads = cuts.trace.graph if cuts.trace is not None and cuts.trace.has_heads else None
    with eval_mode(pruned):
        try:
            return prove(pruned, masked, inputs, settings.seed, exact, heads)
        except ProofError as error:
            raise ProofError(f"{error}{_where(cuts, pruned, masked, inputs)}; nothing was changed") from None


def _where(cuts: Cuts, pruned: nn.Module, masked: nn.Module, inputs: tuple[Any, ...]) -> str:
    """Names, for an error, the first operation at which the pruned and the masked model differ."""
    if cuts.trace is None or cuts.gone is None:
        return ""
    name = where_they_part(pruned, masked, cuts.trace.graph, cuts.trace.channels, cuts.gone, inputs)
    return f"; they part at {name}" if name else ""
