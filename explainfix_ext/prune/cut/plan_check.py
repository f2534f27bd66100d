"""This module checks a whole pruning plan, against its schema and against a model, before the model is changed.

A plan is read from a file that anybody may have written. What passes here is cut by layers.py without another look, so
every entry is checked by name, type, length and range. Channels of different layers are not compared: a plan that cuts
one of two layers that belong together gives a model that does not run.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from explainfix_ext._support.models import check_is_module
from explainfix_ext._support.text import first_line, shown
from explainfix_ext.nn.fixed_conv import FixedConv
from explainfix_ext.prune.trace.kinds import MIXING, NORMS, TRANSPOSED, why_uncuttable

from .layers import channels_of, filter_shape
from .sizes import attribute_of

FORMAT, VERSION = "explainfix_ext pruning plan", 1
Plan = dict[str, Any]
# Part of a plan -> what each of its entries has, and what it may have besides.
PARTS: dict[str, tuple[set[str], set[str]]] = {
    "layers": ({"shape", "inputs", "outputs"}, {"bias"}),
    "per_channel": ({"channels", "kept"}, set()),
    "tensors": ({"channels", "kept", "axis"}, set()),
    "zeros": ({"shape", "bits"}, set()),
}
# The part that only plans have which change attributes of modules.
MORE: dict[str, tuple[set[str], set[str]]] = {"sizes": ({"whole", "left"}, set())}


def check_pruning_plan(model: nn.Module, plan: Plan) -> None:
    """Raises ValueError, of one line, unless `plan` can be applied to `model`; TypeError if that is no model."""
    check_is_module(model)
    _check_schema(plan)
    modules = dict(model.named_modules())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise ValueError(f"model must have run once before it is pruned: {name} is lazy")
    left = {name: _check_layer(name, cut, modules.get(name)) for name, cut in plan["layers"].items()}
    for name, entry in plan["per_channel"].items():
        _check_per_channel(name, entry, modules.get(name))
    _check_tensors(model, modules, plan)
    for name, entry in plan.get("sizes", {}).items():
        _check_size(name, entry, attribute_of(model, name))
    _check_zeros(plan, modules, left)


def check_zeros(model: nn.Module, plan: Plan) -> None:
    """Raises ValueError, of one line, unless `model` has the filters that `plan` sets to zero, as a pruned one has."""
    _check_schema(plan)
    _check_zeros(plan, dict(model.named_modules()), {})


def unpacked_zeros(entry: dict[str, Any]) -> Tensor:
    """Returns (O, I/groups) bool: the zero filters in an entry of `zeros`, inflated to no more than its shape needs.

    Raises:
        ValueError: the bits are not of that many filters.
    """
    count = math.prod(entry["shape"])
    size = -(-count // 8)
    if not isinstance(entry["bits"], str) or len(entry["bits"]) > 64 + 2 * size:  # zlib makes nothing so much longer
        raise ValueError(f"bits must be the text of {count} filters, got {shown(entry['bits'])}")
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(base64.b85decode(entry["bits"]), size + 1)
    except (ValueError, zlib.error) as error:
        raise ValueError(f"bits must be zlib in base85: {first_line(error)}") from None
    if len(data) != size or not stream.eof or stream.unused_data:
        raise ValueError(f"bits must be of {count} filters, {size} bytes, and hold more or less")
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=count)
    return torch.from_numpy(bits.astype(bool)).reshape(entry["shape"])


def weight_shape(module: Any) -> list[int]:
    """Returns the shape of the weight that a layer has, or would have if it were learned."""
    if isinstance(module, FixedConv):
        return [*filter_shape(module), *module.kernel_size]
    return list(module.weight.shape)


def _check_schema(plan: Any) -> None:
    if not isinstance(plan, dict) or not _is_text(plan.get("format")) or plan["format"] != FORMAT:
        raise ValueError(f"plan must be the plan of a PruneReport, got {shown(plan)}")
    if not _is_integer(plan.get("version")) or plan["version"] != VERSION:
        raise ValueError(f"plan must be of version {VERSION}, got {shown(plan.get('version'))}")
    _check_keys("plan", plan, {"format", "version", *PARTS}, {*MORE})
    for part, (needed, optional) in {**PARTS, **{part: keys for part, keys in MORE.items() if part in plan}}.items():
        if not isinstance(plan[part], dict):
            raise ValueError(f"{part} of plan must be a dict, got {shown(plan[part])}")
        for name, entry in plan[part].items():
            if not _is_text(name):
                raise ValueError(f"{part} of plan must have names, got {shown(name)}")
            _check_keys(f"{part} of plan: {_line(name)}", entry, needed, optional)


def _check_keys(what: str, entry: Any, needed: set[str], optional: set[str]) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{what} must be a dict, got {shown(entry)}")
    if not needed <= entry.keys() <= needed | optional:
        raise ValueError(f"{what} must have {', '.join(sorted(needed))}, got {shown(list(entry))}")


def _check_layer(name: str, cut: dict[str, Any], module: Any) -> tuple[int, int]:
    """Returns how many filters the cut leaves: (O, I/groups)."""
    if module is not None and (reason := _why_not_cut(module)):
        raise ValueError(f"plan is of another model: {name} cannot be cut: {reason}")
    _expect(name, "weight", cut["shape"], None if module is None else weight_shape(module))
    inputs, outputs = (
        [*range(size)] if cut[side] is None else _checked_kept(f"{side} of {name}", cut[side], size)
        for side, size in zip(("inputs", "outputs"), channels_of(module), strict=True)
    )
    columns = _checked_columns(name, module, inputs, outputs)
    if "bias" in cut:
        dtype = (module.weight if module.bias is None else module.bias).dtype
        _check_bias(name, cut["bias"], len(outputs), torch.finfo(dtype).max)
    return len(outputs), columns


def _why_not_cut(module: nn.Module) -> str:
    return why_uncuttable(module) if isinstance(module, MIXING) else f"it is a {type(module).__name__}"


def _checked_kept(what: str, kept: Any, size: int) -> list[int]:
    """Returns `kept`, if it is a list of channels in [0, size), each once and in order."""
    if not isinstance(kept, list) or not 1 <= len(kept) <= size or not all(map(_is_integer, kept)):
        raise ValueError(f"plan must keep 1 to {size} {what}, a list of integers, got {shown(kept)}")
    if not 0 <= kept[0] <= kept[-1] < size or any(a >= b for a, b in pairwise(kept)):
        raise ValueError(f"plan must keep {what} in [0, {size}), each once and in order, got {shown(kept)}")
    return kept


def _checked_columns(name: str, module: Any, inputs: list[int], outputs: list[int]) -> int:
    """Returns how many inputs each filter keeps. All groups that stay must have as many channels.

    Along the second axis of the weight, all groups have the same numbers: there they must keep the same.
    """
    groups = getattr(module, "groups", 1)
    sides = [_by_group(kept, size // groups) for kept, size in zip((inputs, outputs), channels_of(module), strict=True)]
    columns, rows = sides[::-1] if isinstance(module, TRANSPOSED) else sides
    alike = len({*map(tuple, columns.values())}) == len({*map(len, rows.values())}) == 1
    if not alike or sides[0].keys() != sides[1].keys():
        raise ValueError(
            f"plan must keep as many channels in each of the {groups} groups of {name}, got {len(inputs)} inputs and "
            f"{len(outputs)} outputs"
        )
    return len(next(iter(sides[0].values())))


def _by_group(kept: Iterable[int], size: int) -> dict[int, list[int]]:
    """Returns group -> the channels that it keeps, counted from its first."""
    groups: dict[int, list[int]] = {}
    for channel in kept:
        groups.setdefault(channel // size, []).append(channel % size)
    return groups


def _check_bias(name: str, bias: Any, count: int, most: float) -> None:
    if not isinstance(bias, list) or len(bias) != count:
        raise ValueError(f"plan must add one number to each of the {count} biases of {name}, got {shown(bias)}")
    for number in bias:
        if type(number) not in (int, float) or not -most <= number <= most:
            raise ValueError(f"plan must add finite numbers to the bias of {name}, got {shown(number)}")


def _check_per_channel(name: str, entry: dict[str, Any], module: Any) -> None:
    found: Any = None
    if module is not None:
        if not isinstance(module, (*NORMS, nn.GroupNorm, nn.LayerNorm)):
            raise ValueError(f"plan is of another model: {name} must be a norm or PReLU, got {type(module).__name__}")
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        attributes = ("num_features", "num_parameters", "num_channels")
        sizes = {t.shape[0] for t in tensors if t.ndim == 1} | {getattr(module, a, None) for a in attributes} - {None}
        sizes |= {*getattr(module, "normalized_shape", ())}
        found = sizes.pop() if len(sizes) == 1 else sorted(sizes)
    _expect(name, "channels", entry["channels"], found)
    kept = _checked_kept(f"channels of {name}", entry["kept"], found)
    if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
        whole = found // module.num_groups
        if any(len(group) != whole for group in _by_group(kept, whole).values()):
            raise ValueError(f"plan must keep whole groups of {whole} channels of {name}, got {shown(kept)}")


def _check_tensors(model: nn.Module, modules: dict[str, nn.Module], plan: Plan) -> None:
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    for name, entry in plan["tensors"].items():
        tensor, axis, owner = tensors.get(name), entry["axis"], name.rpartition(".")[0]
        if owner in plan["layers"] or owner in plan["per_channel"] or isinstance(modules.get(owner), FixedConv):
            raise ValueError(f"plan must cut {_line(owner)} as a layer, and not its {_line(name)} by itself")
        if tensor is not None and not (_is_integer(axis) and 0 <= axis < tensor.ndim):
            raise ValueError(f"plan must cut {name} along an axis in [0, {tensor.ndim}), got {shown(axis)}")
        size = None if tensor is None else tensor.shape[axis]
        _expect(name, f"axis {shown(axis)}", entry["channels"], size)
        if size is not None:
            _checked_kept(f"channels of {name}", entry["kept"], size)


def _check_size(name: str, entry: dict[str, Any], found: Any) -> None:
    whole, left = ([*v] if isinstance(v, (tuple, list)) else v for v in (entry["whole"], entry["left"]))
    found = [*found] if isinstance(found, (tuple, list)) else found
    sizes, changed = (v if isinstance(v, list) else [v] for v in (whole, left))
    if found is None or not all(map(_is_integer, sizes)) or whole != found:
        got = "no such attribute" if found is None else shown(found)
        raise ValueError(f"plan is of another model: {_line(name)} must be {shown(whole)}, got {got}")
    fits = type(left) is type(whole) and len(changed) == len(sizes) and all(map(_is_integer, changed))
    if not fits or any(not 0 <= new <= old for new, old in zip(changed, sizes, strict=True)):
        raise ValueError(f"plan must make {_line(name)} no larger than {shown(whole)}, got {shown(left)}")


def _check_zeros(plan: Plan, modules: dict[str, nn.Module], left: dict[str, tuple[int, int]]) -> None:
    """Checks the zero filters of layers that have as many as `left` says, or, if it says nothing, as they have now."""
    for name, entry in plan["zeros"].items():
        module: Any = modules.get(name)
        if module is not None and (reason := _why_not_cut(module)):
            raise ValueError(f"plan is of another model: {name} has no filters to zero: {reason}")
        found = None if module is None else list(left.get(name, filter_shape(module)))
        _expect(name, "filters", entry["shape"], found)
        try:
            unpacked_zeros(entry)
        except ValueError as error:
            raise ValueError(f"plan must say which filters of {name} are zero: {error}") from None


def _expect(name: str, what: str, expected: Any, found: Any) -> None:
    exact = all(map(_is_integer, expected)) if isinstance(expected, list) else _is_integer(expected)
    if not exact or expected != found:
        got = "no such layer" if found is None else f"{found}"
        raise ValueError(f"plan is of another model: {_line(name)} must have {what} {shown(expected)}, got {got}")


def _is_integer(value: Any) -> bool:
    return type(value) is int  # True is an int for isinstance


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _line(name: str) -> str:
    """Returns a name as an error message can hold it: those of a plan need not be those of a model."""
    return name if name.isprintable() and len(name) <= 100 else shown(name)
