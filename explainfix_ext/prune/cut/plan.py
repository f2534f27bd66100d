"""This module makes, composes and applies pruning plans; plan_check.py checks them.

A plan is a dict that JSON can hold. It says which channels every layer keeps, what is added to biases, and which
filters are zero. `PruneReport.plan` is one, and `apply_plan` prunes another model of the same architecture by it.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from explainfix_ext.prune.trace.graph import ChannelGraph, in_groups

from .layers import (
    add_to_bias_,
    by_output,
    cut_layer_,
    cut_per_channel_,
    cut_tensor_,
    zero_filters_,
)
from .plan_check import FORMAT, PARTS, VERSION, Plan, check_pruning_plan, unpacked_zeros, weight_shape
from .sizes import set_size_
from .undo import unchanged_on_error


def empty_plan() -> Plan:
    """Returns a plan that changes nothing."""
    return {"format": FORMAT, "version": VERSION, **{part: {} for part in PARTS}}


def make_pruning_plan(channels: ChannelGraph, model: nn.Module, gone: Tensor) -> Plan:
    """Makes the plan for removing the ids in `gone` (ids,) bool: what each layer and tensor keeps."""
    plan = empty_plan()
    for layer in channels.layers():
        inputs, outputs = ~gone[layer.inputs], ~gone[layer.outputs]
        if layer.part or (bool(inputs.all()) and bool(outputs.all())):
            continue
        module: Any = model.get_submodule(layer.name)
        plan["layers"][layer.name] = {
            "shape": weight_shape(module),
            "inputs": None if bool(inputs.all()) else _kept(inputs),
            "outputs": None if bool(outputs.all()) else _kept(outputs),
        }
    for use in channels.per_channel:
        kept = ~gone[use.ids]
        if bool(kept.all()):
            continue
        entry: dict[str, Any] = {"channels": len(kept), "kept": _kept(kept)}
        if use.axis is None:
            plan["per_channel"][use.name] = entry
        else:
            plan["tensors"][use.name] = entry | {"axis": use.axis}
    return plan


def add_folds(plan: Plan, channels: ChannelGraph, model: nn.Module, gone: Tensor, constants: Tensor) -> None:
    """Notes in `plan` what is added to biases, so that channels with a constant value can go.

    A layer that reads a constant adds the sum of the filter's weights times the constant to every output pixel.

    Args:
        plan: from `make_pruning_plan`.
        channels, model: the graph, and the model before it is cut.
        gone: (ids,) bool, the ids that go.
        constants: (ids,) float64, their values; zero where there is nothing to add.
    """
    for layer in channels.layers():
        inputs, outputs = in_groups(layer)
        if layer.part or not bool((gone[inputs] & (constants[inputs] != 0)).any()):
            continue
        values = torch.where(gone[inputs], constants[inputs], 0).double()
        module: Any = model.get_submodule(layer.name)
        weight = module.weight.detach().double().cpu()
        sums = by_output(module, weight.flatten(2).sum(2) if weight.ndim > 2 else weight)
        sums = sums.reshape(layer.groups, -1, inputs.shape[1])
        addition = torch.einsum("goi,gi->go", sums, values).reshape(-1)
        kept = ~gone[outputs.reshape(-1)]
        plan["layers"][layer.name]["bias"] = addition[kept].tolist()


def add_zeros(plan: Plan, model: nn.Module, zero: dict[str, Tensor]) -> None:
    """Notes in `plan` which filters are zero, by their places in the layers that it leaves.

    Args:
        zero: layer -> (O, I/groups) bool, its zero filters before the cut.
    """
    for name, mask in zero.items():
        module: Any = model.get_submodule(name)
        cut = plan["layers"].get(name, {})
        left = mask[_rows(cut, mask)][:, _columns(cut, mask, getattr(module, "groups", 1))]
        if bool(left.any()):
            plan["zeros"][name] = {"shape": list(left.shape), "bits": _pack(left)}


def zeros_of(plan: Plan) -> dict[str, Tensor]:
    """Returns name -> (O, I/groups) bool, the filters of the pruned layer that the plan sets to zero."""
    return {name: unpacked_zeros(entry) for name, entry in plan["zeros"].items()}


def apply_plan(model: nn.Module, plan: Plan) -> nn.Module:
    """Prunes `model` by a plan, in place. A fresh model can then load the state_dict of the one that was pruned first.

    The whole plan is checked first, as it may come from a file: what each layer keeps, adds and zeroes must be possible
    for that layer. Whether layers fit together is the plan's affair; `channelprune` verifies those that it makes.

    Args:
        model: of the architecture that the plan was made from, learned or converted.
        plan: `PruneReport.plan`, or what `json.load` reads of its file.

    Returns:
        `model`. Make its optimizer afterwards, because cut Parameters are new objects.

    Raises:
        TypeError: `model` is no nn.Module.
        ValueError: this is no plan, a damaged one, or that of another model (the layer is named). The model is
            unchanged then, as it is if anything else goes wrong.

    Examples:
        >>> report = channelprune(torchvision.models.resnet18(), torch.randn(1, 3, 64, 64), amount=0.9, criterion="l1")
        >>> small = apply_plan(torchvision.models.resnet18(), report.plan)
        >>> small.load_state_dict(report.model.state_dict())
        <All keys matched successfully>

        The equivalent PyTorch, for two layers in a row:

        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> plan = channelprune(model, torch.randn(1, 3, 8, 8), amount=0.5, criterion="l1", granularity="channel").plan
        >>> kept = torch.tensor(plan["layers"]["0"]["outputs"])
        >>> expected = [model[0].weight[kept], model[2].weight[:, kept]]
        >>> _ = apply_plan(model, plan)
        >>> torch.equal(model[0].weight, expected[0]), torch.equal(model[2].weight, expected[1])
        (True, True)
    """
    check_pruning_plan(model, plan)
    with unchanged_on_error(model, [name for name in plan["zeros"] if name not in plan["layers"]]):
        _apply_(model, plan)
    return model


def _apply_(model: nn.Module, plan: Plan) -> None:
    for name, cut in plan["layers"].items():
        module = model.get_submodule(name)
        cut_layer_(module, *(None if cut[side] is None else _index(cut[side]) for side in ("inputs", "outputs")))
        if "bias" in cut:
            add_to_bias_(module, torch.tensor(cut["bias"], dtype=torch.float64))
    for name, entry in plan["per_channel"].items():
        cut_per_channel_(model.get_submodule(name), _index(entry["kept"]))
    for name, entry in plan["tensors"].items():
        cut_tensor_(model, name, entry["axis"], _index(entry["kept"]))
    for name, entry in plan.get("sizes", {}).items():
        set_size_(model, name, entry["left"])
    for name, zero in zeros_of(plan).items():
        zero_filters_(model.get_submodule(name), zero)


def compose_plans(first: Plan, second: Plan) -> Plan:
    """Returns the plan that does what `first` and then `second` do."""
    plan = empty_plan() | {"zeros": second["zeros"]}
    for name in first["layers"] | second["layers"]:
        a, b = first["layers"].get(name), second["layers"].get(name)
        entry = dict(a or b)
        if a and b:
            for side in ("inputs", "outputs"):
                entry[side] = _compose(a[side], b[side])
            biases = [np.asarray(e["bias"]) for e in (a, b) if "bias" in e]
            if "bias" in a and b["outputs"] is not None:
                biases[0] = biases[0][b["outputs"]]
            if biases:
                entry["bias"] = np.sum(biases, axis=0).tolist()
        plan["layers"][name] = entry
    for kind in ("per_channel", "tensors"):
        for name in first[kind] | second[kind]:
            a, b = first[kind].get(name), second[kind].get(name)
            plan[kind][name] = (a or b) if not (a and b) else a | {"kept": _compose(a["kept"], b["kept"])}
    before = first.get("sizes", {})
    sizes = {
        name: entry | {"whole": before.get(name, entry)["whole"]} for name, entry in second.get("sizes", {}).items()
    }
    return plan | ({"sizes": before | sizes} if before or sizes else {})


def _compose(first: list[int] | None, second: list[int] | None) -> list[int] | None:
    return second if first is None else first if second is None else [first[i] for i in second]


def _kept(flags: Tensor) -> list[int]:
    return flags.nonzero().flatten().tolist()


def _index(kept: list[int]) -> Tensor:
    return torch.tensor(kept, dtype=torch.long)


def _rows(cut: dict[str, Any], mask: Tensor) -> Tensor:
    return torch.arange(len(mask)) if cut.get("outputs") is None else _index(cut["outputs"])


def _columns(cut: dict[str, Any], mask: Tensor, groups: int) -> Tensor:
    """Returns the columns of (O, I/groups) that stay, which are the same in every group that stays."""
    per_group = mask.shape[1]
    if cut.get("inputs") is None:
        return torch.arange(per_group)
    inputs = _index(cut["inputs"])
    return inputs[inputs // per_group == inputs[0] // per_group] % per_group


def _pack(mask: Tensor) -> str:
    return base64.b85encode(zlib.compress(np.packbits(mask.numpy()).tobytes())).decode()
