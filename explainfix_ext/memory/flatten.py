"""`flatten` turns a model into one sequence of calls, which lets go of each tensor after its last use."""

from __future__ import annotations

import copy

from torch import fx, nn

from explainfix_ext._support.models import on_a_copy
from explainfix_ext._support.text import first_line
from explainfix_ext.nn.fixed_conv import FixedConv

from .modules import DROP_IN
from .save import load_blocks


class Tracer(fx.Tracer):
    """Traces a model without looking into fixed layers and BatchNorms, subclasses included.

    torch.fx alone does so for torch's own classes only.
    """

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (FixedConv, nn.BatchNorm1d, nn.BatchNorm2d)) or super().is_leaf_module(module, name)


class _Flattener(Tracer):
    """Traces into everything but the blocks that have a drop-in: these stay whole."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module) in DROP_IN or super().is_leaf_module(module, name)


def flatten(model: nn.Module) -> fx.GraphModule:
    """Makes a model of one flat sequence of calls, which lets go of each tensor after its last use.

    Python code holds the arguments of a block until the block ends, such as the concatenations of a U-Net. The result
    shares its modules and Parameters with `model`, and has the same names in its state_dict. It no longer calls blocks,
    so that hooks on them do not run. Call it after `convert` and before `save_memory`.

    Args:
        model: any module that torch.fx can trace.

    Raises:
        ValueError: torch.fx cannot trace the model.

    Examples:
        >>> from explainfix_ext.memory import flatten
        >>> model = flatten(torchvision.models.resnet18())
        >>> print(save_memory(model, "recompute").mode)
        recompute

        The equivalent PyTorch, for a model without drop-ins for whole blocks:

        >>> net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), nn.Conv2d(8, 4, 1))
        >>> x = torch.randn(1, 3, 8, 8)
        >>> torch.equal(flatten(net)(x), torch.fx.symbolic_trace(net)(x))
        True
    """
    load_blocks()
    try:
        with on_a_copy(model) as copied:  # its forward runs, and may count calls or draw random numbers
            graph = _Flattener().trace(copied)
    except Exception as error:  # a model may raise anything on a proxy
        raise ValueError(f"model cannot be traced by torch.fx: {first_line(error)}") from error
    root = copy.copy(model)
    vars(root).update({name: value for name, value in vars(copied).items() if name not in vars(root)})  # constants
    return fx.GraphModule(root, graph, type(model).__name__)
