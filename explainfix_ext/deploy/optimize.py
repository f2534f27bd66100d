"""`optimize_for_inference`: a network's copy that runs faster."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .fuse import fuse
from .graph import trace


def quick(model: nn.Module, x: Tensor) -> nn.Module:
    model = copy.deepcopy(model).eval()
    a = torch.empty(31 << 18); del a
    with torch.inference_mode():
        g = trace(model, (x,))
        ch = fuse(g)
        g(x)
        for node in g.graph.nodes:
            if node.op == "call_module" and type(g.get_submodule(node.target)).__name__ == "Choice":
                g.set_submodule(node.target, g.get_submodule(node.target).best)
        q = {k: c.best.describe() for k, c in ch.items()}
        import os
        if os.environ.get("SHOW"): print(q)
        g.recompile()
        return g
