"""A FilterBank as one uint8 tensor, for checkpoints: it loads under weights_only and fits in safetensors.

    b"EFXB" | length of the header, 4 bytes little-endian | header, JSON | bytes of the tensors that the header names

A bank that can be made again is its recipe, a few hundred bytes; any other is its tensors.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from typing import Any

import torch
from torch import Tensor

from .bank import RECIPE_VERSION, FilterBank, Recipe, same_filters
from .initializers import make_bank

_MAGIC = b"EFXB"


def encode_bank(bank: FilterBank) -> Tensor:
    """Bank -> uint8 (n,) on the CPU."""
    bank = bank.to("cpu")
    header: dict[str, Any] = {"shape": list(bank.shape), "fingerprint": bank.fingerprint()}
    blobs: list[Tensor] = []
    if bank.recipe is not None:
        header["recipe"] = dataclasses.asdict(bank.recipe)
    else:
        header["scale"] = bank.scale
        header["tensors"] = []
        for name, tensor in (("basis", bank.basis), ("coeff", bank.coeff), ("index", bank.index)):
            if tensor is not None:
                dtype = str(tensor.dtype).removeprefix("torch.")
                header["tensors"].append({"name": name, "dtype": dtype, "shape": list(tensor.shape)})
                blobs.append(tensor.contiguous().flatten().view(torch.uint8))
    text = json.dumps(header).encode()
    prefix = _MAGIC + struct.pack("<I", len(text)) + text
    return torch.cat([torch.frombuffer(bytearray(prefix), dtype=torch.uint8), *blobs])


def decode_bank(state: Tensor) -> FilterBank:
    """uint8 (n,) -> the bank, on the CPU.

    Raises:
        ValueError: not such a tensor, cut short, of an unknown recipe or version, or the filters made again are not
            those that were saved.
    """
    if not isinstance(state, Tensor) or state.dtype != torch.uint8 or state.ndim != 1:
        raise ValueError(f"the saved filters must be a uint8 vector, got {state!r:.80}")
    data = state.detach().cpu().contiguous().numpy().tobytes()
    header, body = _split(data)
    bank = _remake(header["recipe"], header["shape"]) if "recipe" in header else _unpack(header, body)
    if not same_filters(bank.fingerprint(), header["fingerprint"]):
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
        return json.loads(data[8 : 8 + length]), data[8 + length :]
    except ValueError as e:
        raise ValueError(f"the saved filters' header is damaged: {e}") from None


def _remake(recipe: dict[str, Any], shape: list[int]) -> FilterBank:
    if recipe.get("version") != RECIPE_VERSION:
        raise ValueError(f"recipe version must be {RECIPE_VERSION}, got {recipe.get('version')}")
    return remake_bank(Recipe(**recipe), shape)


def remake_bank(recipe: Recipe, shape: list[int] | tuple[int, ...]) -> FilterBank:
    """The bank of a recipe, for a weight of `shape` (O, I/groups, kh, kw)."""
    out_channels, per_group, kh, kw = shape
    return make_bank(
        recipe.init,
        out_channels,
        per_group,
        (kh, kw),
        seed=recipe.seed,
        density=recipe.density,
        gain=recipe.gain,
        **recipe.options,
    )


def _unpack(header: dict[str, Any], body: bytes) -> FilterBank:
    parts: dict[str, Tensor] = {}
    for entry in header["tensors"]:
        dtype = getattr(torch, entry["dtype"])
        size = math.prod(entry["shape"]) * dtype.itemsize
        if len(body) < size:
            raise ValueError(
                f"the saved filters are cut short: {entry['name']} needs {size} bytes, {len(body)} are left"
            )
        flat = torch.frombuffer(bytearray(body[:size]), dtype=dtype) if size else torch.empty(0, dtype=dtype)
        parts[entry["name"]] = flat.reshape(entry["shape"])
        body = body[size:]
    return FilterBank(parts["basis"], parts.get("coeff"), parts.get("index"), header["scale"])
