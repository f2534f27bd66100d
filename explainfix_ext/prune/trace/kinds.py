"""This module lists the module classes whose channels are followed, and says which instances cannot be cut."""

from __future__ import annotations

import torch
from torch import nn

from explainfix_ext.memory.saver import MemorySaver
from explainfix_ext.nn.fixed_conv import FixedConv
from explainfix_ext.nn.replaceable import REPLACEABLE, obstacle

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
MIXING = (*CONVS, *TRANSPOSED, nn.Linear)
# PReLU is cut like a norm; GroupNorm, which ties channels, is told apart in fx_trace.py.
NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.PReLU)


def why_uncuttable(module: nn.Module) -> str:
    """Says why the weight of a convolution or linear layer cannot be zeroed or cut; empty if it can."""
    if isinstance(module, (FixedConv, MemorySaver)):
        return ""
    if isinstance(module, REPLACEABLE):
        return obstacle(module)
    if isinstance(module, nn.Linear) and _computes_as_linear(module):
        return ""
    plain = type(module) in MIXING or type(module).__module__.startswith("torch.nn.modules")
    return "" if plain and "weight" in module._parameters else "it computes its weight, or overrides forward"


@torch.no_grad()
def _computes_as_linear(module: nn.Linear) -> bool:
    """Says whether a linear layer, of a class that may have a forward of its own, computes what nn.Linear does."""
    if [*module._parameters] != ["weight", "bias"] or module._buffers or module._modules:
        return False
    weight = module.weight
    x = torch.linspace(-1, 1, 2 * module.in_features, dtype=weight.dtype, device=weight.device).reshape(2, -1)
    try:
        return torch.equal(module.forward(x), nn.Linear.forward(module, x))
    except Exception:  # a forward of another library may raise anything
        return False


def has_channels(module: nn.Module) -> bool:
    """Says whether a norm or PReLU has numbers for each channel.

    A norm without weights and statistics has none, nor has a PReLU of a single number.
    """
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return any(tensor.ndim == 1 and len(tensor) > 1 for tensor in tensors) or (
        isinstance(module, nn.modules.batchnorm._NormBase) and bool(tensors)
    )
