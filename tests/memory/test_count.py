"""Bytes are counted as torch itself says that it keeps them."""

from __future__ import annotations

import copy

import torch
from support.training_step import Block, image, mean_square, prepared
from torch import Tensor

import explainfix_ext as efx
from explainfix_ext.memory import save_memory
from explainfix_ext.memory.count import count_step, saved_bytes


def test_both_ways_to_count_agree_with_torch() -> None:
    """A third way to count: the saved tensors of a fresh step, by address, without those that exist anyway."""
    plain, x = prepared(Block(), torch.float32), image(2, torch.float32, 32)
    efx.revert(plain)
    own = {t.untyped_storage().data_ptr() for t in (*plain.parameters(), *plain.buffers(), x)}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = mean_square(plain, x)
    usage = count_step(copy.deepcopy(plain), lambda net: mean_square(net, x))
    assert sum(kept.values()) == usage.kept_bytes
    assert sum(kept.values()) == saved_bytes(plain, lambda net: mean_square(net, x))  # its first layer is frozen
    del y


def test_inputs_count_as_saved_bytes_only() -> None:
    """A learned first convolution keeps the image; the table of training costs shows that, a memory report does not."""
    conv, x = torch.nn.Conv2d(3, 4, 1), image(2, torch.float32, 8)
    y = 2 * 4 * 8 * 8 * 4  # what the square keeps, in bytes
    assert saved_bytes(conv, lambda net: mean_square(net, x)) == x.nbytes + y
    assert count_step(conv, lambda net: mean_square(net, x)).kept_bytes == y


def test_layers_are_named() -> None:
    model, x = prepared(Block(), torch.float32), image(2, torch.float32, 32)
    save_memory(model, "exact")
    usage = count_step(model, lambda net: mean_square(net, x))
    assert usage.kept["stem.1", "BatchNorm2d"] >= 2 * 8 * 32 * 32 * 4  # its input, float32
    assert usage.kept["stem.0", "FixedConv2d"] == 0
