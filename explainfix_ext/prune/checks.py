"""This module runs the checks of a pruned model: in eval mode, in training mode, and with gates open.

A model may give outputs in training only, and a gate near zero may hide a wrong cut. verify.py compares two models.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext._support.models import eval_mode
from explainfix_ext.memory.save import save_memory
from explainfix_ext.prune.cut.cuts import Cuts
from explainfix_ext.prune.cut.layers import nonzero_filters
from explainfix_ext.prune.cut.plan import apply_plan
from explainfix_ext.prune.trace.inputs import Inputs, copied, random_like
from explainfix_ext.prune.trace.modes import as_in_training_, eval_functions
from explainfix_ext.prune.trace.norms import OfKept, runs_across

from .gates import open_gates_
from .settings import Settings
from .verify import (
    TOLERANCE,
    NotFiniteError,
    VerificationError,
    difference,
    ignore_inputs_,
    verify_pruned,
    where_they_part,
)


def check_pruned(
    model: nn.Module, pruned: nn.Module, masked: nn.Module, cuts: Cuts, inputs: Inputs, settings: Settings
) -> float:
    """Checks that the pruned model computes what the masked one does; returns the largest relative difference.

    Args:
        model: the model as it was.
        pruned: a copy, cut.
        masked: a copy in eval mode, with zeros for the pruned filters; in place, it ignores dropped constants.
        cuts: what was cut.
        inputs: the example.
        settings: the arguments of `channelprune`.

    Raises:
        VerificationError: the two differ; the message says in which check, and where.
    """
    forgets = settings.bn_bias == "drop" or settings.agree == "any"
    if forgets:
        _ignore_what_went_(masked, cuts)

    def exact() -> nn.Module:
        return apply_plan(copy.deepcopy(model).double(), cuts.plan).eval()

    try:
        with eval_mode(pruned):
            error = _compared(pruned, masked, exact, cuts, inputs, settings.seed)
        if not forgets:
            _check_that_constants_went(masked, cuts, inputs, settings)
        error = max(error, _in_training(pruned, masked, exact, inputs, settings.seed))
        return max(error, _with_open_gates(masked, cuts, inputs, settings.seed))
    except VerificationError as reason:
        raise VerificationError(f"{reason}; nothing was changed") from None


def _in_training(
    pruned: nn.Module, masked: nn.Module, exact: Callable[[], nn.Module], inputs: Inputs, seed: int
) -> float:
    """Compares outputs in training mode, which may be more, without dropout; norms compute as in eval mode."""

    def trained(model: nn.Module) -> nn.Module:
        model = copy.deepcopy(model)
        save_memory(model, "off")
        return as_in_training_(model)

    with eval_functions():
        expected = trained(masked)
        try:
            noise = difference(expected, expected, inputs)
        except Exception:  # such as a model that needs targets in training
            return 0.0
        try:
            if noise <= TOLERANCE:
                return verify_pruned(trained(pruned), expected, inputs, seed=seed, exact=lambda: trained(exact()))
            difference(trained(pruned), expected, inputs)  # of random outputs, only the shapes
        except VerificationError as reason:
            raise VerificationError(f"in training mode {reason}") from None
    return 0.0


def _with_open_gates(masked: nn.Module, cuts: Cuts, inputs: Inputs, seed: int) -> float:
    """Compares the models with other scales and biases. What the removed channels hold then does not count."""
    opened = copy.deepcopy(masked)
    open_gates_(opened, seed)
    _ignore_what_went_(opened, cuts)
    layers = {name: {k: v for k, v in cut.items() if k != "bias"} for name, cut in cuts.plan["layers"].items()}

    def pruned(model: nn.Module) -> nn.Module:
        return apply_plan(copy.deepcopy(model), cuts.plan | {"layers": layers})

    try:
        return _compared(pruned(opened), opened, lambda: pruned(copy.deepcopy(opened).double()), cuts, inputs, seed)
    except NotFiniteError:  # the gates held something back that overflows
        return 0.0
    except VerificationError as reason:
        raise VerificationError(f"behind scales near zero, which the check replaces, {reason}") from None


@torch.no_grad()
def _check_that_constants_went(masked: nn.Module, cuts: Cuts, inputs: Inputs, settings: Settings) -> None:
    """Raises VerificationError if a layer that stays reads a removed channel other than zero, or than a constant.

    That shows at the layer, also where a gate behind it hides its output.
    """
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    columns: dict[str, Tensor] = {}
    handles = []
    for name, gone in cuts.unread.items():
        module: Any = masked.get_submodule(name)
        filters = nonzero_filters(module)
        outputs = cuts.plan["layers"].get(name, {}).get("outputs")
        if outputs is not None:
            filters[[k for k in range(len(filters)) if k not in {*outputs}]] = False
        if name in cuts.useless:  # an output that nothing reads may stay, for round_to, without what it reads
            filters[cuts.useless[name]] = False
        groups = getattr(module, "groups", 1)
        columns[name] = (filters.reshape(groups, -1, filters.shape[1]).any(1).reshape(-1) & gone).nonzero().flatten()
        if len(columns[name]):
            seen[name] = []
            handles.append(module.register_forward_pre_hook(_reader(seen[name], columns[name]), with_kwargs=True))
    if not seen:
        return
    try:
        masked(*copied(inputs))
        masked(*random_like(inputs, settings.seed))
    finally:
        for handle in handles:
            handle.remove()
    for name, values in ((name, values) for name, values in seen.items() if values):  # it may run in training only
        read, whole = (torch.cat([run[k] for run in values]) for k in range(2))
        if settings.bn_bias == "fold":
            read = read - read[:1]
        if bool((read.abs() > 1e-4 * whole.abs().amax()).any()):
            raise VerificationError(f"{name} misses a channel that it read")


def _reader(seen: list[tuple[Tensor, Tensor]], columns: Tensor) -> Callable[..., None]:
    """Returns a hook that notes what a layer reads of some of its input channels, and of all, each as a column."""

    def before(module: Any, args: tuple[Tensor, ...], options: dict[str, Tensor]) -> None:
        x = args[0] if args else options["input"]
        axis = -1 if isinstance(module, nn.Linear) else -1 - len(module.kernel_size)
        rows = x.movedim(axis, -1).flatten(0, -2) if x.ndim > 1 else x[None]
        seen.append((rows[:, columns.to(x.device)].clone(), rows.abs().amax(0, keepdim=True)))

    return before


def _compared(
    pruned: nn.Module, masked: nn.Module, exact: Callable[[], nn.Module], cuts: Cuts, inputs: Inputs, seed: int
) -> float:
    """Compares two models; the error names the first operation at which they differ."""
    try:
        return verify_pruned(pruned, masked, inputs, seed=seed, exact=exact)
    except NotFiniteError:
        raise
    except VerificationError as error:
        where = ""
        if cuts.trace is not None and cuts.gone is not None:
            trace = cuts.trace
            where = where_they_part(pruned, masked, inputs, graph=trace.graph, channels=trace.channels, gone=cuts.gone)
        raise VerificationError(f"{error}{where and f'; they part at {where}'}") from None


def _ignore_what_went_(masked: nn.Module, cuts: Cuts) -> None:
    for name, columns in cuts.unread.items():
        ignore_inputs_(masked.get_submodule(name), columns)
    for name, entry in cuts.plan["per_channel"].items():
        if runs_across(module := masked.get_submodule(name)):
            module.register_forward_hook(OfKept(module, entry["kept"]))
