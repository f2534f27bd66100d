"""This module makes, checks, composes and applies pruning plans.

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

from explainfix_ext.nn.fixed_conv2d import FixedConv2d
from explainfix_ext.prune.trace.graph import ChannelGraph, in_groups

from .layers import (
    add_to_bias_,
    by_output,
    channels_of,
    cut_layer_,
    cut_per_channel_,
    cut_tensor_,
    filter_shape,
    zero_filters_,
)

FORMAT, VERSION = "explainfix_ext pruning plan", 1
Plan = dict[str, Any]


def empty_plan() -> Plan:
    """Returns a plan that changes nothing."""
    return {"format": FORMAT, "version": VERSION, "layers": {}, "per_channel": {}, "tensors": {}, "zeros": {}}


def make_pruning_plan(channels: ChannelGraph, model: nn.Module, gone: Tensor) -> Plan:
    """Makes the plan for removing the ids in `gone` (ids,) bool: what each layer and tensor keeps."""
    plan = empty_plan()
    for layer in channels.layers():
        inputs, outputs = ~gone[layer.inputs], ~gone[layer.outputs]
        if layer.part or (bool(inputs.all()) and bool(outputs.all())):
            continue
        module: Any = model.get_submodule(layer.name)
        plan["layers"][layer.name] = {
            "shape": _shape(module),
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
        left = mask[_rows(cut, mask)][:, _columns(cut, mask, module.groups)]
        if bool(left.any()):
            plan["zeros"][name] = {"shape": list(left.shape), "bits": _pack(left)}


def zeros_of(plan: Plan) -> dict[str, Tensor]:
    """Returns name -> (O, I/groups) bool, the filters of the pruned layer that the plan sets to zero."""
    return {name: _unpack(entry) for name, entry in plan["zeros"].items()}


def apply_plan(model: nn.Module, plan: Plan) -> nn.Module:
    """Prunes `model` by a plan, in place. A fresh model can then load the state_dict of the one that was pruned first.

    Args:
        model: of the architecture that the plan was made from, learned or converted.
        plan: `PruneReport.plan`, or what `json.load` reads of its file.

    Returns:
        `model`. Make its optimizer afterwards: cut Parameters are new objects.

    Raises:
        ValueError: this is no plan, or the plan of another model (the layer is named). The model is unchanged then.

    Example:
        >>> report = channelprune(torchvision.models.resnet18(), torch.randn(1, 3, 64, 64), amount=0.9, criterion="l1")
        >>> small = apply_plan(torchvision.models.resnet18(), report.plan)
        >>> small.load_state_dict(report.model.state_dict())
        <All keys matched successfully>
    """
    check_pruning_plan(model, plan)
    for name, cut in plan["layers"].items():
        module = model.get_submodule(name)
        cut_layer_(module, *(None if cut[side] is None else _index(cut[side]) for side in ("inputs", "outputs")))
        if "bias" in cut:
            add_to_bias_(module, torch.tensor(cut["bias"], dtype=torch.float64))
    for name, entry in plan["per_channel"].items():
        cut_per_channel_(model.get_submodule(name), _index(entry["kept"]))
    for name, entry in plan["tensors"].items():
        cut_tensor_(model, name, entry["axis"], _index(entry["kept"]))
    for name, zero in zeros_of(plan).items():
        zero_filters_(model.get_submodule(name), zero)
    return model


def check_pruning_plan(model: nn.Module, plan: Plan) -> None:
    """Raises ValueError if `plan` does not fit `model`."""
    if not isinstance(plan, dict) or plan.get("format") != FORMAT:
        raise ValueError(f"plan must be the plan of a PruneReport, got {str(plan)[:60]!r}")
    if plan.get("version") != VERSION:
        raise ValueError(f"plan must be of version {VERSION}, got {plan.get('version')}")
    modules = dict(model.named_modules())
    for name, cut in plan["layers"].items():
        _expect(name, "weight", cut["shape"], _shape(modules.get(name)))
    _check_tensors(model, modules, plan)
    for name, cut in plan["layers"].items():
        for side, size in zip(("inputs", "outputs"), channels_of(modules[name]), strict=True):
            if cut[side] is not None and not all(0 <= k < size for k in cut[side]):
                raise ValueError(f"plan must keep {side} of {name} in [0, {size}), got {cut[side]}")
    check_zeros(model, plan | {"zeros": {n: e for n, e in plan["zeros"].items() if n not in plan["layers"]}})


def _check_tensors(model: nn.Module, modules: dict[str, nn.Module], plan: Plan) -> None:
    for name, entry in plan["per_channel"].items():
        found = [list(t.shape) for t in modules[name].parameters()][:1] if name in modules else None
        if found != []:  # a norm without Parameters has nothing to compare
            _expect(name, "weight", [entry["channels"]], None if found is None else found[0])
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    for name, entry in plan["tensors"].items():
        size = tensors[name].shape[entry["axis"]] if name in tensors else None
        _expect(name, f"axis {entry['axis']}", entry["channels"], size)


def check_zeros(model: nn.Module, plan: Plan) -> None:
    """Raises ValueError if a layer does not have the filters that `plan` sets to zero."""
    modules = dict(model.named_modules())
    for name, entry in plan["zeros"].items():
        module: Any = modules.get(name)
        _expect(name, "filters", entry["shape"], None if module is None else list(filter_shape(module)))


def _expect(name: str, what: str, expected: Any, found: Any) -> None:
    if expected != found:
        got = "no such layer" if found is None else f"{found}"
        raise ValueError(f"plan is of another model: {name} must have {what} {expected}, got {got}")


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
    return plan


def _compose(first: list[int] | None, second: list[int] | None) -> list[int] | None:
    return second if first is None else first if second is None else [first[i] for i in second]


def _shape(module: Any) -> list[int] | None:
    """Returns the shape of the weight that a layer has, or would have if it were learned; None without a weight."""
    if isinstance(module, FixedConv2d):
        return [*filter_shape(module), *module.kernel_size]
    weight = getattr(module, "weight", None)
    return None if weight is None else list(weight.shape)


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


def _unpack(entry: dict[str, Any]) -> Tensor:
    bits = np.frombuffer(zlib.decompress(base64.b85decode(entry["bits"])), dtype=np.uint8)
    n = int(np.prod(entry["shape"]))
    return torch.from_numpy(np.unpackbits(bits, count=n).astype(bool)).reshape(entry["shape"])
