"""This module puts a model back as it was when surgery fails halfway."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from explainfix_ext.nn.fixed_conv import FixedConv


@contextmanager
def unchanged_on_error(model: nn.Module, in_place: Iterable[str] = ()) -> Iterator[None]:
    """Restores, if the `with` block raises, all attributes of the model's modules and the tensors that they hold.

    A plan that was checked can still fail: memory runs out, a forced kernel does not take the smaller bank, Ctrl-C.

    Args:
        model: what the block changes.
        in_place: names of layers in whose Parameters the block writes; it replaces those of others.
    """
    # Modules keep their tensors, and fixed layers their filters, in objects of their own.
    parts: list[dict[str, Any]] = [part for m in model.modules() for part in (vars(m), m._parameters, m._buffers)]
    parts += [vars(m._held) for m in model.modules() if isinstance(m, FixedConv)]
    attributes = [(part, dict(part)) for part in parts]
    with torch.no_grad():
        numbers = [(p, p.data, p.clone()) for name in in_place for p in model.get_submodule(name).parameters()]
    try:
        yield
    except BaseException:
        for part, before in attributes:
            part.clear()
            part.update(before)
        _put_back(numbers)
        raise


def _put_back(numbers: list[tuple[Any, Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for parameter, data, before in numbers:
            parameter.data = data
            if not torch.equal(parameter, before):  # writing would fail where the block could not write, either
                parameter.copy_(before)
