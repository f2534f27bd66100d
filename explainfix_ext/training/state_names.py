"""Finds the state_dict in the files of other programs, brings its names to a model's, and tells why it does not fit."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import Tensor

# Where programs put it: this package and torchvision, timm and Lightning, many scripts; averaged weights come last.
_PLACES = ("model", "state_dict", "model_state_dict", "state_dict_ema", "model_ema")
# What a wrapper puts before each name: DDP and averaged models, Lightning modules.
_WRAPPERS = ("module.", "model.", "network.", "net.", "backbone.")
_OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")
_SHOWN = 3


def state_dict_of(checkpoint: Any) -> dict[str, Tensor] | None:
    """Returns the state_dict that a file holds, by itself or beside other things; None if there is none."""
    for _ in _PLACES:
        inner = next((checkpoint[name] for name in _PLACES if isinstance(checkpoint.get(name), dict)), None)
        if inner is None:
            break
        checkpoint = inner
    named = all(isinstance(name, str) and isinstance(value, Tensor) for name, value in checkpoint.items())
    return checkpoint if named else None


def with_names_of(own: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns `state` under the names of a model's own state_dict, where only wrappers or an old version differ.

    What lies outside the wrapper, such as a loss of a Lightning module, is left out.
    """
    if state.keys() == own.keys():
        return state
    found = {name if name in own else name.replace("_orig_mod.", ""): value for name, value in state.items()}
    while own.keys().isdisjoint(found):
        wrapper = next((w for w in _WRAPPERS if any(name.startswith(w) for name in found)), None)
        if wrapper is None:
            return state
        found = {name[len(wrapper) :]: value for name, value in found.items() if name.startswith(wrapper)}
    for name in list(found):
        old = _OLD_DENSENET.fullmatch(name)
        if old and name not in own:
            found["".join(old.groups())] = found.pop(name)
    counters = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")}
    return counters | found  # torch 0.4 saved none


def misfit(own: dict[str, Any], state: dict[str, Tensor]) -> str | None:
    """Tells in one line why a state_dict does not fit a model's own; None if names and shapes are the same."""
    missing, others = [n for n in own if n not in state], [n for n in state if n not in own]
    sizes = [
        f"{name} {list(state[name].shape)}, expected {list(value.shape)}"
        for name, value in own.items()
        if name in state and not _follows(name, own) and state[name].shape != value.shape
    ]
    if not (missing or others or sizes):
        return None
    parts = []
    for count, what in ((sizes, "size mismatch"), (missing, "missing"), (others, "not the model's")):
        if count:
            parts.append(f"{what}, {len(count)} of {len(state if count is others else own)}: {_some(count)}")
    return f"{_cause(own, state, missing)}; {'; '.join(parts)}"


def _follows(name: str, own: dict[str, Any]) -> bool:
    """Tells whether a layer with fixed filters takes the tensor in any size: the filters, and the mix of them."""
    layer, _, kind = name.rpartition(".")
    return kind == "_extra_state" or (kind == "coeff" and f"{layer}._extra_state".lstrip(".") in own)


def _cause(own: dict[str, Any], state: dict[str, Tensor], missing: list[str]) -> str:
    differ = own.keys() ^ state.keys()
    if differ and all(name.rpartition(".")[2] == "pointwise" for name in differ):
        its, ours = ("without", "with") if missing else ("with", "without")
        return f"it was converted {its} pointwise=True and the model {ours} it"
    if len(missing) < len(own):
        if missing:
            return "another version of the network, or another one"
        return "the same names, in other sizes" if len(state) == len(own) else "a network of more parts"
    before = next((name[: -len(missing[0])] for name in state if missing and name.endswith("." + missing[0])), None)
    return "another network" if before is None else f"its names begin with {before!r}: take that off"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(f"{name:.120}" for name in names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)
