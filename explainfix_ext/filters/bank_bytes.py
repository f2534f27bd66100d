"""This module writes a FilterBank as one uint8 tensor, which layers put into their state_dict.

The tensor loads under weights_only and fits in safetensors. Its bytes are:

    b"EFXB" | length of the header, 4 bytes little-endian | header, JSON | bytes of the tensors that the header names

A bank with a recipe is saved as the recipe, a few hundred bytes; any other as its tensors, with their hash.
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

from .bank import RECIPE_VERSION, FilterBank, Recipe, same_filters
from .make_bank import remake_bank

_MAGIC = b"EFXB"
_DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16", "uint8")}


def encode_bank(bank: FilterBank) -> Tensor:
    """Encodes a bank as uint8 (n,) on the CPU. A bank on meta without a recipe gives an empty tensor on meta."""
    if bank.device.type == "meta":
        if bank.recipe is None or not bank.shape[0]:
            return torch.empty(0, dtype=torch.uint8, device="meta")
        bank = remake_bank(bank.recipe, bank.shape)
    header: dict[str, Any] = {"shape": list(bank.shape), "fingerprint": bank.fingerprint()}
    if bank.recipe is not None:
        header["recipe"] = dataclasses.asdict(bank.recipe)
    body = b""
    if bank.recipe is None or not bank.shape[0]:  # no filters: a layer that learns its coefficients saves the basis
        bank = bank.to("cpu")
        header["scale"], header["tensors"] = bank.scale, []
        for name, tensor in (("basis", bank.basis), ("coeff", bank.coeff), ("index", bank.index)):
            if tensor is not None:
                dtype = str(tensor.dtype).removeprefix("torch.")
                header["tensors"].append({"name": name, "dtype": dtype, "shape": list(tensor.shape)})
                body += tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        header["sha256"] = hashlib.sha256(body).hexdigest()
    text = json.dumps(header).encode()
    return torch.frombuffer(bytearray(_MAGIC + struct.pack("<I", len(text)) + text + body), dtype=torch.uint8)


def decode_bank(state: Tensor, current: FilterBank | None = None) -> FilterBank:
    """Decodes a bank, on the CPU, from uint8 (n,).

    Args:
        state: what `encode_bank` returned.
        current: a bank to return instead of making an equal one, which takes seconds for the psine filters of a whole
            network.

    Raises:
        ValueError: state is something else or damaged, its recipe or version is unknown, or the filters that the recipe
            makes are not those that were saved.
    """
    if not isinstance(state, Tensor) or state.dtype != torch.uint8 or state.ndim != 1:
        raise ValueError(f"the saved filters must be a uint8 vector, got {state!r:.80}")
    header, body = _split(state.detach().cpu().contiguous().numpy().tobytes())
    try:
        with torch.inference_mode(False), torch.device("cpu"):
            if "tensors" in header:
                return _unpack(header, body)
            recipe = _read_recipe(header["recipe"])
            if current is not None and current.recipe == recipe and list(current.shape) == header["shape"]:
                bank = current
            else:
                bank = remake_bank(recipe, header["shape"])
            same = same_filters(bank.fingerprint(), header["fingerprint"])
    except (KeyError, TypeError, AttributeError, IndexError) as e:
        raise ValueError(f"the saved filters' header is damaged: {type(e).__name__} {e}") from None
    if not same:
        raise ValueError(
            "the saved filters' fingerprint differs from that of the filters made again: the checkpoint is damaged, "
            "or comes from a version that made them otherwise"
        )
    return bank


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    if data[:4] != _MAGIC or len(data) < 8:
        raise ValueError(f"the saved filters must begin with {_MAGIC!r}, got {data[:4]!r}")
    (length,) = struct.unpack("<I", data[4:8])
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as e:
        raise ValueError(f"the saved filters' header is damaged: {e}") from None
    if not isinstance(header, dict):
        raise ValueError(f"the saved filters' header is damaged: {header!r:.80}")
    return header, data[8 + length :]


def _read_recipe(recipe: dict[str, Any]) -> Recipe:
    if recipe.get("version") != RECIPE_VERSION:
        raise ValueError(f"recipe version must be {RECIPE_VERSION}, got {recipe.get('version')}")
    return Recipe(**recipe)


def _unpack(header: dict[str, Any], body: bytes) -> FilterBank:
    if hashlib.sha256(body).hexdigest() != header["sha256"]:
        raise ValueError(f"the saved filters are damaged: the hash of their {len(body)} bytes differs")
    parts: dict[str, Tensor] = {}
    for entry in header["tensors"]:
        dtype = _DTYPES[entry["dtype"]]
        size = math.prod(entry["shape"]) * dtype.itemsize
        data, body = bytearray(body[:size]), body[size:]
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        parts[entry["name"]] = flat.reshape(entry["shape"])
    recipe = _read_recipe(header["recipe"]) if "recipe" in header else None
    return FilterBank(parts["basis"], parts.get("coeff"), parts.get("index"), header["scale"], recipe)
