"""This module writes a FilterBank as one uint8 tensor, which layers put into their state_dict.

The tensor loads under weights_only and fits in safetensors. Its bytes are:

    b"EFXB" | length of the header, 4 bytes little-endian | header, JSON | bytes of the tensors that the header names

A bank with a recipe is saved as the recipe; any other as its tensors, with their hash. Spaces after the JSON make all
recipes one length: programs that load only the tensors whose shapes are the model's take filters of any seed, or none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import struct
from typing import Any

import torch
from torch import Tensor

from explainfix_ext._support.text import first_line, shown

from .bank import RECIPE_VERSION, FilterBank, Recipe
from .fingerprint import same_filters
from .hadamard import HadamardFilters
from .make_bank import remake_bank

_MAGIC = b"EFXB"
_DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16", "uint8", "int16")}
_UNIT = 640  # magic, length and header take a multiple of it; those of the package's own recipes fit once
_HADAMARD = ("columns", "rows", "outputs", "inputs")
_AXES = {"basis": 3, "coeff": 3, "index": 2, "columns": 3, "rows": 5, "outputs": 1, "inputs": 2}
_LONGEST_HEADER = 1 << 16
_MOST_PIXELS, _MOST_WEIGHTS = 1 << 12, 1 << 27  # of filters that no layer's shape vouches for


def encode_bank(bank: FilterBank) -> Tensor:
    """Encodes a bank as uint8 (n,) on the CPU. A bank on meta without a recipe gives an empty tensor on meta."""
    if bank.device.type == "meta":
        if bank.recipe is None or not bank.shape[0]:
            return torch.empty(0, dtype=torch.uint8, device="meta")
        bank = remake_bank(bank.recipe, bank.shape, bank.groups)
    header: dict[str, Any] = {"shape": list(bank.shape), "fingerprint": bank.fingerprint()}
    if bank.groups is not None:
        header["groups"] = bank.groups
    if bank.recipe is not None:
        header["recipe"] = dataclasses.asdict(bank.recipe)
    body = b""
    if bank.recipe is None or not bank.shape[0]:  # no filters: a layer that learns its coefficients saves the basis
        bank = bank.to("cpu")
        header["scale"], header["tensors"] = bank.scale, []
        if bank.hadamard is not None:
            header["hadamard"] = {"order": bank.hadamard.order, "stages": bank.hadamard.stages}
        for name, tensor in zip(_names_of(bank), bank.tensors, strict=True):
            dtype = str(tensor.dtype).removeprefix("torch.")
            header["tensors"].append({"name": name, "dtype": dtype, "shape": list(tensor.shape)})
            body += tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        header["sha256"] = hashlib.sha256(body).hexdigest()
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _UNIT)
    return torch.frombuffer(bytearray(_MAGIC + struct.pack("<I", len(text)) + text + body), dtype=torch.uint8)


def _names_of(bank: FilterBank) -> tuple[str, ...]:
    """Returns the names of `bank.tensors`."""
    return ("basis", *(_HADAMARD if bank.hadamard is not None else ("coeff",) if bank.index is None else ("index",)))


def decode_bank(
    state: Tensor, current: FilterBank | None = None, shape: tuple[int, int, int, int] | None = None
) -> FilterBank:
    """Decodes a bank, on the CPU, from uint8 (n,).

    Args:
        state: what `encode_bank` returned; or the same bytes as other numbers, as `.half()` of a state_dict makes them.
        current: a bank to return instead of making an equal one, which takes seconds for the psine filters of a whole
            network.
        shape: (O, I/groups, kh, kw) of the layer that the filters are for. No other are made: a few bytes may ask for
            any number.

    Raises:
        ValueError: state is something else or damaged, its recipe or version is unknown, its filters are of another
            shape or not finite, or those that the recipe makes are not those that were saved.
    """
    try:
        with torch.inference_mode(False), torch.device("cpu"):
            header, body = _split(_bytes_of(state))
            return _checked(_bank_of(header, body, current, shape), header)
    except ValueError as e:
        raise ValueError(f"{first_line(e):.500}") from None
    except Exception as e:  # the header says what is called with what, an initialisation of another program included
        raise ValueError(f"the saved filters' header is damaged: {type(e).__name__} {first_line(e):.200}") from None


def _bytes_of(state: Tensor) -> bytes:
    if not isinstance(state, Tensor) or state.ndim != 1 or state.is_complex():
        raise ValueError(f"the saved filters must be a uint8 vector, got {_described(state)}")
    if state.is_meta:
        raise ValueError("the saved filters are on the meta device: they have no bytes to load")
    if state.numel() > 1 and state.stride(0) == 0:
        raise ValueError(f"the saved filters are damaged: one byte, repeated {state.numel()} times")
    state = state.detach().cpu()
    if state.dtype != torch.uint8:
        whole = state.double().round()
        if whole[:4].tolist() != list(_MAGIC):
            raise ValueError(f"the saved filters must be a uint8 vector, got {_described(state)}")
        if not bool(((whole - state.double()).abs() < 1e-3).all()) or whole.min() < 0 or whole.max() > 255:
            raise ValueError(
                f"the saved filters were averaged or scaled as if they were weights, and are lost ({state.dtype}): "
                f"leave every _extra_state as one of the checkpoints has it"
            )
        state = whole.to(torch.uint8)
    return state.contiguous().numpy().tobytes()


def _described(state: Any) -> str:
    return f"{state.dtype} {list(state.shape)}" if isinstance(state, Tensor) else shown(state)


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    if data[:4] != _MAGIC or len(data) < 8:
        raise ValueError(f"the saved filters must begin with {_MAGIC!r}, got {data[:4]!r}")
    (length,) = struct.unpack("<I", data[4:8])
    if length > min(_LONGEST_HEADER, len(data) - 8):
        raise ValueError(f"the saved filters' header is damaged: it has {length} bytes, of {len(data)} in all")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as e:
        raise ValueError(f"the saved filters' header is damaged: {first_line(e)}") from None
    if not isinstance(header, dict):
        raise ValueError(f"the saved filters' header is damaged: {shown(header)}")
    return header, data[8 + length :]


def _bank_of(
    header: dict[str, Any], body: bytes, current: FilterBank | None, shape: tuple[int, ...] | None
) -> FilterBank:
    found = _read_shape(header["shape"], 4)
    if shape is not None and found[0] and found != shape:  # no filters: of a layer that learns its coefficients
        smaller = found[2:] == shape[2:] and found[0] <= shape[0] and found[1] <= shape[1]
        hint = "; if it is a pruned network's, efx.apply_plan(model, plan) comes first" if smaller else ""
        raise ValueError(f"bank must be [O, I/groups, kh, kw] = {list(shape)}, got {list(found)}{hint}")
    unbounded = shape is None and ("tensors" not in header or "hadamard" in header)  # few numbers make many filters
    if unbounded and (math.prod(found[2:]) > _MOST_PIXELS or math.prod(found) > _MOST_WEIGHTS):
        raise ValueError(f"the saved filters are too many to be made for no layer: {list(found)}")
    recipe = _read_recipe(header["recipe"]) if "recipe" in header else None
    if "tensors" in header:
        return _unpack(header, body, recipe)
    if recipe is None:
        raise ValueError("the saved filters' header is damaged: it has neither a recipe nor tensors")
    (groups,) = _read_shape([header.get("groups", 1)], 1)
    if current is not None and _is_made(current, recipe, found, groups):
        return current
    return remake_bank(recipe, found, groups)


def _is_made(bank: FilterBank, recipe: Recipe, shape: tuple[int, ...], groups: int) -> bool:
    """Tells whether `bank` is what the recipe makes."""
    same = bank.recipe == recipe and bank.shape == shape and bank.groups in (None, groups)
    return same and bank.device.type != "meta"


def _read_shape(shape: Any, axes: int) -> tuple[int, ...]:
    good = isinstance(shape, list) and len(shape) == axes and all(type(n) is int and 0 <= n < 1 << 31 for n in shape)
    if not good:
        raise ValueError(f"the saved filters' header is damaged: shape {shown(shape)}")
    return tuple(shape)


def _read_recipe(recipe: dict[str, Any]) -> Recipe:
    version = recipe.get("version")
    if type(version) is not int or not 1 <= version <= RECIPE_VERSION:
        raise ValueError(f"recipe version must be 1 to {RECIPE_VERSION}, got {shown(version)}")
    return Recipe(**recipe)


def _unpack(header: dict[str, Any], body: bytes, recipe: Recipe | None) -> FilterBank:
    if hashlib.sha256(body).hexdigest() != header["sha256"]:
        raise ValueError(f"the saved filters are damaged: the hash of their {len(body)} bytes differs")
    parts: dict[str, Tensor] = {}
    for entry in header["tensors"]:
        dtype, shape = _DTYPES[entry["dtype"]], _read_shape(entry["shape"], _AXES[entry["name"]])
        size = math.prod(shape) * dtype.itemsize
        if size > len(body):
            raise ValueError(f"the saved filters are damaged: {shown(entry['name'])} has {len(body)} bytes of {size}")
        data, body = bytearray(body[:size]), body[size:]
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        parts[entry["name"]] = flat.reshape(shape)
    given = {name: parts[name] for name in _HADAMARD if name in parts}
    hadamard = HadamardFilters(**given, **header["hadamard"]) if given else None  # type: ignore[arg-type]
    bank = FilterBank(parts["basis"], parts.get("coeff"), parts.get("index"), header["scale"], recipe, hadamard)
    if list(bank.shape) != header["shape"]:
        raise ValueError(f"the saved filters are damaged: shape {header['shape']} with tensors of {list(bank.shape)}")
    return bank


def _checked(bank: FilterBank, header: dict[str, Any]) -> FilterBank:
    """Returns `bank`, if its filters are finite numbers, and those of which the header has the fingerprint."""
    mark = bank.fingerprint()
    double = bank.coeff is not None and bank.coeff.dtype == torch.float64
    largest = torch.finfo(torch.float64 if double else torch.float32).max
    sizes = (mark["norm"], float(bank.basis.abs().max()), abs(bank.scale))
    if not all(size <= largest for size in sizes):  # NaN is not
        raise ValueError(f"the saved filters must be finite, got NaN, infinity or more than {largest:.2g}")
    if not same_filters(mark, header["fingerprint"]):
        raise ValueError(
            "the saved filters' fingerprint differs from that of the filters made again: the checkpoint is damaged, "
            "or comes from a version that made them otherwise"
        )
    given = bank.hadamard is not None and bank.recipe is None
    if given and not same_filters(bank.with_coefficients().fingerprint(), mark):
        raise ValueError("the saved filters are damaged: their basis is not orthonormal, or not of their functions")
    return bank
