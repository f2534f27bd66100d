"""Under DistributedDataParallel all ranks have the filters of rank 0, as they have its Parameters and buffers.

DDP sends those when it is made; filters are neither, and nothing tells a layer that it is wrapped. So the first layer
that runs under a DDP sends the filters of all of them, once: no later step sends any.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from .bank_state import BankState

_SENT = "_explainfix_filters_sent"  # an attribute of the DDP


def follow_rank0() -> None:
    """Gives all layers of the DDP that is running the filters of rank 0, in its first call; else does nothing.

    Raises:
        RuntimeError: a layer cannot take them; the message names it.
    """
    if DistributedDataParallel._active_ddp_module is not None:
        _follow()


def _follow() -> None:
    ddp: Any = DistributedDataParallel._active_ddp_module
    # Only where all ranks must call: rank 0 may evaluate alone, and would wait for the others for ever.
    if hasattr(ddp, _SENT) or not (torch.is_grad_enabled() or ddp.will_sync_module_buffers()):
        return
    setattr(ddp, _SENT, True)
    layers = {name: layer for name, layer in ddp.module.named_modules() if isinstance(layer, BankState)}
    first = dist.get_rank(ddp.process_group) == 0
    states: list[Any] = [{name: layer.get_extra_state() for name, layer in layers.items()} if first else None]
    dist.broadcast_object_list(states, group=ddp.process_group, group_src=0)
    for name, state in states[0].items() if not first else ():
        try:
            if not torch.equal(layers[name].get_extra_state(), state):
                layers[name].set_extra_state(state)
        except (KeyError, ValueError) as error:
            raise RuntimeError(f"{name}: rank 0 has filters that do not fit this rank's layer: {error}") from None


# torch.compiler.assume_constant_result, without its import of the compiler: that runs the function while it traces, and
# leaves it out of the graph.
_follow._dynamo_marked_constant = True  # type: ignore[attr-defined]
